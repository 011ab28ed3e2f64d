"""Changes to index.db, in transactions that hold an item with its facts, vector and keywords, or nothing of it.

There is one writer at a time (`Store.write`); it asks its questions as a reader does, over the same connection, and so
sees what it has just written.
"""

import contextlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import ModelError
from mmsearch.store.halves import stacked
from mmsearch.store.moments import Moments, worth
from mmsearch.store.paths import below, to_columns
from mmsearch.store.reader import Reader, at, marks, parts
from mmsearch.store.records import (
    KINDS,
    FileRow,
    FloatArray,
    FolderRow,
    Kind,
    NewFile,
    NewItem,
    Projection,
    Segment,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

PROJECTED_AT_ONCE = 4096  # vectors; 33 MB where a feature has 2,008 numbers
PROJECTING_THREADS = 2

_MIXED = (
    "Trained heads read the features of items, and some {}s come with features and others without. Put all of them in "
    "with features, or turn the heads off: mmsearch heads off"
)
_CONTENT_COLUMNS = ("width", "height", "format", "taken_at", "camera", "latitude_deg", "longitude_deg", "content_hash")
_ITEM_COLUMNS = ("kind", "name", "caption_of", "text", "line", *_CONTENT_COLUMNS)


class Writer(Reader):
    """Changes to the store; every group of them inside `transaction()`.

    project: how the heads in use make vectors, to be set by whoever writes items to an index that has such heads.
    """

    project: Projection | None = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block, or nothing of it; one within another is a part of that."""
        if self.connection.in_transaction:
            yield
            return
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._keep_moments()
            self.connection.execute("UPDATE settings SET value = value + 1 WHERE key = 'revision'")
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def setting(self, key: str) -> str | None:
        """A value of the settings table, which this may just have written."""
        row = self.connection.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def settle(self, settings: Mapping[str, str]) -> None:
        """Write settings that are not there yet; what another process wrote first stays."""
        with self.transaction():
            self.connection.executemany("INSERT OR IGNORE INTO settings VALUES (?, ?)", settings.items())

    def set(self, key: str, value: str) -> None:
        """Write a setting."""
        self.connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    def put_root(self, path: str, options: Mapping[str, Any], *, updated: bool = True) -> None:
        """Remember a root; updated: also that it was brought up to date just now."""
        where, values = at(path)
        before = self.connection.execute(f"SELECT updated_at FROM roots WHERE {where}", values).fetchone()
        updated_at = now() if updated else before and before[0]
        self.connection.execute(f"DELETE FROM roots WHERE {where}", values)
        self.connection.execute(
            "INSERT INTO roots (path, path_bytes, options, updated_at) VALUES (?, ?, ?, ?)",
            (*to_columns(path), json.dumps(options), updated_at),
        )

    def forget_roots_below(self, path: str) -> None:
        """Forget a root and those below it; `index` without a path leaves them alone from now on."""
        for where, values in (at(path), ("path >= ? AND path < ?", below(path))):
            self.connection.execute(f"DELETE FROM roots WHERE {where}", values)
            self.connection.execute(f"DELETE FROM folders WHERE {where}", values)

    def put_folder(self, path: str, folder: FolderRow) -> None:
        """Remember by what a folder is known again, and whether it is away."""
        where, values = at(path)
        self.connection.execute(f"DELETE FROM folders WHERE {where}", values)
        self.connection.execute("INSERT INTO folders VALUES (?, ?, ?, ?)", (*to_columns(path), *folder))

    def forget_folder(self, path: str) -> None:
        """Forget a folder from which there is nothing any more."""
        where, values = at(path)
        self.connection.execute(f"DELETE FROM folders WHERE {where}", values)

    def set_away(self, files: Iterable[int], away: bool) -> None:
        """Note of files that they are kept although they were not found, or are found again."""
        self.connection.executemany("UPDATE files SET away = ? WHERE id = ?", [(away, number) for number in files])

    def count_try(self, file_id: int, tries: int) -> None:
        """Note how often a file has broken its decoder; what was read from it before stays."""
        self.connection.execute("UPDATE files SET tries = ? WHERE id = ?", (tries, file_id))

    def put_file(self, file: NewFile) -> int:
        """Write a file's row, or bring it up to date; its items stay. Returns its id."""
        where, values = at(file.path)
        facts = (
            file.kind,
            file.size_bytes,
            file.modified_ns,
            file.content_hash,
            file.skipped,
            file.reader,
            file.tries,
            now(),
        )
        row = self.connection.execute(f"SELECT id FROM files WHERE {where}", values).fetchone()
        if row is None:
            cursor = self.connection.execute(
                """INSERT INTO files
                   (path, path_bytes, kind, size_bytes, modified_ns, content_hash, skipped, reader, tries, indexed_at)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                (*to_columns(file.path), *facts),
            )
            return int(cursor.lastrowid or 0)
        self.connection.execute(
            """UPDATE files SET kind = ?, size_bytes = ?, modified_ns = ?, content_hash = ?, skipped = ?, reader = ?,
               tries = ?, indexed_at = ?, away = 0 WHERE id = ?""",
            (*facts, row[0]),
        )
        return int(row[0])

    def move_file(self, file: FileRow, to: NewFile) -> None:
        """A file has another path now; its items keep everything else."""
        if (there := self.file(to.path)) is not None:
            self.remove_files([there.id])
        self.connection.execute(
            "UPDATE files SET path = ?, path_bytes = ?, size_bytes = ?, modified_ns = ?, away = 0 WHERE id = ?",
            (*to_columns(to.path), to.size_bytes, to.modified_ns, file.id),
        )
        for (item,) in self.connection.execute("SELECT id FROM items WHERE file_id = ?", (file.id,)).fetchall():
            self._write_keywords(item)

    def remove_files(self, files: Iterable[int]) -> int:
        """Take files out with all their items. Returns how many hits (images and passages) went."""
        gone = 0
        for number in files:
            gone += self.connection.execute(
                "SELECT count(*) FROM items WHERE file_id = ? AND caption_of IS NULL", (number,)
            ).fetchone()[0]
            beside = self.connection.execute(
                """SELECT DISTINCT c.file_id FROM items c JOIN items i ON i.id = c.caption_of
                   WHERE i.file_id = ? AND c.file_id IS NOT NULL""",
                (number,),
            ).fetchall()
            self.remove_items_of(number)
            self.connection.execute("DELETE FROM files WHERE id = ?", (number,))
            # A side-car goes with the last of its pictures
            self.connection.executemany(
                """DELETE FROM files WHERE id = ? AND kind = 'caption'
                   AND NOT EXISTS (SELECT 1 FROM items WHERE file_id = files.id)""",
                beside,
            )
        return gone

    def remove_items_of(self, file_id: int) -> None:
        """Take out every item of a file; captions of its picture go too, a picture whose captions go stays."""
        rows = self.connection.execute("SELECT id FROM items WHERE file_id = ?", (file_id,)).fetchall()
        self.remove_items([row[0] for row in rows])

    def remove_items(self, items: Sequence[int]) -> None:
        """Take out items, with their vectors and captions."""
        pictures: set[int] = set()
        for part in parts(items):
            rows = self.connection.execute(
                f"SELECT caption_of FROM items WHERE id IN ({marks(part)}) AND caption_of IS NOT NULL", part
            )
            pictures.update(row[0] for row in rows)
            self.connection.execute(f"DELETE FROM items WHERE id IN ({marks(part)})", part)
        for picture in pictures:
            self._write_keywords(picture)

    def put_items(self, items: Iterable[NewItem], file_id: int | None) -> list[int]:
        """Write new items with their vectors and keywords. Returns their ids."""
        written = []
        for item in items:
            cursor = self.connection.execute(
                f"""INSERT INTO items (file_id, {", ".join(_ITEM_COLUMNS)}, facts, added_at)
                    VALUES (?, {marks(_ITEM_COLUMNS)}, ?, ?)""",
                (file_id, *(getattr(item, name) for name in _ITEM_COLUMNS), _facts(item.facts), now()),
            )
            number = int(cursor.lastrowid or 0)
            self._put_vector(number, item)
            self._write_keywords(item.caption_of or number)
            written.append(number)
        return written

    def replace_item(self, number: int, item: NewItem) -> None:
        """New content under the same item id: the facts and vector change, captions and the user's id stay."""
        columns = ", ".join(f"{name} = ?" for name in _CONTENT_COLUMNS)
        self.connection.execute(
            f"UPDATE items SET {columns} WHERE id = ?",
            (*(getattr(item, name) for name in _CONTENT_COLUMNS), number),
        )
        self.connection.execute("DELETE FROM vectors WHERE item_id = ?", (number,))
        self._put_vector(number, item)

    def copy_item(self, of_file: int, file_id: int) -> bool:
        """Give a file the picture item of one with the same content, vector and all; False if that has none."""
        select = "SELECT id FROM items WHERE file_id = ? AND kind = 'image'"
        if (row := self.connection.execute(select, (of_file,)).fetchone()) is None:
            return False
        columns = ", ".join(("kind", *_CONTENT_COLUMNS))
        cursor = self.connection.execute(
            f"INSERT INTO items (file_id, added_at, {columns}) SELECT ?, ?, {columns} FROM items WHERE id = ?",
            (file_id, now(), row[0]),
        )
        number = int(cursor.lastrowid or 0)
        self.connection.execute(
            """INSERT INTO vectors (item_id, kind, vector, feature)
               SELECT ?, kind, vector, feature FROM vectors WHERE item_id = ?""",
            (number, row[0]),
        )
        if self.setting("heads") is not None:
            self.connection.execute(
                """INSERT INTO projected SELECT v.id, p.vector FROM vectors v, vectors o JOIN projected p ON p.id = o.id
                   WHERE v.item_id = ? AND o.item_id = ?""",
                (number, row[0]),
            )
        self._write_keywords(number)
        return True

    def _put_vector(self, number: int, item: NewItem) -> None:
        vector = item.vector.astype(np.float16).tobytes()
        feature = None if item.feature is None else item.feature.astype(np.float16).tobytes()
        cursor = self.connection.execute(
            "INSERT INTO vectors (item_id, kind, vector, feature) VALUES (?, ?, ?, ?)",
            (number, item.kind, vector, feature),
        )
        if self.setting("heads") is not None:
            assert self.project is not None, "items are written under heads that nobody gave"
            first = "SELECT feature IS NULL FROM vectors WHERE kind = ? ORDER BY id LIMIT 1"
            if self.connection.execute(first, (item.kind,)).fetchone()[0] != (feature is None):
                raise ModelError(_MIXED.format(item.kind))
            [projected] = _projected(self.project, [item.kind], [vector], [feature])
            self.connection.execute("INSERT INTO projected VALUES (?, ?)", (cursor.lastrowid, projected))

    def _check_features(self, kind: Kind) -> None:
        """Raises ModelError where some items of a kind have features for heads to read, and others none."""
        some, none = (
            self.connection.execute(
                f"SELECT EXISTS (SELECT 1 FROM vectors WHERE kind = ? AND feature IS {said} NULL)", (kind,)
            ).fetchone()[0]
            for said in ("NOT", "")
        )
        if some and none:
            raise ModelError(_MIXED.format(kind))

    # Heads, and what they are trained with

    def put_heads(self, name: str, hash_: str, tensors: bytes, report: str) -> None:
        """Keep trained heads; those of the same name go."""
        self.connection.execute(
            "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", (name, hash_, tensors, report, now())
        )

    def remove_heads(self, name: str) -> None:
        """Forget trained heads that are not in use."""
        self.connection.execute("DELETE FROM heads WHERE name = ?", (name,))

    def use_heads(self, hash_: str | None, project: Projection | None) -> None:
        """Give every item its vector by other heads, None: by the model's own. The segments go: build them anew.

        One transaction: whoever reads sees all the old vectors or all the new ones. The model's own are never touched.
        """
        for table in ("segments", "moments", "lost_vectors", "projected"):
            self.connection.execute(f"DELETE FROM {table}")
        self.connection.execute("DELETE FROM settings WHERE key = 'heads'")
        if hash_ is None or project is None:
            self.project = None
            return
        from concurrent.futures import ThreadPoolExecutor  # here: a search has no use for these

        from threadpoolctl import threadpool_limits

        for kind in KINDS:
            self._check_features(kind)
        self.set("heads", hash_)
        self.project = project
        # Others project blocks while this thread writes those before and reads on. Each has a core of its own: threads
        # within a block wait for one another, and for those of the next block.
        with threadpool_limits(1), ThreadPoolExecutor(PROJECTING_THREADS) as others:
            waiting: deque[tuple[Sequence[int], Future[list[bytes]]]] = deque()
            for ids, kinds, vectors, features in self.raw_blocks(PROJECTED_AT_ONCE):
                waiting.append((ids, others.submit(_projected, project, kinds, vectors, features)))
                if len(waiting) > PROJECTING_THREADS:
                    self._write_projected(*waiting.popleft())
            for block in waiting:
                self._write_projected(*block)

    def _write_projected(self, ids: Sequence[int], rows: "Future[list[bytes]]") -> None:
        self.connection.executemany("INSERT INTO projected VALUES (?, ?)", zip(ids, rows.result(), strict=True))

    def put_feedback(self, query: str, items: Sequence[int], match: bool) -> None:
        """Keep judgements; the last word on an item counts."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?)", [(query, item, match, now()) for item in items]
        )

    def remove_feedback(self) -> int:
        """Forget all judgements. Returns how many there were."""
        return self.connection.execute("DELETE FROM feedback").rowcount

    def put_encoded(self, kind: Kind, rows: Mapping[str, tuple[FloatArray, FloatArray | None]]) -> None:
        """Keep what was encoded for training: content hash -> vector by the model's own heads, and feature."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO encoded VALUES (?, ?, ?, ?)",
            [
                (
                    kind,
                    content,
                    vector.astype(np.float16).tobytes(),
                    None if feature is None else feature.astype(np.float16).tobytes(),
                )
                for content, (vector, feature) in rows.items()
            ],
        )

    def _write_keywords(self, number: int) -> None:
        """The words by which an item is found; a caption has none of its own, its picture has them."""
        row = self.connection.execute(
            "SELECT i.caption_of, i.text, f.path FROM items i LEFT JOIN files f ON f.id = i.file_id WHERE i.id = ?",
            (number,),
        ).fetchone()
        if row is None or row[0] is not None:
            return
        captions = self.connection.execute("SELECT text FROM items WHERE caption_of = ? ORDER BY id", (number,))
        words = "\n".join(text for text in (row[1], *(caption[0] for caption in captions)) if text)
        self.connection.execute("DELETE FROM keywords WHERE rowid = ?", (number,))
        self.connection.execute(
            "INSERT INTO keywords (rowid, words, place) VALUES (?, ?, ?)", (number, words, place_words(row[2] or ""))
        )

    def _keep_moments(self) -> None:
        """Take vectors into the moments of their kind, and lost ones off, where many wait."""
        least = worth(self.dim())
        for kind in KINDS if least and self.version > 3 else ():
            through = self.moments_through(kind)
            waiting = self.last_vector(kind) - through >= least and self._count_after(kind, through) >= least
            if waiting or self.count_lost_vectors(kind) >= least:
                self.put_moments(kind)

    def _count_after(self, kind: Kind, after_id: int) -> int:
        asked = "SELECT count(*) FROM vectors WHERE kind = ? AND id > ?"
        return int(self.connection.execute(asked, (kind, after_id)).fetchone()[0])

    def put_moments(self, kind: Kind) -> None:
        """Bring the moments of a kind up to its vectors; of few there are none."""
        dim, moments = self.dim(), self.moments(kind)
        if moments is None or self.count_lost_vectors(kind) > moments.count / 2:
            moments = Moments.none(dim)
        else:
            for lost in self.lost_vectors(kind):
                moments = moments.minus(lost)
        for ids, vectors in self.vectors_after(kind, moments.through_id):
            moments = moments.plus(vectors, int(ids[-1]))
        self.connection.execute("DELETE FROM lost_vectors WHERE kind = ?", (kind,))
        self.connection.execute("DELETE FROM moments WHERE kind = ?", (kind,))
        if moments.count >= max(worth(dim), 1):
            row = (kind, moments.through_id, moments.count, moments.sums.tobytes(), moments.products.tobytes())
            self.connection.execute("INSERT INTO moments VALUES (?, ?, ?, ?, ?)", row)

    def put_segments(self, kind: Kind, keep: Sequence[Segment], built: Sequence[Segment], through_id: int) -> None:
        """Exchange FAISS files of a kind for others that reach up to an id; forget the dead that none of them holds."""
        kept = [segment.file for segment in keep]
        self.connection.execute(f"DELETE FROM segments WHERE kind = ? AND file NOT IN ({marks(kept)})", (kind, *kept))
        self.connection.executemany(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(s.file, kind, s.after_id, s.through_id, s.count, s.size_bytes, s.cells, s.checksum) for s in built],
        )
        rebuilt_from = max((segment.through_id for segment in keep), default=0)
        self.connection.execute(
            "DELETE FROM dead_vectors WHERE kind = ? AND id > ? AND id <= ?", (kind, rebuilt_from, through_id)
        )


