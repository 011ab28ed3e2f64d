"""scan -> compare with the store -> decode -> encode -> write.

Pictures are decoded in workers, a bounded number ahead, while this thread encodes small batches; each batch is one
transaction, so that a kill at any moment loses at most the batch in flight and the next run carries on there. What a
file's size and time say is unchanged is not opened; a file with the content of a known one takes over its vector.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mmsearch.decoding import DecodePool, Skip
from mmsearch.embedding import PICTURES_AT_ONCE, TEXTS_AT_ONCE, Embedded, embed_pixels, embed_texts, fits, pixels_of
from mmsearch.encoders.base import Encoder
from mmsearch.errors import MediaError, MissingRootError, SourceError
from mmsearch.everyday import everyday_queries
from mmsearch.media import Decoded, ImageFacts, content_hash
from mmsearch.sources import BadRow, ScanOptions, SourceFile, Unread, passages, read_captions, read_text, scan
from mmsearch.store.records import KINDS, FileKind, FileRow, Kind, NewFile, NewItem, Root
from mmsearch.store.vectors import VectorIndex
from mmsearch.store.writer import Writer

T = TypeVar("T")
Captions = dict[str, list[str]]  # picture -> what is said of it

FILES_AT_ONCE = 256  # moved, copied or removed in one transaction
REPORT_EVERY_S = 0.1
NO_VECTOR = "the model gives no finite vector for"


@dataclass(frozen=True)
class IngestOptions:
    """How sources are read.

    exclude: patterns as in a .gitignore. captions: tables of pictures and texts, with the columns' names where they
    are not guessed right. accept_missing: believe that a root is gone and take its items out. wait_s: how long to
    wait for another writer, None for ever. decode_timeout_s: the longest that one picture may take.
    """

    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    captions: tuple[str, ...] = ()
    path_column: str | None = None
    text_column: str | None = None
    accept_missing: bool = False
    dry_run: bool = False
    wait_s: float | None = 0.0
    decode_timeout_s: float = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int  # files
    total: int  # files to read
    skipped: int


@dataclass
class Report:
    """What a run did, or with `dry_run` would do, in files; captions in captions."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    captions: int = 0
    skipped: list[Skip] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # of what was once put in and is not there now, a sentence each
    dry_run: bool = False
    seconds: float = 0.0


@dataclass
class _Plan:
    """What the sources hold, compared with the store."""

    fresh: list[SourceFile] = field(default_factory=list)
    captions: list[SourceFile] = field(default_factory=list)
    gone: dict[int, FileRow] = field(default_factory=dict)  # by id
    moves: list[tuple[FileRow, SourceFile]] = field(default_factory=list)
    copies: list[tuple[FileRow, SourceFile]] = field(default_factory=list)
    known: dict[str, FileRow] = field(default_factory=dict)


def ingest(
    writer: Writer,
    vectors: VectorIndex,
    load_encoder: Callable[[], Encoder],
    roots: Sequence[str],
    options: IngestOptions,
    notify: Callable[[Progress], None],
) -> Report:
    """Bring an index up to date with what lies at the roots and in the tables of the options.

    Where neither names any, with all that was ever put in, read as it was then. Raises SourceError, MissingRootError,
    ModelError.
    """
    return _Run(writer, vectors, load_encoder, options, notify).run(roots)


