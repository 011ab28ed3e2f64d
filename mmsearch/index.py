"""Index: the one object that a user holds.

It is where the store, which knows nothing of encoders, and the encoders, which know nothing of the store, meet: it puts
sources in and answers queries. `opened` checks that both were made with the same model, `asking` makes queries vectors.
"""

import contextlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mmsearch import arguments, duplicates, garbage, search
from mmsearch.arguments import (
    checked,
    count,
    day,
    function,
    instance,
    mapping,
    mappings,
    near,
    number,
    one_of,
    optional,
    paths,
    seconds,
    text,
    texts,
    texts_or_none,
    truth,
    whole,
)  # fmt: skip
from mmsearch.asking import Asking
from mmsearch.duplicates import Group
from mmsearch.embedding import PICTURES_AT_ONCE, Embedded, embed_pixels, embed_texts, encodable
from mmsearch.encoders.base import Encoder, FloatArray, an_encoder
from mmsearch.encoders.bundle import INT8, Device, Precision
from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import ModelError, SourceError, UsageError, in_a_line
from mmsearch.everyday import everyday_queries
from mmsearch.facts import ImageFacts
from mmsearch.items import Item, existing, item, number_of
from mmsearch.judging import TEMPLATES, Description, Judge, Label, Match, described
from mmsearch.locations import option_for
from mmsearch.opened import Opened
from mmsearch.query import Asked, Query, each_picture, picture
from mmsearch.reranking import RERANKED, reranked
from mmsearch.search import Filters, Hit
from mmsearch.store.metadata import Store
from mmsearch.store.reader import Reader
from mmsearch.store.records import KINDS, FileRow, HeadsRow, Kind, NewItem
from mmsearch.store.soundness import says_damage
from mmsearch.store.vectors import VectorIndex
from mmsearch.store.writer import Writer

if TYPE_CHECKING:  # and imported where they are used: a search needs none of them
    from PIL import Image

    from mmsearch.ingest import Progress
    from mmsearch.map import Map
    from mmsearch.measuring import Accuracy, Evaluation
    from mmsearch.planning import IngestOptions, Report
    from mmsearch.preparing import Prepared, PrepareOptions
    from mmsearch.sources.pairs import PairColumns
    from mmsearch.train.encoder import Moment
    from mmsearch.train.residual import Epoch, HeadSettings
    from mmsearch.train.unfreeze import UnfreezeReport, UnfreezeSettings
    from mmsearch.training import HeadsReport


@dataclass(frozen=True)
class Status:
    """What an index holds."""

    folder: str
    model: str
    dim: int
    heads: str | None  # trained heads that are in use
    images: int
    passages: int
    captions: int
    size_bytes: int  # on disk
    updated_at: str | None  # UTC, ISO 8601; when a run last ended
    roots: tuple[str, ...]
    skipped: tuple[FileRow, ...]


MANY_HITS = 1_000  # from which the collector of cycles is put off
MAX_HITS = 1_000_000_000  # SQLite's numbers and FAISS's end not much higher


