"""Questions to index.db within one snapshot.

What a search, a scan and the vector index want to know is here, a method for each question, so that no SQL is spread
over the rooms above. A reader is good for as long as the block of `Store.read` that gave it.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from mmsearch.store.failures import damaged
from mmsearch.store.halves import floats, stacked
from mmsearch.store.moments import Moments
from mmsearch.store.paths import below, from_columns, to_columns
from mmsearch.store.records import (
    Block,
    Condition,
    FileKind,
    FileRow,
    FloatArray,
    FolderRow,
    HalfArray,
    HeadsRow,
    IntArray,
    Judgement,
    Kind,
    PictureRow,
    Root,
    Segment,
    StoredBlock,
)

Raw: TypeAlias = tuple[FloatArray, FloatArray]  # a vector (dim,) by the model's own heads, and the feature (features,)
# ids, kinds, vectors and features, both the latter as float16 bytes; None where an encoder shows no features
RawBlock: TypeAlias = tuple[Sequence[int], Sequence[Kind], Sequence[bytes], Sequence[bytes | None]]
T = TypeVar("T", int, str, bytes)

RARE = 2_000  # vectors of a kind; to look at all of them takes some 5 ms
TIE_LETTERS = 200  # of a text, by which equals are ordered
MOST_ID = 2**31  # of a vector, which no index reaches
BOUND = 500  # values bound in one statement; SQLite's floor is 999
# fmt: off
ITEM_COLUMNS = (
    "kind", "id", "path", "text", "line", "width", "height", "format", "taken_at", "camera", "latitude_deg",
    "longitude_deg", "facts",
)
# fmt: on
_PATH = ITEM_COLUMNS.index("path")
# A caption is at its picture, wherever it was written down
_SHOWN = """
    SELECT i.id, CASE WHEN p.path IS NULL THEN f.path_bytes ELSE p.path_bytes END,
           i.kind, ifnull(nullif(i.name, ''), 'mm-' || i.id), ifnull(p.path, f.path),
           ifnull(i.text, (SELECT c.text FROM items c WHERE c.caption_of = i.id ORDER BY c.id LIMIT 1)),
           i.line, i.width, i.height, i.format, i.taken_at, i.camera, i.latitude_deg, i.longitude_deg, i.facts
    FROM items i LEFT JOIN files f ON f.id = i.file_id
    LEFT JOIN items o ON o.id = i.caption_of LEFT JOIN files p ON p.id = o.file_id
    WHERE i.id IN ({})"""


class Reader:
    """Questions to the store within one snapshot."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self.connection = connection
        self.folder = folder
        self._settings: dict[str, str] | None = None  # all of them, once one was asked for
        self._file_columns: str | None = None  # once a file was asked for
        self._items_of: dict[int, int] = {}  # vector -> item, of the vectors that were scored last

    @property
    def version(self) -> int:
        """Of the tables: a writer brings them up to date, a reader takes them as they are."""
        return int(self.connection.execute("PRAGMA user_version").fetchone()[0])

    def setting(self, key: str) -> str | None:
        """A value of the settings table."""
        if self._settings is None:
            self._settings = dict(self.connection.execute("SELECT key, CAST(value AS TEXT) FROM settings"))
        return self._settings.get(key)

    def revision(self) -> int:
        """A number that grows with every write that changes an answer."""
        return int(self.setting("revision") or 0)

    def roots(self) -> list[Root]:
        """What was once put into the index, oldest first."""
        rows = self.connection.execute("SELECT path, path_bytes, options, updated_at FROM roots ORDER BY id")
        return [Root(from_columns(text, raw), json.loads(options), updated) for text, raw, options, updated in rows]

    def file(self, path: str) -> FileRow | None:
        """The file at a path."""
        where, values = at(path)
        return next(self._files(where, values), None)

    def files_below(self, folder: str) -> Iterator[FileRow]:
        """Every known file at or below a path."""
        where, values = at(folder)
        yield from self._files(where, values)
        yield from self._files("path >= ? AND path < ?", below(folder))

    def files_of_size(self, size_bytes: int, kind: FileKind) -> list[FileRow]:
        """Files of a kind that could have the same content."""
        where = "size_bytes = ? AND kind = ? AND content_hash IS NOT NULL AND skipped IS NULL"
        return list(self._files(where, (size_bytes, kind)))

    def skipped(self) -> list[FileRow]:
        """Every file of which nothing could be read, with its reason."""
        return list(self._files("skipped IS NOT NULL ORDER BY path", ()))

    def _files(self, where: str, values: Sequence[object]) -> Iterator[FileRow]:
        if self._file_columns is None:
            # What an older index does not have yet
            newest = "reader, tries, away" if self.version > 3 else "NULL, 0, 0"
            self._file_columns = f"id, path, path_bytes, kind, size_bytes, modified_ns, content_hash, skipped, {newest}"
        rows = self.connection.execute(f"SELECT {self._file_columns} FROM files WHERE {where}", values)
        for number, text, raw, *others in rows:
            yield FileRow._make((number, text if raw is None else from_columns(text, raw), *others))

    def folders_below(self, folder: str) -> dict[str, FolderRow]:
        """What is known of the folders at and below a path."""
        select = "SELECT path, path_bytes, identity, away FROM folders WHERE "
        return {
            from_columns(text, raw): FolderRow(identity, bool(away))
            for where, values in (at(folder), ("path >= ? AND path < ?", below(folder)))
            for text, raw, identity, away in self.connection.execute(select + where, values)
        }

    def caption_owners(self) -> dict[int, set[int]]:
        """Side-car -> the files of the pictures to which it has given captions, all by their ids."""
        owners: dict[int, set[int]] = {}
        for side_car, picture in self.connection.execute(
            """SELECT c.file_id, i.file_id FROM items c JOIN items i ON i.id = c.caption_of
               WHERE c.caption_of IS NOT NULL AND c.file_id IS NOT NULL AND i.file_id IS NOT NULL"""
        ):
            owners.setdefault(side_car, set()).add(picture)
        return owners

    def captioned_by(self, side_car: int) -> dict[int, str]:
        """The files of the pictures to which a file has given captions: id -> path."""
        where = "id IN (SELECT i.file_id FROM items c JOIN items i ON i.id = c.caption_of WHERE c.file_id = ?)"
        return {row.id: row.path for row in self._files(where, (side_car,))}

    def picture_files(self, items: Sequence[int]) -> list[int]:
        """The files from which pictures were read."""
        return [
            row[0]
            for part in parts(items)
            for row in self.connection.execute(
                f"SELECT file_id FROM items WHERE kind = 'image' AND file_id IS NOT NULL AND id IN ({marks(part)})",
                part,
            )
        ]

    def side_cars_of(self, item: int) -> list[FileRow]:
        """The files beside a picture from which it has captions."""
        where = "kind = 'caption' AND id IN (SELECT file_id FROM items WHERE caption_of = ?)"
        return list(self._files(where, (item,)))

    def counts(self) -> dict[str, int]:
        """How many images, passages and captions there are."""
        images, passages, captions = self.connection.execute(
            """SELECT count(*) FILTER (WHERE kind = 'image'),
                      count(*) FILTER (WHERE kind = 'text' AND caption_of IS NULL),
                      count(*) FILTER (WHERE caption_of IS NOT NULL) FROM items"""
        ).fetchone()
        return {"images": images, "passages": passages, "captions": captions}

    def item_of_file(self, path: str) -> int | None:
        """The image item that was read from a file."""
        where, values = at(path, "f")
        row = self.connection.execute(
            f"SELECT i.id FROM items i JOIN files f ON f.id = i.file_id WHERE i.kind = 'image' AND {where}", values
        ).fetchone()
        return None if row is None else int(row[0])

    def captions(self, item: int) -> tuple[str, ...]:
        """The captions of a picture, in the order in which they were put in."""
        rows = self.connection.execute("SELECT text FROM items WHERE caption_of = ? ORDER BY id", (item,))
        return tuple(text for (text,) in rows)

    def captions_from(self, file_id: int) -> dict[tuple[int, str], int]:
        """(picture, text) -> caption item, for the captions that one file gave."""
        rows = self.connection.execute(
            "SELECT caption_of, text, id FROM items WHERE file_id = ? AND caption_of IS NOT NULL", (file_id,)
        )
        return {(picture, text): caption for picture, text, caption in rows}

    def items_with_content(self, hashes: Sequence[str]) -> list[int]:
        """Pictures whose file has one of these content hashes."""
        return [
            row[0]
            for part in parts(hashes)
            for row in self.connection.execute(f"SELECT id FROM items WHERE content_hash IN ({marks(part)})", part)
        ]

    def item_named(self, name: str) -> int | None:
        """The item with a user's own id."""
        row = self.connection.execute("SELECT id FROM items WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def heads(self) -> list[HeadsRow]:
        """The trained heads, in the order of their names."""
        if self.version < 3:
            return []
        in_use = self.setting("heads")
        rows = self.connection.execute("SELECT name, hash, report, made_at FROM heads ORDER BY name")
        return [HeadsRow(name, hash_, report, made, hash_ == in_use) for name, hash_, report, made in rows]

    def head_tensors(self, hash_: str) -> bytes | None:
        """The safetensors of trained heads."""
        row = self.connection.execute("SELECT tensors FROM heads WHERE hash = ?", (hash_,)).fetchone()
        return None if row is None else bytes(row[0])

    def feedback(self) -> list[Judgement]:
        """What people said of items, oldest first."""
        if self.version < 3:
            return []
        rows = self.connection.execute("SELECT query, item_id, match FROM feedback ORDER BY added_at, query, item_id")
        return [Judgement(query, item, bool(match)) for query, item, match in rows]

    def raw(self, items: Sequence[int]) -> dict[int, Raw]:
        """item -> its vector by the model's own heads, and the feature; float32 as they were kept."""
        return {
            item: _raw(vector, feature)
            for part in parts(items)
            for item, vector, feature in self.connection.execute(
                f"SELECT item_id, vector, feature FROM vectors WHERE item_id IN ({marks(part)})", part
            )
        }

    def raw_blocks(self, count: int) -> Iterator[RawBlock]:
        """Every vector as the model's own heads gave it, with its feature, in blocks in the order of ids."""
        rows = self.connection.execute("SELECT id, kind, vector, feature FROM vectors ORDER BY id")
        while block := rows.fetchmany(count):
            ids, kinds, vectors, features = zip(*block, strict=True)
            yield ids, kinds, vectors, features

    def encoded(self, kind: Kind, hashes: Sequence[str]) -> dict[str, Raw]:
        """content hash -> what was encoded for training, or is an item of that content."""
        found: dict[str, Raw] = {}
        for part in parts(hashes):
            if self.version > 2:
                rows = self.connection.execute(
                    f"""SELECT content_hash, vector, feature FROM encoded
                        WHERE kind = ? AND content_hash IN ({marks(part)})""",
                    (kind, *part),
                )
                found |= {content: _raw(vector, feature) for content, vector, feature in rows}
            rows = self.connection.execute(
                f"""SELECT i.content_hash, v.vector, v.feature FROM items i JOIN vectors v ON v.item_id = i.id
                    WHERE i.kind = ? AND i.content_hash IN ({marks(part)})""",
                (kind, *part),
            )
            found |= {content: _raw(vector, feature) for content, vector, feature in rows}
        return found

    def has_encoded(self, kind: Kind) -> bool:
        """Whether `encoded` could find anything."""
        tables = ("items", "encoded") if self.version > 2 else ("items",)
        asked = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE kind = ?)" for table in tables)
        return bool(self.connection.execute(f"SELECT {asked}", (kind,) * len(tables)).fetchone()[0])

    def captioned(self) -> list[tuple[int, int, str]]:
        """(picture, caption, text) of every caption in the index, in the order in which they were put in."""
        return self.connection.execute(
            "SELECT caption_of, id, text FROM items WHERE caption_of IS NOT NULL ORDER BY id"
        ).fetchall()

    def pictures(self, under: Sequence[str] = ()) -> list[PictureRow]:
        """All pictures, or those at or below some paths."""
        ranges = [below(folder) for folder in under]
        where = " OR ".join(["f.path = ? OR (f.path >= ? AND f.path < ?)"] * len(ranges)) or "1"
        rows = self.connection.execute(
            f"""SELECT i.id, i.name, f.path, f.path_bytes, i.content_hash, i.width, i.height, f.size_bytes
                FROM items i LEFT JOIN files f ON f.id = i.file_id WHERE i.kind = 'image' AND ({where})""",
            [bound for first, last in ranges for bound in (first[:-1], first, last)],
        )
        return [
            PictureRow(item, name or f"mm-{item}", None if text is None else from_columns(text, raw), *rest)
            for item, name, text, raw, *rest in rows
        ]

    def items_of_kind(self, kind: Kind) -> list[int]:
        """All pictures, or all passages and captions."""
        return [row[0] for row in self.connection.execute("SELECT id FROM items WHERE kind = ? ORDER BY id", (kind,))]

    def content_of_files(self, paths: Sequence[str]) -> dict[str, str]:
        """path -> content hash, of those that the index holds a picture from."""
        found = {}
        for path in paths:
            row = self.file(path)
            if row is not None and row.content_hash is not None and row.kind == "image":
                found[path] = row.content_hash
        return found

    def contents(self, items: Sequence[int]) -> dict[int, str]:
        """item -> content hash, of those that have one."""
        return {
            item: content
            for part in parts(items)
            for item, content in self.connection.execute(
                f"SELECT id, content_hash FROM items WHERE id IN ({marks(part)}) AND content_hash IS NOT NULL", part
            )
        }

    def _vector(self) -> str:
        """SQL for the vector of a row of `vectors v`: by the model's own heads, or by those in use."""
        if self.setting("heads") is None:
            return "vector"
        return "(SELECT p.vector FROM projected p WHERE p.id = v.id)"

    def vectors(self, items: Sequence[int]) -> dict[int, FloatArray]:
        """item -> (dim,) float32, unit length."""
        return {
            item: np.frombuffer(vector, np.float16).astype(np.float32)
            for part in parts(items)
            for item, vector in self.connection.execute(
                f"SELECT item_id, {self._vector()} FROM vectors v WHERE item_id IN ({marks(part)})", part
            )
        }

    def vectors_of(self, vector_ids: Sequence[int]) -> Block:
        """(ids (n,) int64, vectors (n, dim) float32, unit length), in no order; those that are there."""
        blocks = list(self.stored_vectors(vector_ids))
        if not blocks:
            return _block(())
        ids, vectors = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return ids, floats(vectors)

    def stored_vectors(self, vector_ids: Sequence[int]) -> Iterator[StoredBlock]:
        """Blocks of (ids (n,) int64, vectors (n, dim) float16), in no order; those that are there.

        Small blocks stay in a processor's cache while they are scored. Whose the vectors are is remembered: that is
        asked next, and their pages, three vectors each, would be read twice.
        """
        vector = self._vector()
        self._items_of = {}
        for part in parts(vector_ids):
            rows = self.connection.execute(
                f"SELECT id, item_id, {vector} FROM vectors v WHERE id IN ({marks(part)})", part
            ).fetchall()
            if rows:
                ids, items, vectors = zip(*rows, strict=True)
                self.remember(ids, items)
                yield np.array(ids, np.int64), stacked(vectors)

    def remember(self, vector_ids: Iterable[int], items: Iterable[int]) -> None:
        """Whose vectors are, for `owners` of the same search."""
        self._items_of.update(zip(vector_ids, items, strict=True))

    def owners(self, kind: Kind, vector_ids: Sequence[int]) -> dict[int, tuple[int, int]]:
        """vector of a kind -> (its item, the item that it is a hit for: of a caption, the picture)."""
        if kind == "image":  # no picture is a caption
            known = self._items_of
            owned = {vector: (known[vector], known[vector]) for vector in vector_ids if vector in known}
            for part in parts([vector for vector in vector_ids if vector not in known]):
                owned |= {
                    vector: (item, item)
                    for vector, item in self.connection.execute(
                        f"SELECT id, item_id FROM vectors WHERE id IN ({marks(part)})", part
                    )
                }
            return owned
        return {
            vector: (item, owner)
            for part in parts(vector_ids)
            for vector, item, owner in self.connection.execute(
                f"""SELECT v.id, i.id, ifnull(i.caption_of, i.id) FROM vectors v JOIN items i ON i.id = v.item_id
                    WHERE v.id IN ({marks(part)})""",
                part,
            )
        }

    def items(self, items: Sequence[int]) -> dict[int, dict[str, Any]]:
        """item -> its columns, `path` as the operating system knows it, and a picture's first caption as its text."""
        return {
            item: dict(zip(ITEM_COLUMNS, columns, strict=True)) for item, columns in self.shown_items(items).items()
        }

    def shown_items(self, items: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """item -> the values of ITEM_COLUMNS.

        `path` is as the operating system knows it, `text` of a picture is its first caption. Made for answers of
        thousands of hits: nothing is made for an item but what a hit holds.
        """
        found: dict[int, tuple[Any, ...]] = {}
        for part in parts(sorted(items)):  # neighbours in the file one after the other
            rows = self.connection.execute(_SHOWN.format(marks(part)), part).fetchall()
            told = [row[-1] for row in rows if row[-1] is not None]
            every = iter(json.loads(f"[{','.join(told)}]"))  # a parser's start costs more than one's facts
            for row in rows:
                item, raw, *columns, facts = row
                if raw is not None:
                    columns[_PATH] = from_columns(columns[_PATH], raw)
                found[item] = (*columns, {} if facts is None else next(every))
        return found

    def allowed_vectors(self, kind: Kind, condition: Condition) -> IntArray:
        """(n,) int64, sorted: vectors of a kind whose hit passes a condition.

        Of a caption the hit is its picture: a filter on place or time is about that. The hits that pass are found
        first, except where the kind is rare among them: then each of its vectors is looked at.
        """
        if self._is_rare(kind):
            joined = "LEFT JOIN files f ON f.id = i.file_id" if condition.in_files else ""
            ways = [
                f"""vectors v CROSS JOIN items c ON c.id = v.item_id
                    CROSS JOIN items i ON i.id = ifnull(c.caption_of, c.id) {joined}
                    WHERE v.kind = ? AND {condition.check}"""
            ]
        else:
            passes = condition.find if self.version > 1 else condition.check
            hits = "files f CROSS JOIN items i ON i.file_id = f.id" if condition.in_files else "items i"
            ways = [f"{hits} CROSS JOIN vectors v ON v.item_id = i.id WHERE v.kind = ? AND {passes}"]
            if kind == "text":
                ways[0] += " AND i.caption_of IS NULL"
                captions = "items c ON c.caption_of = i.id CROSS JOIN vectors v ON v.item_id = c.id"
                ways.append(f"{hits} CROSS JOIN {captions} WHERE v.kind = ? AND {passes}")
        found = [
            number
            for way in ways
            for (number,) in self.connection.execute(f"SELECT v.id FROM {way}", (kind, *condition.values)).fetchall()
        ]
        return self._selectable(np.sort(np.array(found, np.int64)))

    def _is_rare(self, kind: Kind) -> bool:
        """Whether there are so few vectors of a kind that to look at all of them is nothing beside the items."""
        rows = self.connection.execute("SELECT 1 FROM vectors WHERE kind = ? LIMIT ?", (kind, RARE + 1)).fetchall()
        return len(rows) <= RARE

    def passing(self, vector_ids: Sequence[int], condition: Condition) -> Block:
        """(ids (n,) int64, vectors (n, dim) float32, unit length), in no order; those whose hit passes a condition."""
        joined = "LEFT JOIN files f ON f.id = i.file_id" if condition.in_files else ""
        vector = self._vector()
        return _block(
            row
            for part in parts(vector_ids)
            for row in self.connection.execute(
                f"""SELECT v.id, {vector} FROM vectors v CROSS JOIN items c ON c.id = v.item_id
                    CROSS JOIN items i ON i.id = ifnull(c.caption_of, c.id) {joined}
                    WHERE v.id IN ({marks(part)}) AND {condition.check}""",
                (*part, *condition.values),
            )
        )

    def keyword_ranking(self, match: str, condition: Condition | None, limit: int) -> list[int]:
        """Items whose words match an FTS5 expression and that pass a condition, best first (BM25, `tie_keys`)."""
        passes, values = ("1", ()) if condition is None else (condition.check, condition.values)
        rows = self.connection.execute(
            f"""SELECT i.id FROM keywords k JOIN items i ON i.id = k.rowid LEFT JOIN files f ON f.id = i.file_id
                WHERE keywords MATCH ? AND {passes} ORDER BY bm25(keywords), f.path IS NULL, f.path, f.path_bytes,
                i.line, i.name IS NULL, i.name, substr(i.text, 1, {TIE_LETTERS}), i.id LIMIT ?""",
            (match, *values, limit),
        )
        return [row[0] for row in rows]

    def tie_keys(self, items: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """item -> what it is ordered by among equals: its path, line, own id and text, and last when it came.

        Of a caption the path and id are its picture's. Items from memory come after those from files.
        """
        return {
            item: (path is None, path or "", raw or b"", line or 0, name is None, name or "", text or "", hit, item)
            for part in parts(items)
            for item, path, raw, line, name, text, hit in self.connection.execute(
                f"""SELECT c.id, f.path, f.path_bytes, c.line, i.name, substr(c.text, 1, {TIE_LETTERS}), i.id
                    FROM items c JOIN items i ON i.id = ifnull(c.caption_of, c.id) LEFT JOIN files f ON f.id = i.file_id
                    WHERE c.id IN ({marks(part)})""",
                part,
            )
        }

    def segments(self, kind: Kind) -> list[Segment]:
        """The FAISS files of a kind, in the order of ids."""
        rows = self.connection.execute(
            f"""SELECT file, after_id, through_id, count, size_bytes, {"cells" if self.version > 1 else "NULL"},
                {"checksum" if self.version > 3 else "NULL"} FROM segments WHERE kind = ? ORDER BY through_id""",
            (kind,),
        )
        return [Segment(*row) for row in rows]

    def dead_vectors(self, kind: Kind) -> IntArray:
        """(n,) int64, sorted: ids of vectors that are gone but may still be held by a segment or a reader."""
        rows = self.connection.execute("SELECT id FROM dead_vectors WHERE kind = ? ORDER BY id", (kind,))
        return self._selectable(np.fromiter((row[0] for row in rows), np.int64))

    def _selectable(self, ids: IntArray) -> IntArray:
        """Ids (n,), sorted, of which a selector can be made: a byte is taken for each number up to the last."""
        if len(ids) and ids[-1] > MOST_ID:
            raise damaged(self.folder, f"a vector has the number {ids[-1]}")
        return ids

    def vectors_after(self, kind: Kind, after_id: int, through_id: int | None = None) -> Iterator[Block]:
        """Blocks of (ids (n,) int64, vectors (n, dim) float32), in the order of ids."""
        cursor = self.connection.execute(
            f"SELECT id, {self._vector()} FROM vectors v WHERE kind = ? AND id > ? AND id <= ? ORDER BY id",
            (kind, after_id, through_id if through_id is not None else 2**62),
        )
        while rows := cursor.fetchmany(8192):
            yield _block(rows)

    def rows_after(
        self, after_id: int, through_id: int, at_once: int
    ) -> Iterator[tuple[IntArray, IntArray, HalfArray]]:
        """Blocks of (ids (n,), items (n,), vectors (n, dim)) of every kind, in the order of ids; n <= at_once."""
        cursor = self.connection.execute(
            f"SELECT id, item_id, {self._vector()} FROM vectors v WHERE id > ? AND id <= ? ORDER BY id",
            (after_id, through_id),
        )
        while rows := cursor.fetchmany(at_once):
            ids, items, vectors = zip(*rows, strict=True)
            yield np.array(ids, np.int64), np.array(items, np.int64), stacked(vectors)

    def sample_of_vectors(self, kind: Kind, count: int) -> Block:
        """(ids (n,), vectors (n, dim) float32), n <= count: at even distances of their ids, always the same ones."""
        first, last = self.connection.execute(  # each from the end of an index; asked for together, SQLite walks it all
            """SELECT (SELECT min(id) FROM vectors WHERE kind = ?), (SELECT max(id) FROM vectors WHERE kind = ?)""",
            (kind, kind),
        ).fetchone()
        vector = self._vector()
        # np.unique would import numpy.ma, which costs a search on the command line 30 ms
        ids = [] if first is None else sorted(set(np.linspace(first, last, count).astype(np.int64).tolist()))
        return _block(
            row
            for part in parts(ids)
            for row in self.connection.execute(
                # +kind: by their ids; the index on kinds would be walked from end to end
                f"SELECT id, {vector} FROM vectors v WHERE id IN ({marks(part)}) AND +kind = ? ORDER BY id",
                (*part, kind),
            )
        )

    def moments(self, kind: Kind) -> Moments | None:
        """Of the vectors of a kind up to some id; None where none are kept, or what is kept makes no sense."""
        if self.version < 4:
            return None
        row = self.connection.execute(
            "SELECT through_id, count, sums, products FROM moments WHERE kind = ?", (kind,)
        ).fetchone()
        if row is None:
            return None
        through, count, sums, products = row
        return Moments.from_bytes(through, count, sums, products, self.dim())

    def moments_through(self, kind: Kind) -> int:
        """Up to which vector id moments of a kind are kept, 0 where none are."""
        row = self.connection.execute("SELECT through_id FROM moments WHERE kind = ?", (kind,)).fetchone()
        return 0 if row is None else int(row[0])

    def lost_vectors(self, kind: Kind) -> Iterator[FloatArray]:
        """Blocks (n, dim) of vectors that the moments of a kind hold, and that were deleted since."""
        cursor = self.connection.execute("SELECT id, vector FROM lost_vectors WHERE kind = ?", (kind,))
        while rows := cursor.fetchmany(8192):
            yield _block(rows)[1]

    def count_lost_vectors(self, kind: Kind) -> int:
        """How many of them there are."""
        return int(self.connection.execute("SELECT count(*) FROM lost_vectors WHERE kind = ?", (kind,)).fetchone()[0])

    def placeable(self) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
        """(vectors (n,), their items (n,), whether each is a text (n,)), by vector; of all that a hit can be."""
        rows = self.connection.execute(
            """SELECT v.id, v.item_id, v.kind = 'text' FROM vectors v CROSS JOIN items i ON i.id = v.item_id
               WHERE i.caption_of IS NULL ORDER BY v.id"""
        )
        numbers = np.fromiter((number for row in rows for number in row), np.int64)
        vectors, items, texts = numbers.reshape(-1, 3).T.copy()
        return vectors, items, texts.astype(bool)

    def count_vectors(self, kind: Kind) -> int:
        """How many vectors of a kind there are."""
        return int(self.connection.execute("SELECT count(*) FROM vectors WHERE kind = ?", (kind,)).fetchone()[0])

    def dim(self) -> int:
        """How many numbers a vector has; 0 where there is none."""
        row = self.connection.execute("SELECT length(vector) FROM vectors LIMIT 1").fetchone()
        return 0 if row is None else int(row[0]) // np.dtype(np.float16).itemsize

    def count_through(self, through_id: int, after_id: int = 0) -> int:
        """How many vectors of any kind there are among some ids."""
        asked = "SELECT count(*) FROM vectors WHERE id > ? AND id <= ?"
        return int(self.connection.execute(asked, (after_id, through_id)).fetchone()[0])

    def last_vector(self, kind: Kind) -> int:
        """The highest vector id of a kind, 0 where there is none."""
        row = self.connection.execute("SELECT ifnull(max(id), 0) FROM vectors WHERE kind = ?", (kind,)).fetchone()
        return int(row[0])


def _raw(vector: bytes, feature: bytes | None) -> Raw:
    """Of an encoder that shows no features, its vector is all there is to learn from."""
    first = np.frombuffer(vector, np.float16).astype(np.float32)
    return first, first if feature is None else np.frombuffer(feature, np.float16).astype(np.float32)


def _block(rows: Iterable[tuple[int, bytes]]) -> Block:
    """Rows of an id and a half-precision vector as two arrays."""
    ids, vectors = [], []
    for number, vector in rows:
        ids.append(number)
        vectors.append(vector)
    return np.array(ids, np.int64), floats(stacked(vectors))


def at(path: str, alias: str = "files") -> tuple[str, tuple[str, bytes]]:
    """A condition on the columns of a path that holds for exactly this one, with its bound values."""
    text, raw = to_columns(path)
    prefix = "" if alias == "files" else f"{alias}."
    return f"{prefix}path = ? AND ifnull({prefix}path_bytes, x'') = ?", (text, raw or b"")


def marks(values: Sequence[object]) -> str:
    """A question mark for each value to be bound."""
    return ", ".join("?" * len(values))


def parts(numbers: Sequence[T]) -> Iterator[Sequence[T]]:
    """Numbers or names in parts that one statement can bind, sorted: neighbours lie on one page, which is read once."""
    ordered = sorted(numbers)
    for start in range(0, len(ordered), BOUND):
        yield ordered[start : start + BOUND]