class _Run:
    """One run over some roots: its plan, and what it has done so far."""

    def __init__(
        self,
        writer: Writer,
        vectors: VectorIndex,
        load_encoder: Callable[[], Encoder],
        options: IngestOptions,
        notify: Callable[[Progress], None],
    ) -> None:
        self._writer = writer
        self._vectors = vectors
        self._load_encoder = load_encoder
        self._options = options
        self._notify = notify
        self._report = Report(dry_run=options.dry_run)
        self._done = self._total = 0
        self._notified_at = 0.0
        self._known: dict[str, FileRow] = {}
        self._unlisted: dict[str, str] = {}  # path -> reason, of what was skipped before it became a file to read

    def run(self, roots: Sequence[str]) -> Report:
        started = time.monotonic()
        asked = [*map(self._as_folder, roots), *map(self._as_table, self._options.captions)]
        sources = [source for source in asked or self._writer.roots() if not self._forgets(source, bool(asked))]
        sources.sort(key=_is_table)  # folders first: they know more of a picture than that it is named
        tables: dict[str, Captions] = {}
        plan = _Plan()
        found: dict[str, SourceFile] = {}
        there = []
        for source in sources:
            try:
                if _is_table(source):
                    tables[source.path] = self._read_table(source)
                    self._look_up(source.path, tables[source.path], plan, found)
                else:
                    self._scan(source, plan, found)
                there.append(source)
            except SourceError as error:
                if asked:
                    raise
                advice = "" if isinstance(error, MissingRootError) else " If it is gone for good, use --accept-missing."
                self._report.missing.append(f"{error}{advice}")
        self._compare(plan, found)
        if not self._options.dry_run:
            self._carry_out(plan, tables | self._remembered_captions(plan, known=sources))
            with self._writer.transaction():
                for source in there:
                    if os.path.lexists(source.path):
                        self._writer.put_root(source.path, source.options)
                    else:
                        self._writer.forget_roots_below(source.path)
        self._report.seconds = time.monotonic() - started
        return self._report

    def _forgets(self, source: Root, asked: bool) -> bool:
        """Take a source that is gone out for good, with all that came from it, where that was insisted on."""
        if asked or not self._options.accept_missing or os.path.lexists(source.path):
            return False
        rows = list(self._writer.files_below(source.path))
        self._report.removed += sum(row.kind in ("image", "text") and row.skipped is None for row in rows)
        if not self._options.dry_run:
            with self._writer.transaction():
                self._writer.remove_files([row.id for row in rows])
                self._writer.forget_roots_below(source.path)
        return True

    def _remembered_captions(self, plan: _Plan, known: Sequence[Root]) -> dict[str, Captions]:
        """Tables that were once put in, where a picture is new: they may have captions for it. Known ones are read."""
        tables: dict[str, Captions] = {}
        if any(file.kind == "image" for file in (*plan.fresh, *(file for _, file in plan.copies))):
            paths = {source.path for source in known}
            for source in self._writer.roots():
                if _is_table(source) and source.path not in paths:
                    with contextlib.suppress(SourceError):  # gone since; its captions stay as they are
                        tables[source.path] = self._read_table(source)
        return tables

    def _as_folder(self, path: str) -> Root:
        return Root(path, {"exclude": self._options.exclude, "follow_links": self._options.follow_links}, None)

    def _as_table(self, path: str) -> Root:
        columns = {"path_column": self._options.path_column, "text_column": self._options.text_column}
        return Root(path, {"captions": True, **columns}, None)

    # Planning: nothing is written here

    def _compare(self, plan: _Plan, found: Mapping[str, SourceFile]) -> None:
        """Put into the plan what was found and is new or changed, and count."""
        report = self._report
        plan.gone = {number: row for number, row in plan.gone.items() if row.path not in found}
        fresh = []
        for file in found.values():
            row = plan.known.get(file.path)
            if row is None or (row.size_bytes, row.modified_ns, row.kind) != (
                file.size_bytes,
                file.modified_ns,
                file.kind,
            ):
                fresh.append(file)
            elif row.skipped is not None:
                report.skipped.append(Skip(row.path, row.skipped))
            else:
                report.unchanged += file.kind != "caption"
        self._recognise(fresh, plan)
        self._known = plan.known
        to_read = [file for file in plan.fresh if file.kind != "caption"]  # captions are counted as they are written
        report.changed = sum(file.path in plan.known for file in to_read)
        report.added = len(plan.copies) + len(to_read) - report.changed
        report.moved = len(plan.moves)
        report.removed += sum(row.kind != "caption" and row.skipped is None for row in plan.gone.values())

    def _scan(self, source: Root, plan: _Plan, found: dict[str, SourceFile]) -> None:
        """Add to the plan what lies at a root, and what the store knows there that is gone."""
        root, options = source.path, ScanOptions(tuple(source.options["exclude"]), source.options["follow_links"])
        known = {row.path: row for row in self._writer.files_below(root)}
        here: dict[str, SourceFile] = {}
        unread: list[Unread] = []
        if os.path.lexists(root):
            for entry in scan(root, options):
                if isinstance(entry, Unread):
                    unread.append(entry)
                    self._leave_out(Skip(entry.path, entry.reason))
                    continue
                here[entry.path] = entry
                if entry.kind == "caption":
                    plan.captions.append(entry)
        elif not known:
            raise SourceError(f"{root} is not there. Check the path.")
        items = sum(row.kind != "captions" and row.skipped is None for row in known.values())
        if items and not here and not unread and _is_empty(root) and not self._options.accept_missing:
            state = "is empty" if os.path.lexists(root) else "is not there"
            raise MissingRootError(
                f"{root} {state}, but the index holds {items} files from it, and they were kept. Plug the drive in, "
                "or use --accept-missing to take them out."
            )
        blind = tuple(entry.path.rstrip(os.sep) + os.sep if entry.is_folder else entry.path for entry in unread)
        nested = tuple(  # put in by themselves, they are not under this one's rules
            other.path + os.sep for other in self._writer.roots() if other.path.startswith(root.rstrip(os.sep) + os.sep)
        )
        plan.gone |= {
            row.id: row
            for row in known.values()
            if row.path not in here
            and row.kind != "captions"
            and not row.path.startswith(blind)
            and not (row.path.startswith(nested) and os.path.lexists(row.path))
        }
        plan.known.update(known)
        found.update(here)

    def _read_table(self, source: Root) -> Captions:
        """A caption table; bad rows are reported."""
        pictures: Captions = {}
        columns = {name: source.options[name] for name in ("path_column", "text_column")}
        for row in read_captions(source.path, **columns):
            if isinstance(row, BadRow):
                self._leave_out(Skip(source.path, f"row {row.row}: {row.reason}"))
            else:
                pictures.setdefault(row.path, []).append(row.text)
        return pictures

    def _look_up(self, table: str, pictures: Collection[str], plan: _Plan, found: dict[str, SourceFile]) -> None:
        """Add the pictures that a table names to the plan."""
        missing = []
        for path in pictures:
            if path in found:
                continue
            row = self._writer.file(path)
            if row is not None:
                plan.known[path] = row
            try:
                facts = os.stat(path)
                found[path] = SourceFile(path, "image", facts.st_size, facts.st_mtime_ns)
            except OSError:
                missing.append((path, row))
        if missing and len(missing) == len(pictures) and not self._options.accept_missing:
            raise MissingRootError(
                f"None of the {len(pictures)} pictures that {table} names is there. Plug the drive in, correct the "
                "paths, or use --accept-missing to go on without them."
            )
        for path, row in missing:
            self._leave_out(Skip(path, f"is named in {os.path.basename(table)}, but not there"))
            if row is not None:
                plan.gone[row.id] = row

    def _recognise(self, fresh: list[SourceFile], plan: _Plan) -> None:
        """Among new files, find those whose content the store knows: moved where the old path is gone, else copied."""
        taken: set[int] = set()
        for file in fresh:
            twin = self._twin(file, taken) if file.path not in plan.known and file.kind != "caption" else None
            if twin is None:
                plan.fresh.append(file)
            elif os.path.lexists(twin.path):
                plan.copies.append((twin, file))
            else:
                plan.moves.append((twin, file))
                taken.add(twin.id)
                plan.gone.pop(twin.id, None)

    def _twin(self, file: SourceFile, taken: set[int]) -> FileRow | None:
        rows = [row for row in self._writer.files_of_size(file.size_bytes, file.kind) if row.id not in taken]
        if not rows:
            return None
        try:
            content = content_hash(file.path)
        except (OSError, MediaError):
            return None  # reading it will say why
        same = [row for row in rows if row.content_hash == content]
        left = [row for row in same if not os.path.lexists(row.path)]
        return next(iter(left or (same if file.kind == "image" else [])), None)

    # Carrying out: each transaction leaves the index whole

    def _carry_out(self, plan: _Plan, tables: Mapping[str, Captions]) -> None:
        for moves in _chunks(plan.moves, FILES_AT_ONCE):
            with self._writer.transaction():
                for row, file in moves:
                    self._writer.move_file(row, _new_file(file, row.content_hash))
        for copies in _chunks(plan.copies, FILES_AT_ONCE):  # before their originals go: those may be excluded now
            with self._writer.transaction():
                for row, file in copies:
                    self._writer.copy_item(row.id, self._writer.put_file(_new_file(file, row.content_hash)))
        for gone in _chunks(list(plan.gone), FILES_AT_ONCE):
            with self._writer.transaction():
                self._writer.remove_files(gone)
        pictures = [file for file in plan.fresh if file.kind == "image"]
        texts = [file for file in plan.fresh if file.kind == "text"]
        self._total = len(pictures) + len(texts)
        self._tell(at_once=True)
        self._read_pictures(pictures)
        self._read_texts(texts)
        self._read_side_cars(plan)
        for table, captions in tables.items():
            self._write_captions(self._table_file(table), captions)
        for kind in KINDS:
            self._build(kind)
        self._list_left_out()
        self._tell(at_once=True)

    def _read_pictures(self, files: Sequence[SourceFile]) -> None:
        if not files:
            return
        encoder = self._load_encoder()
        by_path = {file.path: file for file in files}
        batch: list[tuple[SourceFile, Decoded]] = []  # encoded and written together: a kill loses at most these
        with DecodePool(pixels_of(encoder), timeout_s=self._options.decode_timeout_s) as pool:
            for path, decoded in pool.decode(by_path):
                if isinstance(decoded, Skip):
                    self._skip(by_path[path], decoded)
                else:
                    batch.append((by_path[path], decoded))
                if len(batch) == PICTURES_AT_ONCE:
                    self._write_pictures(encoder, batch)
                    batch = []
            if batch:
                self._write_pictures(encoder, batch)

    def _write_pictures(self, encoder: Encoder, batch: Sequence[tuple[SourceFile, Decoded]]) -> None:
        embedded = embed_pixels(encoder, [decoded.pixels for _, decoded in batch])
        read = list(zip(batch, embedded, strict=True))
        with self._writer.transaction():
            for (file, decoded), row in read:
                if row.usable:
                    self._put_picture(file, decoded.facts.content_hash, picture_item(row, decoded.facts, own={}))
        self._advance(sum(row.usable for row in embedded))
        for (file, _), row in read:
            if not row.usable:
                self._skip(file, Skip(file.path, f"{NO_VECTOR} it"))
        if self._vectors.wants_building(self._writer, "image"):
            self._build("image")

    def _build(self, kind: Kind) -> None:
        self._vectors.build(self._writer, kind, lambda: everyday_queries(self._load_encoder(), self._writer.project))

    def _put_picture(self, file: SourceFile, content: str, item: NewItem) -> None:
        """Write a picture with its file; one that was there before keeps its item, and so its captions."""
        known = self._writer.item_of_file(file.path)
        file_id = self._writer.put_file(_new_file(file, content))
        if known is None:
            self._writer.remove_items_of(file_id)
            self._writer.put_items([item], file_id)
        else:
            self._writer.replace_item(known, item)

    def _read_texts(self, files: Sequence[SourceFile]) -> None:
        for file in files:
            read = _text_of(file.path)
            if isinstance(read, Skip):
                self._skip(file, read)
                continue
            text, content = read
            encoder = self._load_encoder()
            cut = list(passages(text, fits(encoder)))
            embedded = embed_texts(encoder, [passage.text for passage in cut])
            items = [
                NewItem("text", *row, text=passage.text, line=passage.line)
                for passage, row in zip(cut, embedded, strict=True)
                if row.usable
            ]
            with self._writer.transaction():
                file_id = self._writer.put_file(_new_file(file, content))
                self._writer.remove_items_of(file_id)
                self._writer.put_items(items, file_id)
            if lost := len(cut) - len(items):
                self._report.skipped.append(Skip(file.path, f"{NO_VECTOR} {lost} of its {len(cut)} passages"))
            self._advance(1)

    def _read_side_cars(self, plan: _Plan) -> None:
        """Captions beside their pictures: read where the file, or the picture's item, is new."""
        new = {file.path for file in (*plan.fresh, *(file for _, file in (*plan.copies, *plan.moves)))}
        owners: dict[str, list[SourceFile]] = {}
        for caption in plan.captions:
            owners.setdefault(caption.path, []).append(caption)
        for path, cars in owners.items():
            if path not in new and not any(car.caption_of in new for car in cars):
                continue
            read = _text_of(path)
            if isinstance(read, Skip):
                self._skip(cars[0], read, counted=False)
                continue
            text, content = " ".join(read[0].split()), read[1]
            captions = {car.caption_of: [text] for car in cars if text and car.caption_of is not None}
            self._write_captions(_new_file(cars[0], content), captions)

    def _write_captions(self, file: NewFile, captions: Captions) -> None:
        """Make a file's captions these: new ones are encoded, those that went taken out, the rest is not touched."""
        before = self._writer.file(file.path)
        with self._writer.transaction():
            file_id = self._writer.put_file(file)
            if before is not None and before.kind != file.kind:  # a text until the picture came to lie beside it
                self._writer.remove_items_of(file_id)
        left = self._writer.captions_from(file_id)
        wanted: list[tuple[int, str]] = []
        for path, texts in captions.items():
            picture = self._writer.item_of_file(path)
            if picture is not None:
                wanted += [(picture, text) for text in dict.fromkeys(texts) if left.pop((picture, text), None) is None]
        for part in _chunks(wanted, TEXTS_AT_ONCE * 4):
            embedded = embed_texts(self._load_encoder(), [text for _, text in part])
            items = [
                NewItem("text", *row, caption_of=picture, text=text)
                for (picture, text), row in zip(part, embedded, strict=True)
                if row.usable
            ]
            with self._writer.transaction():
                self._writer.put_items(items, file_id)
            if lost := len(part) - len(items):
                self._report.skipped.append(Skip(file.path, f"{NO_VECTOR} {lost} of its captions"))
            self._report.captions += len(items)
            self._tell()
        if left:
            with self._writer.transaction():
                self._writer.remove_items(list(left.values()))

    def _table_file(self, table: str) -> NewFile:
        facts = os.stat(table)
        return NewFile(table, "captions", facts.st_size, facts.st_mtime_ns)

    def _leave_out(self, skip: Skip) -> None:
        """Report what was skipped before it became a file to read; of a table, status shows the first row."""
        self._report.skipped.append(skip)
        self._unlisted.setdefault(skip.path, skip.reason)

    def _list_left_out(self) -> None:
        """Keep these reasons too, for `status`; where items came from the path before, they and their file stay."""
        if not self._unlisted:
            return
        with self._writer.transaction():
            for path, reason in self._unlisted.items():
                row = self._writer.file(path)
                if row is None or row.skipped is not None or row.kind == "captions":
                    kind: FileKind = "image" if row is None else row.kind
                    size_bytes, modified_ns = (0, None) if row is None else (row.size_bytes, row.modified_ns)
                    self._writer.put_file(NewFile(path, kind, size_bytes, modified_ns, skipped=reason))

    def _skip(self, file: SourceFile, skip: Skip, *, counted: bool = True) -> None:
        """Keep the reason with the file, so that it is shown later and the file is not tried again until it changes."""
        self._report.skipped.append(skip)
        if counted and file.path in self._known:
            self._report.changed -= 1
        elif counted:
            self._report.added -= 1
        row = self._writer.file(file.path)
        with self._writer.transaction():
            if not skip.transient:
                self._writer.remove_items_of(self._writer.put_file(_new_file(file, None, skip.reason)))
            elif row is None or row.skipped is not None:
                self._writer.put_file(NewFile(file.path, file.kind, file.size_bytes, None, skipped=skip.reason))
        if counted:
            self._advance(1)

    def _advance(self, files: int) -> None:
        self._done += files
        self._tell()

    def _tell(self, *, at_once: bool = False) -> None:
        moment = time.monotonic()
        if at_once or moment - self._notified_at > REPORT_EVERY_S:
            self._notified_at = moment
            self._notify(Progress(self._done, self._total, len(self._report.skipped)))