@says_damage
class Index:
    """Pictures and texts that can be searched; opens the index in a folder, or makes one there on the first `add`.

    Safe to use from several threads. Several processes may read while one writes. Close it, or use it in a `with`.

    folder: where the index lives. model: a name that `mmsearch models` lists, an open_clip name, a bundle's folder;
    None takes the index's own, for a new one $MMSEARCH_MODEL or "auto". encoder: an encoder of your own in place of a
    model; give the same one whenever you open the index. precision, device: as in `load_encoder`; the precision is the
    index's own once it is made. notify: gets lines worth telling a person, such as a download.

    Raises ModelMismatchError where the index was made with another model, and what is below IndexError_ in
    mmsearch.errors where it cannot be read.
    """

    @checked(
        folder=arguments.path,
        model=optional(arguments.name_or_path),
        encoder=optional(an_encoder),
        precision=one_of("auto", "fp32", "int8"),
        device=one_of("auto", "cpu", "cuda"),
        notify=function,
    )
    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        encoder: Encoder | None = None,
        precision: Precision = "auto",
        device: Device = "auto",
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = Path(folder)
        if encoder is not None and (precision, device) != ("auto", "auto"):
            raise UsageError("precision and device are of a model; an encoder of your own has its own ways.")
        self._opened = Opened(self.folder, model, encoder, precision, device, notify)
        self._asking = Asking(self._opened)

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back files and connections; the index can be opened again at any time."""
        self._asking.close()
        self._opened.close()

    @property
    def exists(self) -> bool:
        """Whether the index is on disk yet."""
        return self._opened.exists

    # Putting in and taking out

    @checked(sources=paths, options=optional(instance("mmsearch.planning", "IngestOptions")), progress=function)
    def add(
        self,
        *sources: str | os.PathLike[str],
        options: "IngestOptions | None" = None,
        progress: "Callable[[Progress], None]" = lambda progress: None,
    ) -> "Report":
        """Put folders, pictures and text files in, or bring what is in up to date: new, changed, moved and gone files.

        Without sources, everything that was ever put in is looked at again. Broken files are skipped and reported.
        Raises SourceError for a source that is not there, MissingRootError where a known one is gone or empty (nothing
        is taken out then), IndexLockedError while another process writes.
        """
        from mmsearch.planning import IngestOptions

        options = options or IngestOptions()
        options = replace(options, captions=tuple(_absolute(table) for table in options.captions))
        roots = list(dict.fromkeys(_absolute(source) for source in sources))
        if not self.exists:
            if not roots and not options.captions:
                raise UsageError(f"{self.folder} holds nothing yet. Name a folder to index.")
            for root in (*roots, *options.captions):
                if not os.path.lexists(root):
                    raise SourceError(f"{root} is not there. Check the path.")
            with tempfile.TemporaryDirectory() as empty:  # so that a mistake is found before an index and its model are
                planned = self._ingest(Store.create(Path(empty), {}), roots, replace(options, dry_run=True), progress)
            if options.dry_run:
                return planned
        return self._ingest(self._opened.made(), roots, options, progress)

    def _ingest(
        self, store: Store, roots: Sequence[str], options: "IngestOptions", progress: "Callable[[Progress], None]"
    ) -> "Report":
        from mmsearch.ingest import ingest

        with self._opened.writing(store, options.wait_s) as writer:
            return ingest(writer, VectorIndex(store), self._opened.encoder, roots, options, progress)

    @checked(ids=optional(texts), facts=optional(mappings), captions=optional(texts_or_none), wait_s=optional(seconds))
    def add_images(
        self,
        images: "Iterable[Image.Image | str | os.PathLike[str] | bytes]",
        *,
        ids: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
        captions: Sequence[str | None] | None = None,
        wait_s: float | None = None,
    ) -> list[str]:
        """Put pictures from memory in, with ids, facts and captions of your own. Returns their ids.

        An id that is there already has its picture, facts and caption replaced. ids, facts and captions are as long as
        images. Raises MediaError for a picture that cannot be decoded, before anything is written.
        """
        from mmsearch.ingest import picture_item

        embedded: list[Embedded] = []
        read: list[ImageFacts] = []
        waiting = each_picture(images)
        while some := list(islice(waiting, PICTURES_AT_ONCE)):
            decoded = self._asking.pictures.read(self._opened.encoder(), some)
            embedded += embed_pixels(self._opened.encoder(), [one.pixels for one in decoded])
            read += [one.facts for one in decoded]
        names, own = _checked(ids, facts, len(read))
        texts = [None] * len(read) if captions is None else [text and encodable(text) for text in captions]
        if len(texts) != len(read):
            raise UsageError(f"captions has {len(texts)} entries for {len(read)} images.")
        said = embed_texts(self._opened.encoder(), [text for text in texts if text])
        self._check_usable(embedded, "picture")
        self._check_usable(said, "caption")
        if not read:
            return []
        items = [
            picture_item(row, facts_of_file, name=name, own=mine)
            for row, facts_of_file, name, mine in zip(embedded, read, names, own, strict=True)
        ]
        with self._opened.writing(self._opened.made(), wait_s) as writer:
            with writer.transaction():
                _make_room(writer, names)
                numbers = writer.put_items(items, None)
                captioned = [(number, text) for number, text in zip(numbers, texts, strict=True) if text]
                words = [
                    NewItem("text", *row, caption_of=number, text=text)
                    for (number, text), row in zip(captioned, said, strict=True)
                ]
                writer.put_items(words, None)
            self._build_if_due(writer)
        return [name or f"mm-{number}" for name, number in zip(names, numbers, strict=True)]

    @checked(texts=texts, ids=optional(texts), facts=optional(mappings), wait_s=optional(seconds))
    def add_texts(
        self,
        texts: Iterable[str],
        *,
        ids: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
        wait_s: float | None = None,
    ) -> list[str]:
        """Put texts in, with ids and facts of your own. Returns their ids.

        An id that is there already has its text replaced. A text is one item; what goes beyond the text tower's length
        is found by keyword only.
        """
        given = [encodable(text) for text in texts]
        names, own = _checked(ids, facts, len(given))
        if not given:
            return []
        embedded = embed_texts(self._opened.encoder(), given)
        self._check_usable(embedded, "text")
        items = [
            NewItem("text", *row, name=name, text=text, facts=mine)
            for text, name, mine, row in zip(given, names, own, embedded, strict=True)
        ]
        with self._opened.writing(self._opened.made(), wait_s) as writer:
            with writer.transaction():
                _make_room(writer, names)
                numbers = writer.put_items(items, None)
            self._build_if_due(writer)
        return [name or f"mm-{number}" for name, number in zip(names, numbers, strict=True)]

    def _check_usable(self, embedded: Sequence[Embedded], what: str) -> None:
        for place, row in enumerate(embedded, 1):
            if not row.usable:
                raise ModelError(
                    f"'{self._opened.encoder().name}' gives no finite vector for {what} {place}. Leave it out."
                )

    def _build_if_due(self, writer: Writer) -> None:
        for kind in KINDS:
            if self._opened.vector_index.wants_building(writer, kind):
                self._build(writer, kind)

    def _build(self, writer: Writer, kind: Kind) -> None:
        self._opened.vector_index.build(writer, kind, lambda: everyday_queries(self._opened.encoder(), writer.project))

    @checked(paths=paths, ids=texts, wait_s=optional(seconds))
    def remove(self, *paths: str | os.PathLike[str], ids: Sequence[str] = (), wait_s: float | None = 0.0) -> int:
        """Take items out of the index, by path (a folder means all below it) or by id; no file on disk is touched.

        Returns how many pictures and passages went. Pictures of a folder that is put in again come back; exclude them
        there. Raises SourceError for a path or id that the index does not hold.
        """
        store = self._opened.there()
        with store.write(wait_s=wait_s) as writer, writer.transaction():
            gone = 0
            for path in paths:
                absolute = _absolute(path)
                rows = list(writer.files_below(absolute))
                if not rows and all(root.path != absolute for root in writer.roots()):
                    raise SourceError(f"The index holds nothing from {absolute}.")
                gone += writer.remove_files([row.id for row in rows])
                writer.forget_roots_below(absolute)
            numbers = [existing(writer, name) for name in dict.fromkeys(ids)]
            writer.remove_files(writer.picture_files(numbers))  # else the next run would take them for read
            writer.remove_items(numbers)
        return gone + len(numbers)

    # Asking

    @checked(
        k=count,
        kind=optional(one_of("image", "text")),
        after=optional(day),
        before=optional(day),
        near=optional(near),
        min_score=optional(number),
        where=optional(mapping),
        rerank=truth,
    )
    def search(
        self,
        query: Asked,
        *,
        k: int = 10,
        kind: Kind | None = None,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        after: str | None = None,
        before: str | None = None,
        near: tuple[float, float, float] | None = None,
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
        rerank: bool = False,
    ) -> list[Hit]:
        """The k best hits, pictures and passages, best first; fewer only where fewer pass the filters.

        query: words, "beach + ./dog.jpg - people", a path object, the bytes of a file, a PIL image, an array (height,
        width, 3) uint8, or a Query. A string may name pictures on this machine; for strings from strangers use
        Query.words. after, before: also a date. The filters are those of mmsearch.search.Filters.
        rerank: let the model's fusion encoder read the first 50 pictures together with the words, and order them.
        Raises QueryError, MediaError, UsageError.
        """
        filters = Filters(kind, _folders(under), after, before, near, min_score, where or {})
        asked = Query.of(query)
        with self._asking.asked(asked) as (reader, vector, hashes):
            named = (number for name in asked.items if (number := number_of(reader, name)) is not None)
            same = frozenset((*reader.items_with_content(hashes), *named))
            most = min(k, MAX_HITS)
            deep = max(most, RERANKED) if rerank else most
            with garbage.put_off(deep >= MANY_HITS):
                hits = search.rank(
                    reader, self._opened.vector_index, vector, asked.text, filters, k=deep, leave_out=same
                )
        return reranked(self._opened.encoder(), asked.text, hits)[:k] if rerank else hits

    @checked(k=count, min_score=optional(number), where=optional(mapping))
    def lookup(
        self,
        image: Asked,
        *,
        k: int = 10,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        min_score: float | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """Image to text: the k captions and passages that fit a picture best, best first.

        image: a path, the bytes of a file, an open file, or a PIL image. Raises MediaError.
        """
        filters = Filters(under=_folders(under), min_score=min_score, where=where or {})
        with self._asking.asked(_of_picture(image)) as (reader, vector, _):
            return search.rank_texts(reader, self._opened.vector_index, vector, filters, k=min(k, MAX_HITS))

    # Judging one picture

    @checked(text=text)
    def match(self, image: Asked, text: str) -> Match:
        """The probability that a text belongs to a picture, and who says so. Raises UsageError, MediaError."""
        return self._judge().match(image, text)

    @checked(labels=texts, text=optional(text), templates=texts)
    def classify(
        self, image: Asked, labels: Sequence[str] = (), *, text: str | None = None, templates: Sequence[str] = TEMPLATES
    ) -> list[Label]:
        """Labels with the share that the model gives each for a picture, likeliest first.

        text: what is said with the picture, judged with it. templates: how a label is said, "{}" where it stands.
        Raises UsageError, MediaError.
        """
        return self._judge().classify(image, labels, text=text, templates=templates)

    @checked(k=count)
    def describe(self, image: Asked, *, k: int = 5) -> Description:
        """What can be said of a picture, and who says so: the k nearest captions that fit, and everyday words."""
        judge = self._judge()
        shown = judge.read(image)
        captions = self.lookup(Query.of_picture(shown), k=k)
        return described(judge.fitting(shown, captions), judge.tags(shown), judge.said(shown))

    def _judge(self) -> Judge:
        """By the model of the index, under the heads in use now."""
        with self._opened.there().read() as reader:
            heads = self._opened.heads_of(reader)
        return Judge(
            lambda image: self._asking.query_vector(_of_picture(image), heads)[0],
            lambda texts: self._asking.vectors_of_texts(texts, heads, cached_apart=True),
            self._opened.encoder(),
            self._asking.pictures,
            getattr(self._opened.encoder(), "calibration", None) if heads is None else None,
        )

    @checked(id=text)
    def item(self, id: str) -> Item:
        """All that is known about an item. Raises SourceError for an id that the index does not hold."""
        with self._opened.there().read() as reader:
            return item(reader, existing(reader, id))

    def encode(self, query: Asked) -> FloatArray:
        """The vector of a query, (dim,) float32 of length 1, in the space of the index. Raises as `search` does."""
        with self._asking.asked(Query.of(query)) as (_, vector, _):
            return vector

    @checked(threshold=number, progress=function)
    def duplicates(
        self,
        *,
        threshold: float = duplicates.THRESHOLD,
        under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        progress: "Callable[[Progress], None]" = lambda progress: None,
    ) -> list[Group]:
        """Pictures that are one picture: copies to the byte, and the same resized, recompressed, recoloured or cut.

        threshold: the least likeness of pixels, from above 0 to 1, that makes two pictures one; with 1 only copies to
        the byte are given. The files of copies, and of pictures whose vectors are near, are read again: what is gone
        or has changed since it was indexed is left out, and of the several paths of one file (links, hard links) the
        others. Of pictures from memory only copies are known. progress: gets how many files were read; what it raises
        ends the work. Groups that take the most disk come first. Before you delete, later, ask `Group.as_now`. Raises
        UsageError.
        """
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold is a likeness above 0, and 1 at the most, not {threshold:g}.")
        with self._opened.there().read() as reader:
            pictures = reader.pictures(_folders(under))
            vectors = {} if threshold == 1 else reader.vectors([row.item for row in pictures])
        found = duplicates.find(pictures, vectors, threshold, progress)
        for line in found.remarks():
            self._opened.notify(line)
        return list(found.groups)

    def status(self) -> Status:
        """What the index holds, its model, its size, and every file that was skipped with the reason."""
        with self._opened.there().read() as reader:
            roots = reader.roots()
            return Status(
                folder=str(self.folder),
                model=reader.setting("model") or "",
                dim=int(reader.setting("dim") or 0),
                heads=next((row.name for row in reader.heads() if row.in_use), None),
                **reader.counts(),
                size_bytes=_size_bytes(self.folder),
                updated_at=max((root.updated_at for root in roots if root.updated_at), default=None),
                roots=tuple(root.path for root in roots),
                skipped=tuple(reader.skipped()),
            )

    @checked(progress=function)
    def map(self, *, progress: Callable[[float], None] = lambda share: None) -> "Map":
        """Every picture and passage as a point of a plane, near to what it is like; see mmsearch.map.

        Made at the first call, kept in the index's folder, and brought up to date as the index changes. progress: takes
        the share that is done; what it raises ends the work.
        """
        from mmsearch import map as maps

        with self._opened.there().read() as reader:
            return maps.bring_up_to_date(reader, progress)

    def kept_map(self) -> "Map | None":
        """The map as it was last made, at once; None where there is none yet."""
        from mmsearch import map as maps

        with self._opened.there().read() as reader:
            return maps.kept(reader)

    @property
    def texts_encoded(self) -> tuple[int, int]:
        """How many texts of queries were encoded so far, and in how many batches."""
        return self._asking.texts_encoded

    @property
    def encoder(self) -> Encoder:
        """The encoder of the index, loaded if it is not yet."""
        return self._opened.encoder()

    # Trained heads: what they are is in encoders/heads.py, how they are trained in train/

    def heads(self) -> list[HeadsRow]:
        """The heads that were trained for this index, and which are in use."""
        with self._opened.there().read() as reader:
            return reader.heads()

    @checked(
        pairs=paths,
        name=text,
        settings=optional(instance("mmsearch.train.residual", "HeadSettings")),
        columns=optional(instance("mmsearch.sources.pairs", "PairColumns")),
        use=optional(truth),
        wait_s=optional(seconds),
        tell=function,
    )
    def train_heads(
        self,
        *pairs: str | os.PathLike[str],
        name: str = "trained",
        settings: "HeadSettings | None" = None,
        columns: "PairColumns | None" = None,
        use: bool | None = None,
        wait_s: float | None = 0.0,
        tell: "Callable[[Epoch], None]" = lambda epoch: None,
    ) -> "HeadsReport":
        """Train projection heads on pairs of pictures and texts, and move the index to them where they are better.

        pairs: tables, webdataset tars, folders (mmsearch.sources.pairs); without any, the captions in the index. What
        people said by `add_feedback` is always learned from too. settings: how (mmsearch.train.residual.HeadSettings).
        use: take them into use whatever held-out pairs say, or not; None: where those are sure that they are better
        than the heads in use. Heads of the same name are replaced, but those in use only by such. Pictures that the
        index does not hold are encoded once and kept, and are no items.
        Raises TrainingError where there is nothing to learn from, SourceError, UsageError.
        """
        from mmsearch import training
        from mmsearch.sources.pairs import PairColumns, read_pairs
        from mmsearch.train.residual import HeadSettings

        if not name.strip() or name != encodable(name):
            raise UsageError("Heads need a name.")
        settings, store = settings or HeadSettings(), self._opened.there()
        with self._opened.writing(store, wait_s):
            pass  # who writes is told now, and not after the training
        given = [read_pairs(source, columns or PairColumns()) for source in pairs]
        every = chain(*(given or [training.pairs_of_index(store)]), training.pairs_of_feedback(store))
        gathered = training.gather(
            store, self._opened.encoder, every, lambda kind, rows: self._keep_encoded(kind, rows, wait_s)
        )
        with store.read() as reader:
            in_use = self._opened.heads_of(reader)
        trained, report = training.teach(store, self._opened.encoder, gathered, name, settings, tell, in_use)
        used = trained is not None and (report.used if use is None else use)
        report = replace(report, used=used)
        if trained is None or not (used or in_use is None or in_use.name != name):
            return report  # what is in use keeps its name
        with self._opened.writing(store, wait_s) as writer:
            with writer.transaction():
                writer.put_heads(name, trained.hash, trained.to_bytes(), report.to_json())
                if used:
                    self._move(writer, trained)
            self._opened.vector_index.sweep(writer)
        return report

    @checked(
        pairs=paths,
        into=arguments.path,
        blocks=whole,
        settings=optional(instance("mmsearch.train.unfreeze", "UnfreezeSettings")),
        columns=optional(instance("mmsearch.sources.pairs", "PairColumns")),
        tell=function,
    )
    def unfreeze(
        self,
        *pairs: str | os.PathLike[str],
        into: str | os.PathLike[str],
        blocks: int = 2,
        settings: "UnfreezeSettings | None" = None,
        columns: "PairColumns | None" = None,
        tell: "Callable[[Moment], None]" = lambda moment: None,
    ) -> "UnfreezeReport":
        """Trains the last blocks of the towers of this index's model on pairs; the result is a model of its own.

        into: the folder for it; the index stays as it is, and a new one is made with `Index(..., model=into)`. tell:
        gets how far it is. The settings are those of mmsearch.train.unfreeze. Raises UsageError where the model is none
        of open_clip's, SourceError, TrainingError.
        """
        from mmsearch.sources.pairs import PairColumns
        from mmsearch.train.unfreeze import UnfreezeSettings, unfreeze

        name = self._opened.made_with.model.removesuffix(INT8)
        columns, settings = columns or PairColumns(), settings or UnfreezeSettings()
        return unfreeze(name, pairs, into, blocks, settings, columns=columns, tell=tell, say=self._opened.notify)

    @checked(
        pairs=paths,
        columns=optional(instance("mmsearch.sources.pairs", "PairColumns")),
        heads=optional(text),
        against=optional(text),
    )
    def evaluate(
        self,
        *pairs: str | os.PathLike[str],
        columns: "PairColumns | None" = None,
        heads: str | None = None,
        against: str | None = None,
    ) -> "Evaluation":
        """How well texts find their pictures and pictures their texts, on pairs; without any, on the captions here.

        heads: of this index, "off" for the model's own, None for those in use. against: heads, "off", or the name of
        another model, compared on the same pairs. What the index does not hold is encoded and not kept.
        Raises UsageError, SourceError, TrainingError where no pair can be used.
        """
        from mmsearch import measuring, training
        from mmsearch.sources.pairs import PairColumns

        store, columns = self._opened.there(), columns or PairColumns()
        every = measuring.tested(pairs, columns) if pairs else training.pairs_of_index(store)
        gathered = training.gather(store, self._opened.encoder, every)
        with store.read() as reader:
            mine = self._chosen(reader, heads)
            known = against == "off" or against in [row.name for row in reader.heads()]
            theirs = self._chosen(reader, against) if against is not None and known else None
            model = reader.setting("model") or ""
        other = None
        if against is not None:
            if known:
                other = ("own heads" if theirs is None else against, gathered, theirs)
            elif not pairs:
                raise UsageError(
                    f"The index has no heads {arguments.shown(against)}; to compare with a model, name the pairs."
                )
            else:
                other = (against, measuring.of_model(against, pairs, columns, self._opened.notify), None)
        name = model if mine is None else mine.name
        return measuring.evaluation(name, gathered, mine, other)

    @checked(folder=arguments.path, heads=optional(text))
    def evaluate_classes(self, folder: str | os.PathLike[str], *, heads: str | None = None) -> "Accuracy":
        """Zero-shot accuracy on a folder with a folder for each class; heads as in `evaluate`."""
        from mmsearch import measuring

        with self._opened.there().read() as reader:
            chosen = self._chosen(reader, heads)
        return measuring.classify_folder(self._opened.encoder(), folder, self._opened.there(), chosen)

    @checked(
        pairs=paths,
        columns=optional(instance("mmsearch.sources.pairs", "PairColumns")),
        options=optional(instance("mmsearch.preparing", "PrepareOptions")),
        into=optional(arguments.path),
        wait_s=optional(seconds),
    )
    def prepare_pairs(
        self,
        *pairs: str | os.PathLike[str],
        columns: "PairColumns | None" = None,
        options: "PrepareOptions | None" = None,
        into: str | os.PathLike[str] | None = None,
        wait_s: float | None = 0.0,
    ) -> "Prepared":
        """Pairs cleaned, normalised and split (mmsearch.preparing); what is encoded for it is kept for the training.

        into: the folder for `mmsearch.preparing.write`, which gets the pictures that lie in a tar or a table at once.
        Raises SourceError, TrainingError where no pair is left.
        """
        from mmsearch import preparing
        from mmsearch.sources.pairs import PairColumns, read_pairs

        every = chain(*(read_pairs(source, columns or PairColumns()) for source in pairs))
        return preparing.prepare(
            every,
            self._opened.encoder,
            options or preparing.PrepareOptions(),
            self._opened.there(),
            lambda kind, rows: self._keep_encoded(kind, rows, wait_s),
            into,
        )

    def _chosen(self, reader: Reader, name: str | None) -> TrainedHeads | None:
        if name is None:
            return self._opened.heads_of(reader)
        return None if name == "off" else self._opened.trained(reader, _heads_named(reader, name).hash)

    def _keep_encoded(
        self, kind: Kind, rows: Mapping[str, tuple[FloatArray, FloatArray | None]], wait_s: float | None
    ) -> None:
        with self._opened.there().write(wait_s=wait_s) as writer, writer.transaction():
            writer.put_encoded(kind, rows)

    def _move(self, writer: Writer, heads: TrainedHeads | None) -> None:
        if heads is None:
            writer.use_heads(None, None)
        else:
            writer.use_heads(heads.hash, heads.project)
        for kind in KINDS:
            self._build(writer, kind)

    @checked(name=optional(text), wait_s=optional(seconds))
    def use_heads(self, name: str | None, *, wait_s: float | None = 0.0) -> None:
        """Move every item to trained heads, None: back to the model's own, to the first answers bit for bit.

        No picture is read. Whoever searches meanwhile sees the old or the new. Raises UsageError for unknown heads.
        """
        with self._opened.writing(self._opened.there(), wait_s) as writer:
            row = None if name is None else _heads_named(writer, name)
            if (writer.setting("heads") is None) if row is None else row.in_use:
                return
            with writer.transaction():
                self._move(writer, None if row is None else self._opened.trained(writer, row.hash))
            self._opened.vector_index.sweep(writer)

    @checked(name=text, wait_s=optional(seconds))
    def remove_heads(self, name: str, *, wait_s: float | None = 0.0) -> None:
        """Forget trained heads. Raises UsageError for those in use, and for unknown ones."""
        with self._opened.writing(self._opened.there(), wait_s) as writer:
            if _heads_named(writer, name).in_use:
                off = f"mmsearch heads off{option_for(self.folder)}"
                raise UsageError(f"The heads '{name}' are in use. Turn them off first: {off}")
            with writer.transaction():
                writer.remove_heads(name)

    @checked(query=text, like=texts, unlike=texts, wait_s=optional(seconds))
    def add_feedback(
        self, query: str, *, like: Sequence[str] = (), unlike: Sequence[str] = (), wait_s: float | None = 0.0
    ) -> int:
        """Keep judgements of items as answers to some words, for the next training of heads. Returns how many.

        like, unlike: ids of items that answer the words, and that do not; the last word on an item counts. No answer
        changes by this. Raises UsageError for empty words, SourceError for an id that the index does not hold.
        """
        words = " ".join(unicodedata.normalize("NFC", encodable(query)).split())
        if not words:
            raise UsageError("Feedback needs the words that were looked for.")
        if both := set(like) & set(unlike):
            raise UsageError(f"'{min(both)}' is said to fit and not to fit.")
        with self._opened.writing(self._opened.there(), wait_s) as writer:
            judged = [(match, [existing(writer, id) for id in ids]) for match, ids in ((True, like), (False, unlike))]
            with writer.transaction():
                for match, numbers in judged:
                    writer.put_feedback(words, numbers, match)
        return len(set(like)) + len(set(unlike))

    def feedback(self) -> list[tuple[str, str, bool]]:
        """What was kept: words, the id of an item, and whether it answers them."""
        with self._opened.there().read() as reader:
            kept = reader.feedback()
            items = reader.items([judgement.item for judgement in kept])
        return [(one.query, items[one.item]["id"], one.match) for one in kept]


def _of_picture(image: Asked) -> Query:
    return image if isinstance(image, Query) else Query.of_picture(picture(image))


def _heads_named(reader: Reader, name: str) -> HeadsRow:
    rows = reader.heads()
    for row in rows:
        if row.name == name:
            return row
    known = f"there are {', '.join(row.name for row in rows)}" if rows else "there are none yet"
    raise UsageError(f"The index has no heads {arguments.shown(name)}; {known}.")


def _size_bytes(folder: Path) -> int:
    """Of all files in a folder; one that a writer takes away meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _absolute(path: str | os.PathLike[str]) -> str:
    if not os.fspath(path):
        raise UsageError("A path is empty. Name a file or folder; the current one is '.'.")
    return os.path.abspath(os.fsdecode(path))


