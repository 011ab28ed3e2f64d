"""Vectors of an index, ranked by FAISS.

The SQLite store is the truth; everything here is derived from it and may be deleted. Vectors lie in segments: FAISS
files that are opened in milliseconds at any size. Up to CELLS_FROM vectors every
row is read, in half precision, and the answer is exact; beyond, one segment of cells (cells.py) holds all but the
newest, gives a short list, and the store's own vectors decide. A segment of rows is read as a whole and checked (its
CRC-32 is in the store) before FAISS sees it; cells, which may be larger than the memory, are mapped into it.

Vectors newer than the last segment are searched exactly beside it and dead ones are left out, so that an answer never
depends on when the segments were last built. A segment that is missing or damaged is passed over in the same way: its
vectors are read from the store until a writer builds it again.
"""

import contextlib
import os
import sys
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.nearest import Neighbours
from mmsearch.store import queries
from mmsearch.store.cells import NEIGHBOURS, Cells, DamageError, Settings, choose, training_rows, with_growth
from mmsearch.store.failures import disk_failures
from mmsearch.store.files import make_folder, open_plain
from mmsearch.store.halves import floats
from mmsearch.store.metadata import Store
from mmsearch.store.moments import Moments, Scores
from mmsearch.store.queries import QueryCache
from mmsearch.store.reader import Reader
from mmsearch.store.records import KINDS, Block, Condition, FloatArray, IntArray, Kind, Segment
from mmsearch.store.rows import READS_AT_A_PLACE, SUFFIX, Rows, Told, write_rows
from mmsearch.store.ties import best_first
from mmsearch.store.writer import Writer

if TYPE_CHECKING:
    import faiss

CELLS_FROM = 50_000  # vectors; below, reading all takes under 3 ms (tests/benchmarks/crossover.py), and is exact
SMALL = 5_000  # vectors that are sooner read from the store than FAISS is imported
TAIL = 20_000  # vectors beside cells, all of which are read, before the cells take them in
TRAIN_AGAIN = 2.0  # times as many rows as the centres were placed for
SEGMENT_SIZE = 200_000  # vectors; bounds the memory that building takes to some 200 MB at 512 dimensions
PENDING_RATIO = 1.0  # build anew once as many wait beside the segments as are in them: each is written O(log n) times
PENDING_MIN = 2_000  # vectors; never for fewer while a run goes on, whose end builds whatever waits
DEAD_RATIO = 0.2  # of a full segment, from which on it is built again without them
TIES = 16  # candidates beyond k that are scored anew, since a tie at the end may be among them
MOST_TIED = 2_000  # vectors that tie with the last hit, from which on it is left to chance which are hits
LOOKS = 16  # vectors, by which a file is compared with the store
DAMAGE = 1e-3  # between a segment's score and the store's; half-precision rows differ by less than 1e-6
CODE_DAMAGE = 0.25  # of a row's length, by which few codes of sound cells are off
SCORED_AT_ONCE = 500  # vectors; so many stay in a processor's cache
SAMPLE = 512  # vectors; tells what share passes a filter
QUERIES = 200  # of each kind, with which cells are measured
FEW = 1_000  # allowed vectors that are read from the store rather than looked for
# To find all items that pass a filter costs about 1.5 us for each; to ask of a candidate whether it does, 3
FIND_COST, CHECK_COST = 1.5, 3.0
FILTERS_KEPT = 8  # what passes them, until the index changes
FOLDER = "vectors"

TextQueries: TypeAlias = Callable[[], FloatArray]  # (n, dim), drawn as the texts of queries lie


@dataclass(frozen=True)
class _Opened:
    """What is held in memory of one kind, as of one revision: mapped segments, and blocks of vectors beside them."""

    revision: int
    segments: tuple[Segment, ...]
    files: tuple["faiss.Index", ...]  # of which every row is read
    cells: Cells | None
    settings: Settings | None  # of the cells
    beside: tuple[Block, ...]
    read_through: int  # the highest id that was read from the store
    dead: IntArray
    heads: str | None  # that the vectors are made by
    rows: Rows | None  # from which a short list is scored

    @property
    def count(self) -> int:
        """Of vectors, dead ones included."""
        return sum(segment.count for segment in self.segments) + sum(len(ids) for ids, _ in self.beside)


