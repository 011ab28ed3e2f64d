"""plan -> decode -> encode -> write.

Pictures are decoded in workers, a bounded number ahead, while this thread encodes small batches; each batch is one
transaction, so that a kill at any moment loses at most the batches in flight and the next run carries on there. What
there is to do stands in planning.py: what a file's size and time say is unchanged is not opened; a file with the
content of a known one takes over its vector.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from mmsearch.decoding import Skip
from mmsearch.embedding import (
    TEXTS_AT_ONCE,
    Embedded,
    embed_files,
    embed_texts,
    fits,
)
from mmsearch.encoders.base import Encoder
from mmsearch.errors import MediaError, SourceError
from mmsearch.everyday import everyday_queries
from mmsearch.facts import Decoded, ImageFacts
from mmsearch.media import content_hash
from mmsearch.planning import Captions, IngestOptions, Plan, Report, asked_sources, make_plan
from mmsearch.sources import SourceFile, passages
from mmsearch.sources.texts import TEXT_BYTES_MAX, read_beginning
from mmsearch.store.records import KINDS, FileKind, FileRow, Kind, NewFile, NewItem, Root
from mmsearch.store.vectors import VectorIndex
from mmsearch.store.writer import Writer

T = TypeVar("T")

FILES_AT_ONCE = 256  # moved, copied or removed in one transaction
REPORT_EVERY_S = 0.1
PASSAGES_MAX = 10_000  # of a text file: some 12 MB of English, and minutes of a core
NO_VECTOR = "the model gives no finite vector for"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int  # files
    total: int  # files to read
    skipped: int


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

    def run(self, roots: Sequence[str]) -> Report:
        started = time.monotonic()
        asked = asked_sources(roots, self._options)
        sources = [source for source in asked or self._writer.roots() if not self._forgets(source, bool(asked))]
        plan = make_plan(self._writer, sources, self._options, self._report, asked=bool(asked))
        self._known = plan.known
        if not self._options.dry_run:
            self._carry_out(plan)
            with self._writer.transaction():
                for source in plan.there:
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

    # Carrying out: each transaction leaves the index whole

    def _carry_out(self, plan: Plan) -> None:
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
        for table, captions in plan.tables.items():
            self._write_captions(self._table_file(table), captions)
        for kind in KINDS:
            self._build(kind)
        self._list_left_out(plan.left_out)
        self._tell(at_once=True)

    def _read_pictures(self, files: Sequence[SourceFile]) -> None:
        if not files:
            return
        encoder = self._load_encoder()
        by_path = {file.path: file for file in files}
        # Encoded and written together: a kill loses the pictures of a second or two at most
        for batch, embedded in embed_files(
            encoder,
            by_path,
            lambda skip: self._skip(by_path[skip.path], skip),
            timeout_s=self._options.decode_timeout_s,
        ):
            self._write_pictures([(by_path[path], decoded) for path, decoded in batch], embedded)

    def _write_pictures(self, batch: Sequence[tuple[SourceFile, Decoded]], embedded: Sequence[Embedded]) -> None:
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
            text, content, is_whole = read
            encoder = self._load_encoder()
            cut = list(islice(passages(text, fits(encoder)), PASSAGES_MAX))
            different = list(dict.fromkeys(passage.text for passage in cut))  # a megabyte of dots is one passage
            embedded = dict(zip(different, embed_texts(encoder, different), strict=True))
            items = [
                NewItem("text", *embedded[passage.text], text=passage.text, line=passage.line)
                for passage in cut
                if embedded[passage.text].usable
            ]
            with self._writer.transaction():
                file_id = self._writer.put_file(_new_file(file, content))
                self._writer.remove_items_of(file_id)
                self._writer.put_items(items, file_id)
            if lost := len(cut) - len(items):
                self._report.skipped.append(Skip(file.path, f"{NO_VECTOR} {lost} of its {len(cut)} passages"))
            if cut and (not is_whole or text[cut[-1].offset + len(cut[-1].text) :].strip()):
                last = cut[-1].line + cut[-1].text.count("\n")
                most = f"{PASSAGES_MAX:,} passages and {TEXT_BYTES_MAX >> 20} MB"
                self._report.skipped.append(
                    Skip(file.path, f"is read up to line {last:,}: {most} are the most of a text")
                )
            self._advance(1)

    def _read_side_cars(self, plan: Plan) -> None:
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
            text, content, is_whole = " ".join(read[0].split()), read[1], read[2]
            if not is_whole:
                self._skip(cars[0], Skip(path, f"is larger than {TEXT_BYTES_MAX >> 20} MB"), counted=False)
                continue
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

    def _list_left_out(self, left_out: Mapping[str, str]) -> None:
        """Keep these reasons too, for `status`; where items came from the path before, they and their file stay."""
        if not left_out:
            return
        with self._writer.transaction():
            for path, reason in left_out.items():
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


def _text_of(path: str) -> tuple[str, str, bool] | Skip:
    """(text, content hash, whether that is all of it) of a text file, or why there is none."""
    try:
        content = content_hash(path)  # first: it tells what may go away from what lies in the file
        text, is_whole = read_beginning(path)
        return text, content, is_whole
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
