"""Cells: many vectors ranked by reading a few percent of them.

Rows are taken along the directions in which they differ most, kept there with 8 bits a value, and parted into cells
about k-means centres. A query reads the cells that promise most; what it finds there is a short list, to be scored
exactly from the store. So a code may be small: the scan need only bring the right rows onto the list.

A cell promises the cosine of its mean and some of its spread, since a wide cell may reach nearer than its mean. That
matters most to words, which lie in a cone of their own, about equally far from every picture: at 1,000,000 items it
halved what has to be read. How many cells are read, what spread counts and how long
the list is, is chosen by measuring on the index's own vectors (`choose`), and kept with the file.
"""

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmsearch.machine import usable_memory_bytes
from mmsearch.nearest import kmeans, nearest_centre
from mmsearch.store.records import FloatArray, IntArray

if TYPE_CHECKING:
    import faiss

RECALL = 0.97  # recall@10 that is promised, of words and of pictures
MARGIN = 0.012  # asked for beyond that: twice the standard error of what some hundred queries tell
NEIGHBOURS = 10
KEPT_VARIANCE = 0.9  # of the rows, by the directions that are kept; the short list makes up for the rest
WIDTHS = 16  # values; the scan reads so many at once
# 4 sqrt(n) cells were placed in half the time, but read 0.3 ms longer at 1,000,000 for the same recall
CELLS_PER_ROOT = 8
PER_CELL = 16  # rows to train on
ROUNDS = 6  # of k-means
PCA_ROWS = 16_384
SPREADS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
LENGTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)  # of short lists, that are tried
LONGEST = LENGTHS[-1]
MEASURED_DEPTH = 200  # hits for which the measured number of cells is read
FROM_MEMORY_S = 1e-4  # that a cell takes at most, if it is in memory: some 20 us, and 300 from an SSD (growth.py)
FETCHED_AGAIN_S = 600.0  # after which the file is read through once more, if it has left the memory since
FETCHED_AT_ONCE = 2**22  # bytes


