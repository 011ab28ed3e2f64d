"""Vectors of an index, ranked by FAISS.

The SQLite store is the truth; everything here is derived from it and may be deleted. Vectors lie in segments: FAISS
files of half-precision rows, opened by mapping them into memory, so that opening costs milliseconds at any size.
Vectors newer than the last segment are searched exactly beside them and dead ones are left out, so that an answer never
depends on when the segments were last built. A segment that is missing or damaged is passed over in the same way: its
vectors are read from the store until a writer builds it again.
"""

import contextlib
import os
import sys
import threading
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mmsearch.store.failures import disk_failures
from mmsearch.store.metadata import Store
from mmsearch.store.reader import Reader
from mmsearch.store.records import KINDS, FloatArray, IntArray, Kind, Segment
from mmsearch.store.writer import Writer

if TYPE_CHECKING:
    import faiss

SEGMENT_SIZE = 200_000  # vectors; bounds the memory that building takes to some 200 MB at 512 dimensions
PENDING_RATIO = 1.0  # build anew once as many wait beside the segments as are in them: each is written O(log n) times
PENDING_MIN = 2_000  # vectors; never for fewer while a run goes on, whose end builds whatever waits
DEAD_RATIO = 0.2  # of a full segment, from which on it is built again without them
TIES = 16  # candidates beyond k that are scored anew, since a tie at the end may be among them
DAMAGE = 1e-3  # between a segment's score and the store's; half-precision rows differ by less than 1e-6
SAMPLE = 512  # vectors; places the mean to within a twentieth of the deviation
FOLDER = "vectors"

_Block: TypeAlias = tuple[IntArray, FloatArray]  # ids (n,), vectors (n, dim)


@dataclass(frozen=True)
class _Opened:
    """What is held in memory of one kind, as of one revision: mapped segments, and blocks of vectors beside them."""

    revision: int
    segments: tuple[Segment, ...]
    files: tuple["faiss.Index", ...]
    beside: tuple[_Block, ...]
    read_through: int  # the highest id that was read from the store
    dead: IntArray