def picture_item(embedded: Embedded, facts: ImageFacts, *, name: str | None = None, own: Mapping[str, Any]) -> NewItem:
    """A picture with what its file says of it, to be written; own: the user's facts."""
    return NewItem(
        "image",
        *embedded,
        name=name,
        width=facts.width,
        height=facts.height,
        format=facts.format,
        taken_at=facts.taken_at,
        camera=facts.camera,
        latitude_deg=facts.latitude_deg,
        longitude_deg=facts.longitude_deg,
        content_hash=facts.content_hash,
        facts=own,
    )


def _is_table(source: Root) -> bool:
    return "captions" in source.options


def _is_empty(root: str) -> bool:
    """Whether a root is gone, or a folder with nothing to see in it, as a mount point without its drive."""
    try:
        return all(name.startswith(".") for name in os.listdir(root))
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _text_of(path: str) -> tuple[str, str] | Skip:
    """(text, content hash) of a text file, or why there is none."""
    try:
        content = content_hash(path)  # first: it tells what may go away from what lies in the file
        return read_text(path), content
    except (MediaError, SourceError) as error:
        return Skip(path, str(error))
    except OSError as error:
        return Skip(path, (error.strerror or str(error)).lower(), transient=True)


def _new_file(file: SourceFile, content: str | None, skipped: str | None = None) -> NewFile:
    kind: FileKind = file.kind
    return NewFile(file.path, kind, file.size_bytes, file.modified_ns, content, skipped)


def _chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