def _projected(
    project: Projection, kinds: Sequence[Kind], vectors: Sequence[bytes], features: Sequence[bytes | None]
) -> list[bytes]:
    """float16 vectors by other heads, in the same order; made from what is kept, so that any time gives the same.

    Raises ModelError where some of a kind have features and others none.
    """
    made: list[bytes] = [b""] * len(kinds)
    for kind in KINDS:
        places = [place for place, each in enumerate(kinds) if each == kind]
        if not places:
            continue
        own = _rows([vectors[place] for place in places])
        shown = [feature for place in places if (feature := features[place]) is not None]
        if shown and len(shown) < len(places):
            raise ModelError(_MIXED.format(kind))
        rows = project(kind, own, _rows(shown) if shown else own)
        for place, half in zip(places, _halves(rows), strict=True):
            made[place] = half
    return made


def _halves(rows: FloatArray) -> list[bytes]:
    """float32 rows as float16, of each its bytes; by FAISS, a quarter of numpy's time (ties go up, not to even)."""
    import faiss

    codes = faiss.ScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16).compute_codes(
        np.ascontiguousarray(rows)
    )
    halves: list[bytes] = codes.view(f"V{codes.shape[1]}").ravel().tolist()
    return halves


def _rows(halves: Sequence[bytes]) -> FloatArray:
    """float16 rows as float32; by FAISS where they are many: numpy takes three times as long for the same."""
    rows = stacked(halves)
    if len(rows) < 64:
        return rows.astype(np.float32)
    import faiss

    codes = rows.view(np.uint8)  # (n, 2 * dim)
    decoded: FloatArray = faiss.ScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16).decode(codes)
    return decoded


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def place_words(path: str) -> str:
    """The words of a path's names: 'Germany 2019/redBicycle_2.jpg' also says red, bicycle and 2."""
    split = re.sub(r"(?<=[a-zß-ÿ])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", path)
    return path if split == path else f"{path} {split}"


def _facts(facts: Mapping[str, Any]) -> str | None:
    return json.dumps(dict(facts), ensure_ascii=False, allow_nan=False) if facts else None