class VectorIndex:
    """Ranks the vectors of a store; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._folder = store.folder / FOLDER
        self._held: dict[Kind, _Opened] = {}
        self._lock = threading.Lock()

    def search(
        self, reader: Reader, kind: Kind, query: FloatArray, k: int, allowed: IntArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The k nearest vectors of a kind: (ids (n,) int64, cosines (n,) float32), best first, ties by id; n <= k.

        query: (dim,) float32 of length 1. allowed: sorted ids; only these are ranked. None ranks all.
        """
        if k <= 0 or (allowed is not None and not len(allowed)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        opened = self._refresh(reader, kind)
        found = self._candidates(reader, opened, query, k + TIES, allowed)
        if found is None:
            opened = self._hold(kind, _opened(reader, kind, opened.segments, without_files=True))
            found = self._candidates(reader, opened, query, k + TIES, allowed)
        assert found is not None
        ids, scores = found
        best = np.lexsort((ids, -scores))[:k]
        return ids[best], scores[best]

    def usual_scores(self, reader: Reader, kind: Kind, query: FloatArray) -> tuple[float, float]:
        """Mean and standard deviation of a query's cosines with the vectors of a kind, from a sample of them."""
        sample = reader.sample_of_vectors(kind, SAMPLE)
        if not len(sample):
            return 0.0, 1.0
        scores = cosines(sample, query)
        return float(scores.mean()), float(scores.std())

    def _candidates(
        self, reader: Reader, opened: _Opened, query: FloatArray, k: int, allowed: IntArray | None
    ) -> tuple[IntArray, FloatArray] | None:
        """The k best of all segments and of what lies beside them, scored anew; None where a segment proves damaged.

        FAISS and numpy add in different orders, so that near ties fall differently: the score of a hit is computed in
        one way, from the store's own vector. A segment that told another score, or an id that is not there, is damaged.
        """
        found = [_search_segment(file, query, k, allowed, opened.dead) for file in opened.files]
        for block, vectors in opened.beside:
            alive = ~np.isin(block, opened.dead) if allowed is None else np.isin(block, allowed)
            found.append((block[alive], vectors[alive] @ query))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        ids, told = np.concatenate([ids for ids, _ in found]), np.concatenate([scores for _, scores in found])
        best = np.argsort(-told, kind="stable")[:k]
        stored = reader.vectors_of(ids[best].tolist())
        there = np.array([number in stored for number in ids[best].tolist()], bool)
        newer = opened.revision > reader.revision()  # another thread has read on
        if newer and not there.all() and len(best) == k:  # what the snapshot does not have yet takes nobody's place
            return self._candidates(reader, opened, query, 2 * k, allowed)
        if opened.files and not newer and not there.all():
            return None
        best = best[there]
        if not len(best):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        scores = cosines(np.stack([stored[number] for number in ids[best].tolist()]), query)
        if opened.files and not np.all(np.abs(scores - told[best]) < DAMAGE):
            return None
        return ids[best], scores

    def _refresh(self, reader: Reader, kind: Kind) -> _Opened:
        """Bring what is held in memory to the reader's snapshot, or a newer one; only what is new is read."""
        held, revision = self._held.get(kind), reader.revision()
        if held is not None and held.revision >= revision:
            return held
        segments = tuple(reader.segments(kind))
        if held is None or held.segments != segments:
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
        return waiting > max(PENDING_MIN, PENDING_RATIO * sum(segment.count for segment in segments))

    def build(self, writer: Writer, kind: Kind) -> None:
        """Bring the segments of a kind up to the store, and remove files that none refers to.

        Full and sound segments stay; the rest is written anew under new names and taken into use in one transaction,
        so that a reader has the old files or the new ones.
        """
        segments, last = writer.segments(kind), writer.last_vector(kind)
        dead = writer.dead_vectors(kind)
        sound = [_open_segment(self._folder / segment.file, segment) is not None for segment in segments]
        keep = []
        for segment, is_sound in zip(segments, sound, strict=True):
            lost = np.count_nonzero((dead > segment.after_id) & (dead <= segment.through_id))
            if segment.count < SEGMENT_SIZE or lost > DEAD_RATIO * segment.count or not is_sound:
                break
            keep.append(segment)
        after = max((segment.through_id for segment in keep), default=0)
        reaches = max((segment.through_id for segment in segments), default=0)
        changed = last > reaches or np.any(dead > after) or len(keep) + 1 < len(segments)
        if changed or not all(sound):
            built = self._build_after(writer, kind, after)
            with writer.transaction():
                writer.put_segments(kind, keep, built, last)
        self._sweep(writer)

    def _build_after(self, writer: Writer, kind: Kind, after: int) -> list[Segment]:
        built: list[Segment] = []
        ids: list[IntArray] = []
        vectors: list[FloatArray] = []
        for block_ids, block in writer.vectors_after(kind, after):
            ids.append(block_ids)
            vectors.append(block)
            if sum(map(len, ids)) >= SEGMENT_SIZE:
                built.append(self._write(kind, after, ids, vectors))
                after, ids, vectors = built[-1].through_id, [], []
        if ids:
            built.append(self._write(kind, after, ids, vectors))
        return built

    def _write(self, kind: Kind, after: int, ids: list[IntArray], vectors: list[FloatArray]) -> Segment:
        import faiss

        index: Any = faiss.IndexIDMap2(
            faiss.IndexScalarQuantizer(vectors[0].shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        )
        for block_ids, block in zip(ids, vectors, strict=True):
            index.add_with_ids(block, block_ids)
        path = self._folder / f"{kind}-{uuid.uuid4().hex[:12]}.faiss"
        with disk_failures(self._folder):
            self._folder.mkdir(exist_ok=True)
            try:
                with path.open("wb") as file:
                    file.write(faiss.serialize_index(index).data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                path.unlink(missing_ok=True)  # on a full disk it would only be in the way
                raise
        return Segment(path.name, after, int(ids[-1][-1]), index.ntotal, path.stat().st_size)

    def _sweep(self, reader: Reader) -> None:
        """Delete files that no segment refers to; one that is still mapped on Windows goes the next time."""
        if not self._folder.is_dir():
            return
        used = {segment.file for kind in KINDS for segment in reader.segments(kind)}
        for path in self._folder.glob("*.faiss"):
            if path.name not in used:
                with contextlib.suppress(OSError):
                    path.unlink()


def _after_fork() -> None:
    """OpenMP's threads stay behind in the parent, and FAISS would wait for them for ever; one query needs none."""
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cosines(vectors: FloatArray, query: FloatArray) -> FloatArray:
    """(n, dim) @ (dim,) -> (n,) float32, to the same bit whatever else is in the block, as no BLAS promises."""
    scores: FloatArray = (vectors * query).sum(axis=1, dtype=np.float64).astype(np.float32)
    return scores


def _merged(blocks: tuple[_Block, ...]) -> tuple[_Block, ...]:
    """The same vectors in few blocks, however often one was added: each is copied O(log n) times."""
    merged: list[_Block] = []
    for block in blocks:
        ids, vectors = block
        while merged and len(merged[-1][0]) <= len(ids):
            before, rows = merged.pop()
            ids, vectors = np.concatenate((before, ids)), np.concatenate((rows, vectors))
        merged.append((ids, vectors))
    return tuple(merged)


def _opened(reader: Reader, kind: Kind, segments: tuple[Segment, ...], *, without_files: bool = False) -> _Opened:
    """Open a kind anew; the vectors of a segment that cannot be used are read from the store."""
    files, beside, through = [], list[_Block](), 0
    for segment in segments:
        file = None if without_files else _open_segment(reader.folder / FOLDER / segment.file, segment)
        if file is not None:
            files.append(file)
        else:
            beside += reader.vectors_after(kind, segment.after_id, segment.through_id)
        through = segment.through_id
    beside += reader.vectors_after(kind, through)
    through = max((int(ids[-1]) for ids, _ in beside), default=through)
    return _Opened(
        reader.revision(),
        segments,
        tuple(files),
        tuple(beside),
        max(through, segments[-1].through_id if segments else 0),
        reader.dead_vectors(kind),
    )


def _open_segment(path: Path, segment: Segment) -> "faiss.Index | None":
    """The file mapped into memory, or None where it is missing or not what was written."""
    import faiss

    try:
        if path.stat().st_size != segment.size_bytes:
            return None
        file = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (OSError, RuntimeError, MemoryError):  # what FAISS raises for a header that makes no sense
        return None
    return file if file.ntotal == segment.count else None


def _search_segment(
    file: Any, query: FloatArray, k: int, allowed: IntArray | None, dead: IntArray
) -> tuple[IntArray, FloatArray]:
    import faiss

    parameters: faiss.SearchParameters | None = None
    selector: faiss.IDSelector | None = None
    if allowed is not None:
        selector = faiss.IDSelectorBatch(allowed)
    elif len(dead):
        selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(dead))
    if selector is not None:  # a name of its own: the parameters do not keep it alive
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]  # its types lack the keywords
    scores, ids = file.search(query[None, :], min(k, file.ntotal), params=parameters)
    real = ids[0] >= 0
    return ids[0][real], scores[0][real]
