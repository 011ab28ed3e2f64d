"""The map of a collection: every item a point of a plane, near to what it is like.

A sample of the items is laid out by t-SNE (van der Maaten & Hinton 2008), as openTSNE computes it; every other item
stands among those of the sample that it is most like. So a large collection costs little more than the sample, and what
is added later finds its place without moving what is there: a map that people have learnt stays the map they know. It
is laid out anew once the collection has doubled, or its vectors are by other heads.

Vectors of pictures and of texts lie in cones of their own (Liang et al. 2022, "Mind the gap"). Each kind is measured
from its own mean, else the map would be two islands.

The map is derived from the store and kept beside it in `map.npz`, which may be deleted at any time.
"""

import contextlib
import io
import math
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.nearest import nearest_rows
from mmsearch.store.files import open_plain
from mmsearch.store.reader import Reader
from mmsearch.store.records import KINDS, FloatArray, IntArray

FILE = "map.npz"
SAMPLE = 10_000  # items laid out by t-SNE; tests/benchmarks/map.py has the time and memory of more
NEIGHBOURS = 5  # of the sample, among which an item finds its place
NEAR = 0.04  # of the map's width: neighbours farther from the first one are of another group
LAY_OUT_AGAIN = 2.0  # times as many items as there were
LEAST_SAMPLE_LEFT = 0.5
PERPLEXITY = 30.0  # openTSNE's own; how many neighbours an item is held by, fewer for a small collection
FEW = 24  # items; with fewer, t-SNE falls into one point, and two principal components show them well
BLOCK = 8_192  # vectors read at once
MARGIN = 0.02  # of the map's width, on each side

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Progress: TypeAlias = Callable[[float], None]  # takes the share that is done; what it raises ends the work


@dataclass(frozen=True)
class Map:
    """Items as points.

    items: (n,) int64, ascending; 42 is the item with the id `mm-42`. is_text: (n,) bool. points: (n, 2) float32 within
    0 and 1, x to the right and y down. Captions have no point of their own.
    """

    items: IntArray
    is_text: BoolArray
    points: FloatArray
    is_current: bool  # whether the index was so when the map was brought up to date

    @property
    def ids(self) -> list[str]:
        """The items' ids; `mm-42` goes for an item with an id of its own as well."""
        return [f"mm-{number}" for number in self.items.tolist()]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class _Layout:
    """What is kept: where each vector of the store was placed, and what is needed to place others."""

    rows: IntArray  # (n,) ids of vectors, ascending
    items: IntArray  # (n,)
    is_text: BoolArray  # (n,)
    points: FloatArray  # (n, 2)
    is_sample: BoolArray  # (n,) laid out by t-SNE
    means: FloatArray  # (kinds, dim)
    laid_out: int  # items that there were when the sample was drawn
    revision: int  # of the store
    heads: str  # that the vectors are by; empty for the model's own


def kept(reader: Reader) -> Map | None:
    """The map as it was last made, however long ago; None where there is none."""
    layout = _load(reader)
    return None if layout is None else _as_map(layout, reader)


def bring_up_to_date(reader: Reader, progress: Progress) -> Map:
    """The map of what the reader's snapshot holds, kept for the next time if the index's folder can be written."""
    layout = _load(reader)
    if layout is None or layout.revision != reader.revision():
        layout = _changed(reader, layout, progress)
        _keep(reader.folder, layout)
    progress(1.0)
    return _as_map(layout, reader)


def _as_map(layout: _Layout, reader: Reader) -> Map:
    order = np.argsort(layout.items)
    is_current = layout.revision == reader.revision()
    return Map(layout.items[order], layout.is_text[order], layout.points[order], is_current)


def _changed(reader: Reader, layout: _Layout | None, progress: Progress) -> _Layout:
    rows, items, is_text = reader.placeable()
    if layout is None or not _still_fits(layout, rows, reader):
        layout = _laid_out(reader, rows, items, is_text, lambda share: progress(0.8 * share))
    return _completed(reader, layout, rows, items, is_text, lambda share: progress(0.8 + 0.2 * share))