@dataclass(frozen=True)
class Settings:
    """How cells are searched, as measured when they were made: recall@10 of the queries of each kind."""

    probes: int  # cells that are read for up to MEASURED_DEPTH hits
    spread: float
    shortlist: int  # rows scored exactly for NEIGHBOURS hits
    recall: Mapping[str, float]
    trained_on: int  # rows there were when the centres were placed

    def to_json(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Raises ValueError, TypeError for what `to_json` did not write."""
        return cls(**json.loads(text))


class Cells:
    """Rows in cells: trained, filled, saved; opened by mapping them into memory."""

    def __init__(self, index: "faiss.IndexPreTransform", mapped: Path | None = None) -> None:
        """mapped: the file, where it is no more than mapped into memory."""
        import faiss

        self._mapped, self._fetched_at = mapped, -math.inf
        self._index = index  # owns what the next two point into
        self._cells: Any = faiss.downcast_index(index.index)
        chain: Any = index.chain
        transform: Any = faiss.downcast_VectorTransform(chain.at(0))
        # (dim, width); the last column is empty, and in a query holds what the spread counts
        self._directions: FloatArray = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in).T

    @classmethod
    def train(cls, rows: FloatArray, count: int) -> "Cells":
        """Empty cells for `count` rows, of which `rows` (n, dim) are a fair sample."""
        import faiss

        number = cells_for(count)
        directions = _directions(rows)
        projected = rows @ directions  # (n, width)
        width = directions.shape[1]
        cells: Any = faiss.IndexIVFScalarQuantizer(
            _promising(kmeans(projected, number, ROUNDS), projected),
            width,
            number,
            faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT,
            False,  # codes of the rows, not of what they differ from their centre by: no table is made for a cell
        )
        cells.train(projected)
        transform = faiss.LinearTransform(rows.shape[1], width, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(directions.T).ravel(), transform.A)
        transform.is_trained = True
        return cls(faiss.IndexPreTransform(transform, cells))  # its Python object keeps those of its parts

    @classmethod
    def open(cls, path: Path, *, mapped: bool = True) -> "Cells":
        """Mapped into memory, or read to be changed. Raises OSError, RuntimeError, MemoryError for a damaged file."""
        import faiss

        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        if not isinstance(index, faiss.IndexPreTransform):
            raise RuntimeError(f"{path} holds no cells")
        return cls(index, path if mapped else None)

    def save(self) -> npt.NDArray[np.uint8]:
        """The bytes of the file."""
        import faiss

        data: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        return data

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def number(self) -> int:
        """Of cells."""
        return int(self._cells.nlist)

    def add(self, ids: IntArray, rows: FloatArray) -> None:
        """Put (n, dim) rows in, each into the cell whose mean is nearest."""
        import faiss

        projected = rows @ self._directions
        means = self._means()
        nearest, _ = nearest_centre(projected, means)
        ids, projected = np.ascontiguousarray(ids), np.ascontiguousarray(projected)
        self._cells.add_core(len(ids), *map(faiss.swig_ptr, (projected, ids, nearest)))
        self._index.ntotal = self._cells.ntotal

    def remove(self, ids: IntArray) -> None:
        """Take rows out."""
        import faiss

        self._cells.remove_ids(faiss.IDSelectorBatch(ids))
        self._index.ntotal = self._cells.ntotal

    def shortlists(
        self, queries: FloatArray, length: int, *, probes: int, spread: float, only: "faiss.IDSelector | None" = None
    ) -> IntArray:
        """(q, length) ids, the most promising first, -1 where there are no more in the cells that were read."""
        import faiss

        projected = queries @ self._directions  # (q, width)
        projected[:, -1] = spread * np.linalg.norm(projected, axis=1)
        read = min(probes, self.number)
        parameters = faiss.SearchParametersIVF(nprobe=read, sel=only)  # type: ignore[call-arg]
        started = time.perf_counter()
        ids: IntArray = self._cells.search(projected, min(length, len(self)), params=parameters)[1]
        if time.perf_counter() - started > FROM_MEMORY_S * read * len(queries):
            self._fetch()
        return ids

    def some_rows(self, count: int) -> tuple[IntArray, FloatArray]:
        """(ids (n,), rows (n, width)) as the codes tell them, from cells at even distances; to compare with others."""
        import faiss

        lists, ids, codes = self._cells.invlists, [], []
        for cell in np.unique(np.linspace(0, self.number - 1, count).astype(int)).tolist():
            if lists.list_size(cell):
                ids.append(lists.get_single_id(cell, 0))
                codes.append(faiss.rev_swig_ptr(lists.get_single_code(cell, 0), self._cells.code_size).copy())
        rows = self._cells.sq.decode(np.stack(codes)) if codes else np.empty((0, self._cells.d), np.float32)
        return np.array(ids, np.int64), rows

    def project(self, rows: FloatArray) -> FloatArray:
        """(n, dim) -> (n, width), as the codes tell rows."""
        projected: FloatArray = rows @ self._directions
        return projected

    def _fetch(self) -> None:
        """Have the system read the file through meanwhile, so that soon no cell is waited for any more.

        At 10,000,000 rows a query that finds no cell in memory takes 46 ms, and 3 ms half a second later.
        """
        now = time.monotonic()
        if self._mapped is None or now - self._fetched_at < FETCHED_AGAIN_S or not hasattr(os, "sysconf"):
            return
        self._fetched_at = now
        with contextlib.suppress(RuntimeError):  # no thread can be started: cells are waited for as before
            threading.Thread(target=read_through, args=(self._mapped,), name="mmsearch fetching", daemon=True).start()

    def _means(self) -> FloatArray:
        import faiss

        quantizer: Any = faiss.downcast_index(self._cells.quantizer)
        means: FloatArray = faiss.vector_to_array(quantizer.codes).view(np.float32).reshape(self.number, -1).copy()
        means[:, -1] = 0
        return means


def read_through(path: Path) -> int:
    """-> how many bytes were read of a file: all, where that leaves half of the memory to others, else none."""
    read = 0
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size < usable_memory_bytes() / 2:
            room = memoryview(bytearray(FETCHED_AT_ONCE))
            while some := file.readinto(room):
                read += some
    return read


def cells_for(count: int) -> int:
    """How many cells for so many rows: the power of two next to so many times the root."""
    return int(2 ** round(np.log2(CELLS_PER_ROOT * count**0.5)))


def training_rows(count: int) -> int:
    """How many rows to train on, for so many."""
    return min(count, PER_CELL * cells_for(count))


def choose(cells: Cells, asked: Mapping[str, tuple[FloatArray, IntArray]], trained_on: int) -> Settings | None:
    """The settings with which the fewest rows are read and every group of queries has RECALL; None where none has.

    asked: for each kind of query, rows (q, dim) and the ids (q, 10) of their true neighbours. Scored exactly, a short
    list gives all of them that are on it: recall is told without scoring.
    """
    wanted = min(RECALL + MARGIN, 1.0)

    def found(spread: float, probes: int) -> dict[str, FloatArray]:
        """Of each group, the share of true neighbours (LONGEST,) on lists of every length."""
        return {
            name: _on_the_list(cells.shortlists(rows, LONGEST, probes=probes, spread=spread), true)
            for name, (rows, true) in asked.items()
        }

    few = max(1, cells.number // 64)
    spread = max(SPREADS, key=lambda spread: _least(found(spread, few), LONGEST))
    probes = max(1, cells.number // 256)
    shares = found(spread, probes)
    while _least(shares, LONGEST) < wanted:
        if probes >= cells.number:
            return None
        probes = min(cells.number, int(probes * 1.25) + 1)
        shares = found(spread, probes)
    shortlist = next(
        length for length in LENGTHS if _least(shares, length) >= min(wanted, _least(shares, LONGEST)) - 0.001
    )
    recall = {name: round(float(share[shortlist - 1]), 4) for name, share in shares.items()}
    return Settings(probes, spread, shortlist, recall, trained_on)


def _least(shares: Mapping[str, FloatArray], length: int) -> float:
    """The recall of the group that has the least, with lists of a length."""
    return min(float(share[min(length, len(share)) - 1]) for share in shares.values())


def _on_the_list(lists: IntArray, true: IntArray) -> FloatArray:
    """(longest,) float32: the share of true neighbours among the first 1, 2, ... of the lists (q, longest)."""
    hits = np.zeros(lists.shape, np.int64)
    for place in range(true.shape[1]):
        hits += (lists == true[:, place, None]) & (lists >= 0)
    share: FloatArray = (hits.sum(axis=0).cumsum() / np.count_nonzero(true >= 0)).astype(np.float32)
    return share


def _directions(rows: FloatArray) -> FloatArray:
    """(dim, width) float32: the directions that hold KEPT_VARIANCE of the rows, and an empty column."""
    some = rows[:: max(1, len(rows) // PCA_ROWS)].astype(np.float64)
    some -= some.mean(axis=0)
    variances, directions = np.linalg.eigh(some.T @ some)  # ascending
    total = max(float(variances.sum()), 1e-30)  # of rows that are all the same there is none
    kept = int(np.searchsorted(np.cumsum(variances[::-1]) / total, KEPT_VARIANCE)) + 1
    width = -(-(kept + 1) // WIDTHS) * WIDTHS
    columns = np.zeros((rows.shape[1], width), np.float32)
    best = directions[:, ::-1][:, : width - 1]
    columns[:, : best.shape[1]] = best
    return columns


def _promising(centres: FloatArray, rows: FloatArray) -> "faiss.IndexFlatIP":
    """What ranks the cells for a query: their means, and in the last column their rows' deviation from it."""
    import faiss

    nearest, squared = nearest_centre(rows, centres)
    sizes = np.bincount(nearest, minlength=len(centres))
    total = np.bincount(nearest, weights=squared, minlength=len(centres))
    described = centres.copy()
    described[:, -1] = np.sqrt(total / np.maximum(sizes, 1))
    ranked = faiss.IndexFlatIP(centres.shape[1])
    ranked.add(described)
    return ranked


def with_growth(settings: Settings, k: int, share: float) -> tuple[int, int]:
    """(probes, length of the short list) for k hits where a share of all rows is allowed.

    The k best of a share lie as deep as the k / share best of all; with about the root of the depth, recall stays
    (tests/benchmarks/own.py). In steps, so that a second page is read from the same cells as the first.
    """
    depth = k / max(share, 1e-9)
    steps = max(0, math.ceil(math.log(depth / MEASURED_DEPTH, 4)))
    return settings.probes * 2**steps, settings.shortlist + max(0, k - NEIGHBOURS)
