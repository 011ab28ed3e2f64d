"""plan -> decode -> encode -> write.

Pictures are decoded in workers, a bounded number ahead, while this thread encodes small batches; each batch is one
transaction, so that a kill at any moment loses at most the batches in flight and the next run carries on there. What
there is to do stands in planning.py: what a file's size and time say is unchanged is not opened; a file with the
content of a known one takes over its vector.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from mmsearch.planning import Captions, IngestOptions, Plan, Report, asked_sources, make_plan, still_beside
from mmsearch.readers import readers_version
from mmsearch.sources import SourceFile, passages
from mmsearch.sources.folders import is_there, lies_beside, side_car_after, time_of_change
from mmsearch.sources.texts import TEXT_BYTES_MAX, read_beginning
from mmsearch.store.records import KINDS, FileKind, FileRow, FolderRow, Kind, NewFile, NewItem, Root
from mmsearch.store.vectors import VectorIndex
from mmsearch.store.writer import Writer

T = TypeVar("T")

TRIES = 3  # runs; a decoder that breaks costs 0.3 s, one that takes too long a minute
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
            self._remember_roots(plan)
            self._carry_out(plan)
            with self._writer.transaction():
                for source in plan.there:
                    if is_there(source.path):
                        self._writer.put_root(source.path, source.options)
                    else:
                        self._writer.forget_roots_below(source.path)
                self._forget_moved_roots(plan)
                self._remember_folders(plan)
        self._report.seconds = time.monotonic() - started
        return self._report

    def _forgets(self, source: Root, asked: bool) -> bool:
        """Take a source that is gone out for good, with all that came from it, where that was insisted on."""
        if asked or not self._options.accept_missing or is_there(source.path):
            return False
        rows = list(self._writer.files_below(source.path))
        self._report.removed += sum(row.kind in ("image", "text") and row.skipped is None for row in rows)
        if not self._options.dry_run:
            with self._writer.transaction():
                self._writer.remove_files([row.id for row in rows])
                self._writer.forget_roots_below(source.path)
        return True

    def _remember_roots(self, plan: Plan) -> None:
        """Before anything is read, so that a run without a path goes on with one that was cut off."""
        known = {root.path: json.dumps(root.options) for root in self._writer.roots()}
        new = [source for source in plan.there if known.get(source.path) != json.dumps(source.options)]
        if new:
            with self._writer.transaction():
                for source in new:
                    self._writer.put_root(source.path, source.options, updated=False)

    def _forget_moved_roots(self, plan: Plan) -> None:
        """Forget sources that are not there any more and whose last files were found elsewhere."""
        for source in self._writer.roots():
            below = source.path.rstrip(os.sep) + os.sep
            moved = any(row.path == source.path or row.path.startswith(below) for row, _ in plan.moves)
            if moved and not is_there(source.path) and next(self._writer.files_below(source.path), None) is None:
                self._writer.forget_roots_below(source.path)

    def _remember_folders(self, plan: Plan) -> None:
        """Keep what the folders are known by from which there are files, and which of them are away."""
        self._writer.set_away([row.id for away in plan.away for row in away.files if not row.away], True)
        self._writer.set_away(plan.found_again, False)
        kept = tuple(away.folder for away in plan.away)
        below = tuple(folder.rstrip(os.sep) + os.sep for folder in kept)
        for folder in plan.recorded.keys() | plan.folders.keys():
            if folder in kept or folder.startswith(below):
                continue
            before, identity = plan.recorded.get(folder), plan.folders.get(folder)
            if folder in plan.holding and identity is not None:
                if before != (now := FolderRow(identity, away=False)):
                    self._writer.put_folder(folder, now)
            elif before is not None and (identity is not None or not is_there(folder)):
                self._writer.forget_folder(folder)
        for folder in kept:
            before = plan.recorded.get(folder, FolderRow(None, away=False))
            if not before.away:
                self._writer.put_folder(folder, before._replace(away=True))

    # Carrying out: each transaction leaves the index whole

    def _carry_out(self, plan: Plan) -> None:
        cars = {caption.path: caption for caption in plan.captions}
        for moves in _chunks(plan.moves, FILES_AT_ONCE):
            with self._writer.transaction():
                for row, file in moves:
                    self._writer.move_file(row, _new_file(file, row.content_hash))
                    self._move_side_cars(row.path, file.path, cars, plan)
        for copies in _chunks(plan.copies, FILES_AT_ONCE):  # before their originals go: those may be excluded now
            with self._writer.transaction():
                for row, file in copies:
                    self._writer.copy_item(row.id, self._writer.put_file(_new_file(file, row.content_hash)))
        for gone in _chunks(list(plan.gone), FILES_AT_ONCE):
            with self._writer.transaction():
                self._writer.remove_files(gone)
        if plan.tables:
            with self._writer.transaction():  # a run that is cut off before it writes their captions leaves them stale
                for table in plan.tables:
                    self._writer.put_file(replace(self._table_file(table), modified_ns=None))
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

    def _move_side_cars(self, before: str, now: str, cars: Mapping[str, SourceFile], plan: Plan) -> None:
        """The captions beside a picture that moved: they come along with their file, or stay behind with it."""
        picture = self._writer.item_of_file(now)
        for row in self._writer.side_cars_of(picture) if picture is not None else ():
            moved = cars.get(side_car_after(row.path, before, now))
            if lies_beside(row.path, now):
                continue
            if moved is not None and not os.path.lexists(row.path):
                self._writer.move_file(row, _new_file(moved, row.content_hash))
                plan.gone.pop(row.id, None)
            else:
                captions = self._writer.captions_from(row.id)
                self._writer.remove_items([caption for (owner, _), caption in captions.items() if owner == picture])

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
            if path not in new and path not in plan.stale and not any(car.caption_of in new for car in cars):
                continue
            read = _text_of(path)
            if isinstance(read, Skip):
                self._skip(cars[0], read, counted=False)
                continue
            text, content, is_whole = " ".join(read[0].split()), read[1], read[2]
            if not is_whole:
                self._skip(cars[0], Skip(path, f"is larger than {TEXT_BYTES_MAX >> 20} MB"), counted=False)
                continue
            known = self._writer.file(path)
            pictures = dict.fromkeys(car.caption_of for car in cars if car.caption_of is not None)
            pictures |= dict.fromkeys(still_beside(self._writer, known).values() if known is not None else ())
            captions = {picture: [text] for picture in pictures if text}
            self._write_captions(_new_file(cars[0], content), captions)

    def _write_captions(self, file: NewFile, captions: Captions) -> None:
        """Make a file's captions these: new ones are encoded, those that went taken out, the rest is not touched."""
        before = self._writer.file(file.path)
        left = self._writer.captions_from(before.id) if before is not None and before.kind == file.kind else {}
        wanted: list[tuple[int, str]] = []
        for path, texts in captions.items():
            picture = self._writer.item_of_file(path)
            if picture is not None:
                wanted += [(picture, text) for text in dict.fromkeys(texts) if left.pop((picture, text), None) is None]
        parts = list(_chunks(wanted, TEXTS_AT_ONCE * 4)) or [[]]
        for number, part in enumerate(parts, 1):
            embedded = embed_texts(self._load_encoder(), [text for _, text in part]) if part else []
            items = [
                NewItem("text", *row, caption_of=picture, text=text)
                for (picture, text), row in zip(part, embedded, strict=True)
                if row.usable
            ]
            with self._writer.transaction():
                # Without its time until all is written: a run that is cut off leaves a file that is read again
                file_id = self._writer.put_file(file if number == len(parts) else replace(file, modified_ns=None))
                if number == 1 and before is not None and before.kind != file.kind:
                    self._writer.remove_items_of(file_id)  # a text until the picture came to lie beside it
                self._writer.put_items(items, file_id)
                if number == len(parts):
                    self._writer.remove_items(list(left.values()))
            if lost := len(part) - len(items):
                self._report.skipped.append(Skip(file.path, f"{NO_VECTOR} {lost} of its captions"))
            self._report.captions += len(items)
            self._tell()

    def _table_file(self, table: str) -> NewFile:
        try:
            facts = os.stat(table)
        except OSError:  # gone since it was read
            return NewFile(table, "captions", 0, None)
        return NewFile(table, "captions", facts.st_size, time_of_change(facts))

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
        """Keep the reason with the file, so that it is shown later.

        Where it lies in the file, that is not tried again until it changes or another version may read it. A reason of
        the machine's may be gone in the next run. What breaks its decoder is tried in TRIES runs.
        """
        self._report.skipped.append(skip)
        if counted and file.path in self._known:
            self._report.changed -= 1
        elif counted:
            self._report.added -= 1
        row = self._writer.file(file.path)
        tries = (0 if row is None else row.tries) + (skip.cause == "decoder")
        with self._writer.transaction():
            if skip.cause == "file" or tries >= TRIES:
                reader = readers_version()
                new = replace(_new_file(file, None, skip.reason), reader=reader, tries=tries)
                self._writer.remove_items_of(self._writer.put_file(new))
            elif row is None or row.skipped is not None:
                new = NewFile(file.path, file.kind, file.size_bytes, None, skipped=skip.reason, tries=tries)
                self._writer.put_file(new)
            else:
                self._writer.count_try(row.id, tries)
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
        return Skip(path, str(error), "machine" if isinstance(error.__cause__, OSError) else "file")
    except OSError as error:
        return Skip(path, (error.strerror or str(error)).lower(), "machine")


def _new_file(file: SourceFile, content: str | None, skipped: str | None = None) -> NewFile:
    kind: FileKind = file.kind
    return NewFile(file.path, kind, file.size_bytes, file.modified_ns, content, skipped)


def _chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