def _laid_out(reader: Reader, rows: IntArray, items: IntArray, is_text: BoolArray, progress: Progress) -> _Layout:
    """A sample of the rows, placed by t-SNE."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
    vectors = _vectors(reader, rows[chosen])
    means = _means(vectors, is_text[chosen])
    return _Layout(
        rows=rows[chosen],
        items=items[chosen],
        is_text=is_text[chosen],
        points=_placed(_centred(vectors, is_text[chosen], means), progress),
        is_sample=np.ones(len(chosen), bool),
        means=means,
        laid_out=len(rows),
        revision=reader.revision(),
        heads=reader.setting("heads") or "",
    )


def _completed(
    reader: Reader, layout: _Layout, rows: IntArray, items: IntArray, is_text: BoolArray, progress: Progress
) -> _Layout:
    """The layout with these rows alone: what is gone left out, what is new put among the sample."""
    left = np.isin(layout.rows, rows, assume_unique=True)
    places = np.searchsorted(rows, layout.rows[left])
    points, is_sample = np.empty((len(rows), 2), np.float32), np.zeros(len(rows), bool)
    points[places], is_sample[places] = layout.points[left], layout.is_sample[left]
    new = np.flatnonzero(~np.isin(rows, layout.rows, assume_unique=True))
    if len(new):
        sample = _Sample(reader, rows[is_sample], points[is_sample], is_text[is_sample], layout.means)
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            vectors = _centred(_vectors(reader, rows[block]), is_text[block], layout.means)
            points[block] = sample.places(vectors, rows[block])
            progress(min(1.0, (start + BLOCK) / len(new)))
    return replace(
        layout,
        rows=rows,
        items=items,
        is_text=is_text,
        points=points,
        is_sample=is_sample,
        revision=reader.revision(),
    )


def _still_fits(layout: _Layout, rows: IntArray, reader: Reader) -> bool:
    """Whether what is new can stand among what was laid out."""
    sample = layout.rows[layout.is_sample]
    left = int(np.count_nonzero(np.isin(sample, rows, assume_unique=True)))
    return (
        layout.heads == (reader.setting("heads") or "")
        and len(rows) < LAY_OUT_AGAIN * layout.laid_out
        and left > max(FEW, LEAST_SAMPLE_LEFT * len(sample))
    )


def _placed(vectors: FloatArray, progress: Progress) -> FloatArray:
    """(n, 2) float32 within 0 and 1, for rows of length 1: by t-SNE."""
    count = len(vectors)
    if count < FEW:
        return _fitted(_principal(vectors)) if count else np.empty((0, 2), np.float32)
    from openTSNE import TSNEEmbedding, affinity, initialization, nearest_neighbors

    perplexity = min(PERPLEXITY, (count - 1) / 3)
    cosines, neighbours = nearest_rows(vectors, vectors, int(3 * perplexity) + 1)
    distances = np.sqrt(np.maximum(2 - 2 * cosines[:, 1:], 0.0))  # the first is the row itself, or one that equals it
    affinities = affinity.PerplexityBasedNN(
        perplexity=perplexity,
        knn_index=nearest_neighbors.PrecomputedNeighbors(neighbours[:, 1:], distances),
    )
    step = _Steps(progress, early=250, late=500)
    start = initialization.pca(vectors, random_state=0)
    embedding = TSNEEmbedding(start, affinities, random_state=0, callbacks=step, callbacks_every_iters=10)
    # The two phases of t-SNE, with the step size and lengths that openTSNE takes (Belkina et al. 2019)
    embedding.optimize(step.early, exaggeration=12, momentum=0.5, inplace=True)
    embedding.optimize(step.late, momentum=0.8, inplace=True)
    return _fitted(np.asarray(embedding, np.float32))


def _principal(vectors: FloatArray) -> FloatArray:
    """(n, 2): along the two directions in which rows differ most."""
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    points = np.zeros((len(vectors), 2), np.float32)
    points[:, : len(sizes)] = (left * sizes)[:, :2]
    return points


class _Steps:
    """Tells how far t-SNE is; openTSNE calls it with the number of the step within the phase."""

    def __init__(self, progress: Progress, early: int, late: int) -> None:
        self.early, self.late = early, late
        self._progress = progress
        self._done = self._last = 0

    def __call__(self, iteration: int, error: float, embedding: object) -> None:
        if iteration < self._last:  # the second phase
            self._done = self.early
        self._last = iteration
        self._progress(min(1.0, (self._done + iteration) / (self.early + self.late)))


class _Sample:
    """The sample, among which others find their places."""

    def __init__(
        self, reader: Reader, rows: IntArray, points: FloatArray, is_text: BoolArray, means: FloatArray
    ) -> None:
        self._vectors = _centred(_vectors(reader, rows), is_text, means)
        self._points = points
        self._apart = 0.3 / np.sqrt(max(len(points), 1))  # a third of what would be between points spread evenly

    def places(self, vectors: FloatArray, rows: IntArray) -> FloatArray:
        """(n, 2) float32, the same for the same row: between those neighbours that stand near the first."""
        cosines, neighbours = nearest_rows(vectors, self._vectors, NEIGHBOURS)
        around = self._points[neighbours]  # (n, neighbours, 2)
        away = np.linalg.norm(around - around[:, :1], axis=2)
        weights = np.where(away < NEAR, np.maximum(cosines, 1e-3), 0.0)[..., None]
        middle = (around * weights).sum(axis=1) / weights.sum(axis=1)
        scatter = np.stack([np.random.default_rng(int(row)).normal(0, self._apart, 2) for row in rows])
        placed: FloatArray = np.clip(middle + scatter, 0, 1).astype(np.float32)
        return placed


def _vectors(reader: Reader, rows: IntArray) -> FloatArray:
    """(n, dim) float32 in the order of the rows, which are ascending."""
    ids, vectors = reader.vectors_of(rows.tolist())
    return vectors[np.argsort(ids)]


def _means(vectors: FloatArray, is_text: BoolArray) -> FloatArray:
    """(kinds, dim) float32; zero for a kind of which there is none."""
    return np.stack(
        [
            vectors[is_text == (kind == "text")].mean(axis=0)
            if np.any(is_text == (kind == "text"))
            else np.zeros(vectors.shape[1], np.float32)
            for kind in KINDS
        ]
    ).astype(np.float32)


def _centred(vectors: FloatArray, is_text: BoolArray, means: FloatArray) -> FloatArray:
    """Rows of length 1 about the mean of their kind."""
    rows = vectors - means[is_text.astype(np.int64)]
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.maximum(lengths, 1e-6), np.float32)


def _fitted(points: FloatArray) -> FloatArray:
    """Moved and scaled, alike in both directions, into the square."""
    low, high = points.min(axis=0), points.max(axis=0)
    width = float((high - low).max()) or 1.0
    return np.asarray((points - (low + high) / 2) * ((1 - 2 * MARGIN) / width) + 0.5, np.float32)


# On disk


def _load(reader: Reader) -> _Layout | None:
    """What is kept, None where it is not what `_keep` wrote: it is made again then."""
    try:
        with os.fdopen(open_plain(reader.folder / FILE, os.O_RDONLY), "rb") as file, zipfile.ZipFile(file) as archive:
            read = partial(_array, archive, os.fstat(file.fileno()).st_size)
            layout = _Layout(
                rows=read("rows", np.int64, 1),
                items=read("items", np.int64, 1),
                is_text=read("is_text", np.bool_, 1),
                points=read("points", np.float32, 2),
                is_sample=read("is_sample", np.bool_, 1),
                means=read("means", np.float32, 2),
                laid_out=int(read("laid_out", np.int64, 0)),
                revision=int(read("revision", np.int64, 0)),
                heads=str(read("heads", np.str_, 0)),
            )
    except Exception:  # a zip file that is damaged raises whatever its reader comes upon
        return None
    return layout if _makes_sense(layout, reader) else None


def _array(archive: zipfile.ZipFile, most_bytes: int, name: str, kind: type[np.generic], axes: int) -> Any:
    """An array as numpy writes it into a zip file, by its CRC-32 the same. Raises ValueError and others.

    No memory is taken on the word of a header: what is read is no longer than the file, and makes up the array.
    """
    told = archive.getinfo(f"{name}.npy")
    if told.compress_type != zipfile.ZIP_STORED or told.file_size > most_bytes:
        raise ValueError(f"{name} is packed")
    data = io.BytesIO(archive.read(told))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"{name} is of another version")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(data)
    body = data.getbuffer()[data.tell() :]
    fits = len(shape) == axes and math.prod(shape) * dtype.itemsize == len(body)
    if not fits or in_columns or not np.issubdtype(dtype, kind) or dtype.hasobject:
        raise ValueError(f"{name} is no such array")
    return np.frombuffer(body, dtype).reshape(shape)


def _makes_sense(layout: _Layout, reader: Reader) -> bool:
    count = len(layout.rows)
    one_each = len(layout.items) == len(layout.is_text) == len(layout.is_sample) == count
    return bool(
        one_each
        and layout.points.shape == (count, 2)
        and (not count or layout.means.shape == (len(KINDS), reader.dim()))
        and np.all(np.diff(layout.rows) > 0)
        and np.all((layout.points >= 0) & (layout.points <= 1))  # and numbers
        and np.isfinite(layout.means).all()
    )


def _keep(folder: Path, layout: _Layout) -> None:
    """Written beside and put in its place as a whole; where that cannot be done, it is made again."""
    with contextlib.suppress(OSError):
        descriptor, beside = tempfile.mkstemp(dir=folder, prefix=FILE, suffix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **vars(layout))
            os.replace(beside, folder / FILE)
        except BaseException:
            os.unlink(beside)
            raise