def _folders(under: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    return tuple(_absolute(folder) for folder in arguments.paths("under", under))


def _checked(
    ids: Sequence[str] | None, facts: Sequence[Mapping[str, Any]] | None, count: int
) -> tuple[Sequence[str | None], Sequence[Mapping[str, Any]]]:
    """One id and one mapping of facts for each new item. Raises UsageError."""
    chosen_ids: Sequence[str | None] = [None] * count if ids is None else list(ids)
    chosen_facts: Sequence[Mapping[str, Any]] = [{}] * count if facts is None else list(facts)
    if len(chosen_ids) != count or len(chosen_facts) != count:
        raise UsageError(
            f"There are {count} items, {len(chosen_ids)} ids and {len(chosen_facts)} mappings of facts; give one of "
            "each for an item."
        )
    for own in chosen_facts:
        try:
            json.dumps(dict(own), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"These facts cannot be kept as JSON: {in_a_line(error)}.") from error
    named = [name for name in chosen_ids if name is not None]
    if any(not isinstance(name, str) or name != encodable(name) for name in named):
        raise UsageError("An id is a string that UTF-8 can write; turn numbers into strings with str().")
    if len(set(named)) < len(named):
        raise UsageError("Two items have the same id. Give each its own.")
    if wrong := next((name for name in named if not name or name.startswith("mm-")), None):
        raise UsageError(f"'{wrong}' cannot be an id: ids that begin with mm- are given by mmsearch itself.")
    return chosen_ids, chosen_facts


def _make_room(writer: Writer, ids: Sequence[str | None]) -> None:
    """Take out the items whose ids are given anew."""
    writer.remove_items(
        [number for name in ids if name is not None and (number := writer.item_named(name)) is not None]
    )