@dataclass(frozen=True)
class _Usual:
    """From what the usual scores of a kind are told: moments, and vectors to be scored beside them or taken off."""

    opened: _Opened
    moments: Moments | None
    beside: tuple[FloatArray, ...]
    lost: tuple[FloatArray, ...]


class VectorIndex:
    """Ranks the vectors of a store; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._folder = store.folder / FOLDER
        self._held: dict[Kind, _Opened] = {}
        self._samples: dict[Kind, tuple[int, Block]] = {}  # with the revision that they are of
        self._usual: dict[Kind, _Usual] = {}
        self._filters: OrderedDict[tuple[Kind, Condition, int], IntArray] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self, reader: Reader, kind: Kind, query: FloatArray, k: int, condition: Condition | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The k nearest vectors of a kind: (ids (n,) int64, cosines (n,) float32), best first; n <= k.

        Ties are in the order of `Reader.tie_keys`, whatever ids the vectors have. query: (dim,) float32 of length 1.
        condition: what their hits have to be; fewer than k are found only where fewer pass. The cosines are the store's
        own; among so many vectors that cells hold them, a near one may be missed (RECALL in cells.py).
        """
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        deep, opened = k, self._refresh(reader, kind)
        while True:
            try:
                found = self._ranked(reader, opened, kind, query, deep, condition)
            except DamageError:
                found = None
            if found is None:
                opened = self._hold(kind, _opened(reader, kind, opened.segments, without_files=True))
                continue
            ids, scores = found
            if len(ids) <= deep or deep - k > MOST_TIED or scores.min() < -np.partition(-scores, k - 1)[k - 1]:
                break
            deep *= 4  # all further candidates tie with the last hit, and there may be more of them

        def keys(tied: Sequence[int]) -> dict[int, tuple[Any, ...]]:
            owners = reader.owners(kind, tied)
            known = reader.tie_keys([item for item, _ in owners.values()])
            return {vector: known[owners[vector][0]] for vector in tied}

        best = best_first(ids, scores, keys)[:k]
        return ids[best], scores[best]

    def usual_scores(self, reader: Reader, kind: Kind, query: FloatArray) -> tuple[float, float]:
        """Mean and standard deviation of a query's cosines with all vectors of a kind.

        They are exact, and the same in whatever order the vectors came. Only of an index that was made before moments
        were kept, and not written to since, a sample tells them.
        """
        usual = self._usual_of(reader, kind)
        if usual is None:
            _, sample = self._sample(reader, kind)
            return Scores.of(cosines(sample, query)).mean_and_deviation
        scores = Scores(0, 0.0, 0.0) if usual.moments is None else usual.moments.of_scores(query)
        for vectors in usual.beside:
            scores += Scores.of(cosines(vectors, query))
        for vectors in usual.lost:
            scores -= Scores.of(cosines(vectors, query))
        return scores.mean_and_deviation

    def _usual_of(self, reader: Reader, kind: Kind) -> "_Usual | None":
        """None where vectors have no moments that lie in files alone."""
        opened = self._refresh(reader, kind)
        held = self._usual.get(kind)
        if held is not None and held.opened is opened and opened.revision == reader.revision():
            return held
        moments = reader.moments(kind)
        through = 0 if moments is None else moments.through_id
        if (opened.files or opened.cells) and any(segment.through_id > through for segment in opened.segments):
            return None
        lost = () if moments is None else tuple(reader.lost_vectors(kind))
        if opened.revision > reader.revision():  # another thread has read on
            beside = tuple(vectors for _, vectors in reader.vectors_after(kind, through))
            return _Usual(opened, moments, beside, lost)
        beside = tuple(vectors[_alive(opened, ids, through)] for ids, vectors in opened.beside)
        usual = self._usual[kind] = _Usual(opened, moments, beside, lost)
        return usual

    def _sample(self, reader: Reader, kind: Kind) -> Block:
        revision = reader.revision()
        held = self._samples.get(kind)
        if held is None or held[0] != revision:
            held = self._samples[kind] = (revision, reader.sample_of_vectors(kind, SAMPLE))
        return held[1]

    def _ranked(
        self, reader: Reader, opened: _Opened, kind: Kind, query: FloatArray, k: int, condition: Condition | None
    ) -> tuple[IntArray, FloatArray] | None:
        """The k best and what ties with them, in no order; None where a segment proves damaged.

        A filter that lets much pass is asked of the best candidates; for one that lets little pass, all that pass are
        found, and remembered until the index changes.
        """
        if condition is None or not opened.count:
            return self._candidates(reader, opened, query, k, None)
        key = (kind, condition, reader.revision())
        allowed = self._filters.get(key)
        if allowed is None:
            ids, _ = self._sample(reader, kind)
            share = len(reader.passing(ids.tolist(), condition)[0]) / max(1, len(ids))
            if share and FIND_COST * share * opened.count > CHECK_COST * (k + TIES) / share:
                checked = self._checked(reader, opened, query, k, condition, share)
                if checked is not None:
                    return checked
            allowed = self._filters[key] = reader.allowed_vectors(kind, condition)
            while len(self._filters) > FILTERS_KEPT:
                with contextlib.suppress(KeyError):  # another thread took it
                    self._filters.popitem(last=False)
        if len(allowed) <= FEW:
            return _scored(reader, opened, allowed, query)
        return self._candidates(reader, opened, query, k, allowed)

    def _checked(
        self, reader: Reader, opened: _Opened, query: FloatArray, k: int, condition: Condition, share: float
    ) -> tuple[IntArray, FloatArray] | None:
        """The best of those candidates that pass a condition; None where they would have to be half of all."""
        wanted = k + TIES
        while (deep := int(1.3 * wanted / share)) < opened.count / 2:
            found = _nearest(opened, query, deep, self._dead(opened))
            asked, told = (np.concatenate(part) for part in zip(*found, strict=True))
            ids, rows = reader.passing(asked.tolist(), condition)
            if len(ids) >= wanted:
                scores = cosines(rows, query)
                off = np.abs(scores - told[_places(asked, ids)])
                return None if np.any(off >= DAMAGE) else (ids, scores)  # who looks for all that pass, sees to damage
            share /= 3
        return None

    def _candidates(
        self, reader: Reader, opened: _Opened, query: FloatArray, k: int, allowed: IntArray | None
    ) -> tuple[IntArray, FloatArray] | None:
        """The k best of all segments and of what lies beside them, scored anew; None where a segment proves damaged.

        FAISS and numpy add in different orders, so that near ties fall differently: the score of a hit is computed in
        one way, from the store's own vector. A segment that told another score, or an id that is not there, is damaged.
        """
        wanted = k + TIES
        only = _Selected(allowed, among=True) if allowed is not None else self._dead(opened)
        found = _nearest(opened, query, wanted, only)
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        ids, told = np.concatenate([ids for ids, _ in found]), np.concatenate([scores for _, scores in found])
        listed = np.isnan(told)  # by cells, which tell no score
        best = np.concatenate(
            (np.flatnonzero(listed), np.flatnonzero(~listed)[np.argsort(-told[~listed], kind="stable")[:wanted]])
        )
        ids, told = ids[best], told[best]
        stored, scores = _scored(reader, opened, ids, query)
        whole = len(stored) == len(ids)
        newer = opened.revision > reader.revision()  # another thread has read on
        if newer and not whole and len(ids) >= wanted:
            # what the snapshot does not have yet takes nobody's place
            return self._candidates(reader, opened, query, 2 * k, allowed)
        if opened.segments and not newer and not whole:
            return None
        if opened.files and np.any(np.abs(scores - told[_places(ids, stored)]) >= DAMAGE):  # NaN for what was listed
            return None
        return stored, scores

    def _dead(self, opened: _Opened) -> "_Selected | None":
        return _Selected(opened.dead, among=False) if len(opened.dead) else None

    def _refresh(self, reader: Reader, kind: Kind) -> _Opened:
        """Bring what is held in memory to the reader's snapshot, or a newer one; only what is new is read."""
        held, revision, heads = self._held.get(kind), reader.revision(), reader.setting("heads")
        if held is not None and held.heads == heads and held.revision >= revision:
            return held
        segments = tuple(reader.segments(kind))
        if held is None or held.heads != heads or held.segments != segments:
            return self._hold(kind, _opened(reader, kind, segments))
        new = tuple(reader.vectors_after(kind, held.read_through))
        through = int(new[-1][0][-1]) if new else held.read_through
        dead = reader.dead_vectors(kind)
        return self._hold(
            kind, replace(held, revision=revision, beside=_merged(held.beside + new), read_through=through, dead=dead)
        )

    def _hold(self, kind: Kind, opened: _Opened) -> _Opened:
        with self._lock:
            held = self._held.get(kind)
            if held is None or held.revision <= opened.revision:
                self._held[kind] = opened
        return opened

    def wants_building(self, reader: Reader, kind: Kind) -> bool:
        """Whether so much waits beside the segments that a long run should build in between."""
        segments = reader.segments(kind)
        waiting = reader.last_vector(kind) - max((segment.through_id for segment in segments), default=0)
        among = sum(segment.count for segment in segments)
        return waiting > max(PENDING_MIN, min(PENDING_RATIO * among, TAIL))

    def build(self, writer: Writer, kind: Kind, text_queries: TextQueries | None = None) -> None:
        """Bring the segments of a kind up to the store, and remove files that none refers to.

        Full and sound segments stay; the rest is written anew under new names and taken into use in one transaction,
        so that a reader has the old files or the new ones. text_queries: asked for where cells are to be measured.
        """
        segments, last = writer.segments(kind), writer.last_vector(kind)
        dead = writer.dead_vectors(kind)
        sound = [_is_sound(writer, kind, self._folder / segment.file, segment) for segment in segments]
        keep: list[Segment] = []
        built: list[Segment] = []
        reaches = max((segment.through_id for segment in segments), default=0)
        # Rows where there could be cells: these were tried, and could not be searched well
        tried = bool(segments) and not segments[0].cells and segments[0].after_id == 0 and reaches >= last
        if (count := writer.count_vectors(kind)) >= CELLS_FROM and not (tried and all(sound)):
            first = segments[0] if segments and segments[0].cells and sound[0] else None
            if first is not None and not _is_due(first, last, count, dead):
                keep.append(first)
            elif (cells := self._build_cells(writer, kind, first, count, last, text_queries)) is not None:
                built.append(cells)
        for segment, is_sound in zip(segments[len(keep) :], sound[len(keep) :], strict=True):
            lost = np.count_nonzero((dead > segment.after_id) & (dead <= segment.through_id))
            if built or segment.cells or segment.count < SEGMENT_SIZE or lost > DEAD_RATIO * segment.count:
                break
            if not is_sound:
                break
            keep.append(segment)
        after = max((segment.through_id for segment in (*keep, *built)), default=0)
        changed = built or last > reaches or np.any(dead > after) or len(keep) + 1 < len(segments)
        in_cells = [segment.through_id for segment in (*keep, *built) if segment.cells] if READS_AT_A_PLACE else []
        flat = not in_cells or ((rows := _open_flat(writer, kind)) is not None and rows.is_whole())
        if changed or not all(sound) or not flat:
            told = write_rows(writer, self._folder, max(in_cells), anew=not flat) if in_cells else None
            built += self._build_after(writer, kind, after)
            with writer.transaction():
                if told is not None:
                    told.keep(writer)
                writer.put_segments(kind, keep, built, last)
                if last > writer.moments_through(kind):
                    writer.put_moments(kind)
        if not writer.connection.in_transaction:  # until that ends, others read the old files
            self.sweep(writer)

    def _build_cells(
        self,
        writer: Writer,
        kind: Kind,
        first: Segment | None,
        count: int,
        last: int,
        text_queries: TextQueries | None,
    ) -> Segment | None:
        """One segment of cells with all there is; None where they cannot be searched well, and all is read instead.

        Cells that have not grown much since they were placed take in what is new; else they are placed again, and how
        they are searched is measured again.
        """
        settings = Settings.from_json(first.cells) if first is not None and first.cells else None
        if first is not None and settings is not None and count < TRAIN_AGAIN * settings.trained_on:
            cells = Cells.open(self._folder / first.file, first.checksum, mapped=False)
            dead = writer.dead_vectors(kind)
            cells.remove(dead[dead <= first.through_id])
            for ids, rows in writer.vectors_after(kind, first.through_id):
                cells.add(ids, rows)
        else:
            cells = Cells.train(writer.sample_of_vectors(kind, training_rows(count))[1], count)
            asked = _some_queries(writer, text_queries)
            true = Neighbours(np.concatenate([rows for _, rows in asked.values()]), NEIGHBOURS)
            for ids, rows in writer.vectors_after(kind, 0):
                cells.add(ids, rows)
                true.see(ids, rows)
            parts = np.split(true.but_for(np.concatenate([ids for ids, _ in asked.values()])), _ends(asked))
            settings = choose(
                cells,
                {name: (rows, part) for (name, (_, rows)), part in zip(asked.items(), parts, strict=True)},
                count,
            )
        if settings is None:
            return None
        saved, checksum = cells.save()
        return self._write(kind, 0, last, len(cells), saved, checksum, settings.to_json())

    def _build_after(self, writer: Writer, kind: Kind, after: int) -> list[Segment]:
        built: list[Segment] = []
        ids: list[IntArray] = []
        vectors: list[FloatArray] = []
        for block_ids, block in writer.vectors_after(kind, after):
            ids.append(block_ids)
            vectors.append(block)
            if sum(map(len, ids)) >= SEGMENT_SIZE:
                built.append(self._write_rows(kind, after, ids, vectors))
                after, ids, vectors = built[-1].through_id, [], []
        if ids:
            built.append(self._write_rows(kind, after, ids, vectors))
        return built

    def _write_rows(self, kind: Kind, after: int, ids: list[IntArray], vectors: list[FloatArray]) -> Segment:
        import faiss

        index: Any = faiss.IndexIDMap(  # not IDMap2, which makes a table of all ids whenever it is opened
            faiss.IndexScalarQuantizer(vectors[0].shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        )
        for block_ids, block in zip(ids, vectors, strict=True):
            index.add_with_ids(block, block_ids)
        data: npt.NDArray[np.uint8] = faiss.serialize_index(index)
        return self._write(kind, after, int(ids[-1][-1]), index.ntotal, [data.data], zlib.crc32(data.data))

    def _write(
        self,
        kind: Kind,
        after: int,
        through: int,
        count: int,
        parts: Sequence[memoryview],
        checksum: int,
        cells: str | None = None,
    ) -> Segment:
        path = self._folder / f"{kind}-{uuid.uuid4().hex[:12]}.faiss"
        with disk_failures(self._folder):
            make_folder(self._folder)
            try:
                with os.fdopen(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                path.unlink(missing_ok=True)  # on a full disk it would only be in the way
                raise
        return Segment(path.name, after, through, count, path.stat().st_size, cells, checksum)

    def sweep(self, reader: Reader) -> None:
        """Delete files that no segment refers to; one that is still mapped on Windows goes the next time."""
        if not self._folder.is_dir() or self._folder.is_symlink():
            return
        used = {segment.file for kind in KINDS for segment in reader.segments(kind)}
        if (told := Told.by(reader)) is not None:
            used.add(told.file)
        for path in (*self._folder.glob("*.faiss"), *self._folder.glob(f"*{SUFFIX}")):
            if path.name not in used:
                with contextlib.suppress(OSError):
                    path.unlink()


class _Selected:
    """Ids as FAISS's selectors take them: a bit for each, so that a scan asks at the cost of one look."""

    def __init__(self, ids: IntArray, *, among: bool) -> None:
        """among: only these, else all but these."""
        import faiss

        bits = np.zeros(int(ids.max(initial=0)) + 1, bool)
        bits[ids] = True
        self.ids, self.among = ids, among
        self._bits = np.packbits(bits, bitorder="little")
        self._these = faiss.IDSelectorBitmap(self._bits)  # type: ignore[call-arg, arg-type]  # its types are C++'s
        self.selector: faiss.IDSelector = self._these if among else faiss.IDSelectorNot(self._these)

    def of(self, ids: IntArray) -> npt.NDArray[np.bool_]:
        """(n,) bool: which of some ids are selected."""
        listed: npt.NDArray[np.bool_] = np.isin(ids, self.ids)
        return listed if self.among else ~listed


def _some_queries(reader: Reader, text_queries: TextQueries | None) -> dict[str, tuple[IntArray, FloatArray]]:
    """Queries as people may ask them, by kind: (ids (q,), rows (q, dim)) of own items, of past queries, and words.

    Each lies where its kind lies, and texts lie in another cone than pictures. ids: -1 for what is not in the index.
    """
    asked: dict[str, tuple[IntArray, FloatArray]] = {}
    for kind in KINDS:
        ids, rows = reader.sample_of_vectors(kind, QUERIES)
        if kind == "text":
            space = queries.space(reader.setting("fingerprint"), reader.setting("heads"))
            with contextlib.closing(QueryCache(reader.folder)) as cache:
                asked_before = cache.latest(space, QUERIES, reader.dim()) if space is not None else []
            words = [*asked_before, *(() if text_queries is None else text_queries())]
            ids = np.concatenate((ids, np.full(len(words), -1, np.int64)))
            rows = np.stack((*rows, *words)) if len(ids) else rows
        if len(rows):
            asked[kind] = (ids, rows)
    return asked


def _ends(asked: dict[str, tuple[IntArray, FloatArray]]) -> list[int]:
    """Where one group ends and the next begins."""
    ends: list[int] = np.cumsum([len(ids) for ids, _ in asked.values()])[:-1].tolist()
    return ends


def _is_due(cells: Segment, last: int, count: int, dead: IntArray) -> bool:
    """Whether cells should take in what waits beside them, or let go of what died in them."""
    lost = np.count_nonzero(dead <= cells.through_id)
    return bool(count - (cells.count - lost) > TAIL or lost > DEAD_RATIO * cells.count)


def _alive(opened: _Opened, ids: IntArray, after: int) -> npt.NDArray[np.bool_]:
    """(n,) bool: which of the ids (n,) are beyond one and not deleted."""
    alive: npt.NDArray[np.bool_] = ids > after
    return alive & ~np.isin(ids, opened.dead) if len(opened.dead) else alive


def _places(among: IntArray, ids: IntArray) -> IntArray:
    """(n,) where each of the ids (n,) is among others; every one is there."""
    order = np.argsort(among)
    places: IntArray = order[np.searchsorted(among, ids, sorter=order)]
    return places


def _after_fork() -> None:
    """OpenMP's threads stay behind in the parent, and FAISS would wait for them for ever; one query needs none."""
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cosines(vectors: FloatArray, query: FloatArray) -> FloatArray:
    """(n, dim) @ (dim,) -> (n,) float32, to the same bit whatever else is in the block, as no BLAS promises."""
    if not len(vectors):  # of nothing the store does not know how wide it is
        return np.empty(0, np.float32)
    scores: FloatArray = np.einsum("ij,j->i", vectors, query)  # a row after the other, always in the same order
    return scores


def _scored(reader: Reader, opened: _Opened, ids: IntArray, query: FloatArray) -> tuple[IntArray, FloatArray]:
    """(ids (n,), cosines (n,)) by the store's own vectors, in no order; of those that are there."""
    scored: list[tuple[IntArray, FloatArray]] = []
    told: list[tuple[IntArray, IntArray]] = []
    if opened.rows is not None and opened.revision == reader.revision():  # else it may hold what this reader does not
        left = [ids[:0]]
        for start in range(0, len(ids), SCORED_AT_ONCE):
            part = ids[start : start + SCORED_AT_ONCE]
            there, items, rows = opened.rows.read(part)
            scored.append((there, cosines(floats(rows), query)))
            told.append((there, items))
            if len(there) < len(part):
                left.append(np.setdiff1d(part, there))
        ids = np.concatenate(left)
    scored += [(part, cosines(floats(rows), query)) for part, rows in reader.stored_vectors(ids.tolist())]
    for there, items in told:
        reader.remember(there.tolist(), items.tolist())
    if not scored:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    there, scores = (np.concatenate(column) for column in zip(*scored, strict=True))
    return there, scores


def _merged(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """The same vectors in few blocks, however often one was added: each is copied O(log n) times."""
    merged: list[Block] = []
    for block in blocks:
        ids, vectors = block
        while merged and len(merged[-1][0]) <= len(ids):
            before, rows = merged.pop()
            ids, vectors = np.concatenate((before, ids)), np.concatenate((rows, vectors))
        merged.append((ids, vectors))
    return tuple(merged)


def _opened(reader: Reader, kind: Kind, segments: tuple[Segment, ...], *, without_files: bool = False) -> _Opened:
    """Open a kind anew; the vectors of a segment that cannot be used are read from the store."""
    files, beside, through = [], list[Block](), 0
    without_files = without_files or sum(segment.count for segment in segments) <= SMALL
    cells: Cells | None = None
    settings: Settings | None = None
    for segment in segments:
        path = reader.folder / FOLDER / segment.file
        through = segment.through_id
        if without_files:
            pass
        elif segment.cells is not None:
            cells, settings = _open_cells(reader, kind, path, segment)
            if cells is not None:
                continue
        elif (file := _open_rows(path, segment)) is not None:
            files.append(file)
            continue
        beside += reader.vectors_after(kind, segment.after_id, segment.through_id)
    beside += reader.vectors_after(kind, through)
    through = max((int(ids[-1]) for ids, _ in beside), default=through)
    return _Opened(
        reader.revision(),
        segments,
        tuple(files),
        cells,
        settings,
        tuple(beside),
        max(through, segments[-1].through_id if segments else 0),
        reader.dead_vectors(kind),
        reader.setting("heads"),
        None if cells is None else _open_flat(reader, kind),
    )


def _open_flat(reader: Reader, kind: Kind) -> Rows | None:
    """The file of rows, or None where it is missing or does not hold what the store does, in so many places."""
    told = Told.by(reader)
    if told is None:
        return None
    ids, vectors = reader.sample_of_vectors(kind, LOOKS)
    ids, vectors = ids[ids <= told.through], vectors[ids <= told.through]
    try:
        rows = Rows(reader.folder / FOLDER / told.file, told)
        there, _, read = rows.read(ids)
    except OSError:
        return None
    return rows if np.array_equal(there, ids) and np.array_equal(floats(read), vectors) else None


def _is_sound(reader: Reader, kind: Kind, path: Path, segment: Segment) -> bool:
    """Whether the whole file is what was written; one of before there were checksums is not known to be."""
    if segment.checksum is None:
        return False
    if segment.cells is None:
        return _open_rows(path, segment) is not None
    cells, _ = _open_cells(reader, kind, path, segment)
    if cells is None:
        return False
    try:
        cells.check()
    except DamageError:
        return False
    return True


def _open_rows(path: Path, segment: Segment) -> "faiss.Index | None":
    """The file read into memory, or None where it is missing or not what was written.

    Every query reads all of it. What is read once and kept cannot be cut short under FAISS, as a mapped file can.
    """
    import faiss

    file: Any
    try:
        if path.stat().st_size != segment.size_bytes:
            return None
        if segment.checksum is None:
            file = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        else:
            data = np.fromfile(path, np.uint8)
            if zlib.crc32(data.data) != segment.checksum:
                return None
            held: Any = faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))  # type: ignore[attr-defined]
            file = faiss.read_index(held)
            file.referenced_objects = (data, held)  # FAISS points into them
    except (OSError, RuntimeError, MemoryError):  # what FAISS raises for a header that makes no sense
        return None
    rows: faiss.Index | None = file if file.ntotal == segment.count else None
    return rows


def _open_cells(reader: Reader, kind: Kind, path: Path, segment: Segment) -> tuple[Cells, Settings] | tuple[None, None]:
    """The file mapped into memory, or None where it is missing or not what was written.

    The first row of some cells is compared with the store's vector: a file may be whole, and another store's.
    """
    try:
        if path.stat().st_size != segment.size_bytes:
            return None, None
        cells, settings = Cells.open(path, segment.checksum), Settings.from_json(segment.cells or "")
        ids, told = cells.some_rows(LOOKS)
    except (DamageError, OSError, RuntimeError, MemoryError, ValueError, TypeError):
        return None, None
    there, stored = reader.vectors_of(ids.tolist())
    gone = np.setdiff1d(ids, there)
    if len(cells) != segment.count or not len(there) or not np.isin(gone, reader.dead_vectors(kind)).all():
        return None, None
    rows = cells.project(stored)
    off = np.linalg.norm(told[_places(ids, there)] - rows, axis=1) / np.linalg.norm(rows, axis=1)
    return (cells, settings) if float(np.quantile(off, 0.9)) < CODE_DAMAGE else (None, None)


def _nearest(
    opened: _Opened, query: FloatArray, wanted: int, only: _Selected | None
) -> list[tuple[IntArray, FloatArray]]:
    """The nearest of each segment and of each block beside them: ids, and scores, NaN for what cells list."""
    found = list(_listed(opened, query, wanted - TIES, only))
    found += [_search_rows(file, query, wanted, only) for file in opened.files]
    for block, vectors in opened.beside:
        chosen = slice(None) if only is None else only.of(block)
        scores = vectors[chosen] @ query
        best = np.argsort(-scores, kind="stable")[:wanted]
        found.append((block[chosen][best], scores[best]))
    return found


def _listed(
    opened: _Opened, query: FloatArray, wanted: int, only: _Selected | None
) -> Iterator[tuple[IntArray, FloatArray]]:
    """The short list of the cells; as long as it should be wherever there are so many rows."""
    cells, settings = opened.cells, opened.settings
    if cells is None or settings is None:
        return
    share = len(only.ids) / max(1, len(cells)) if only is not None and only.among else 1.0
    probes, length = with_growth(settings, wanted, share)
    while True:
        ids = cells.shortlists(
            query[None, :],
            length,
            probes=probes,
            spread=settings.spread,
            only=None if only is None else only.selector,
        )[0]
        if probes >= cells.number or np.all(ids >= 0):
            break
        probes *= 4
    ids = ids[ids >= 0]
    yield ids, np.full(len(ids), np.nan, np.float32)


def _search_rows(file: Any, query: FloatArray, k: int, only: _Selected | None) -> tuple[IntArray, FloatArray]:
    import faiss

    parameters: faiss.SearchParameters | None = None
    if only is not None:
        parameters = faiss.SearchParameters(sel=only.selector)  # type: ignore[call-arg]  # its types lack the keywords
    scores, ids = file.search(query[None, :], min(k, file.ntotal), params=parameters)
    real = ids[0] >= 0
    return ids[0][real], scores[0][real]
