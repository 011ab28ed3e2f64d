"""Cells: many vectors ranked by reading a few percent of them.

Rows are taken along the directions in which they differ most, kept there with 8 bits a value, and parted into cells
about k-means centres. A query reads the cells that promise most; what it finds there is a short list, to be scored
exactly from the store. So a code may be small: the scan need only bring the right rows onto the list.

A cell promises the cosine of its mean and some of its spread, since a wide cell may reach nearer than its mean. That
matters most to words, which lie in a cone of their own, about equally far from every picture: at 1,000,000 items it
halved what has to be read. How many cells are read, what spread counts and how long
the list is, is chosen by measuring on the index's own vectors (`choose`), and kept with the file.

What FAISS believes in a file is checked first. All but the rows, where a wrong number could ask for any memory, is read
and summed (CRC-32) whenever the file is opened; the store knows the sum. The rows of a cell are summed when a query
first reads it, so that a large file is not read through for one answer. Their sums stand at the end of the file.
"""

import contextlib
import json
import math
import os
import struct
import threading
import time
import weakref
import zlib
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
END = struct.Struct("<QQ")  # of a file: where its rows begin, and of how many cells there are sums before this
SUM_BYTES = 4  # of a cell


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


class DamageError(Exception):
    """A file of vectors is not what was written; the store's own vectors answer then."""


class Cells:
    """Rows in cells: trained, filled, saved; opened by mapping them into memory."""

    def __init__(
        self,
        index: "faiss.IndexPreTransform",
        mapped: Path | None = None,
        sums: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """mapped: the file, where it is no more than mapped into memory. sums: what its cells' rows have to sum to."""
        import faiss

        self._mapped, self._fetched_at = mapped, -math.inf
        self._sums = sums
        self._checked = None if sums is None else np.zeros(len(sums), bool)
        self._descriptor: int | None = None
        if mapped is not None:
            self._descriptor = os.open(mapped, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self._descriptor)
            self._size = os.fstat(self._descriptor).st_size
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
    def open(cls, path: Path, checksum: int | None, *, mapped: bool = True) -> "Cells":
        """Mapped into memory, or read to be changed; checksum: as `save` told it, None for an older version's file.

        Raises DamageError, OSError, RuntimeError, MemoryError for a damaged file.
        """
        import faiss

        sums = None if checksum is None else _sums_of_cells(path, checksum)
        index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        if not isinstance(index, faiss.IndexPreTransform):
            raise DamageError(f"{path} holds no cells")
        cells = cls(index, path if mapped else None, sums)
        if sums is not None and len(sums) != cells.number:
            raise DamageError(f"{path} has sums of {len(sums)} cells and holds {cells.number}")
        return cells

    def save(self) -> tuple[list[memoryview], int]:
        """The bytes of the file in parts, and the checksum to open it with."""
        import faiss

        data: npt.NDArray[np.uint8] = faiss.serialize_index(self._index)
        begin = len(data) - len(self) * (self._cells.code_size + np.dtype(np.int64).itemsize)
        sums = np.array([self._sum_of(cell) for cell in range(self.number)], "<u4")
        end = sums.tobytes() + END.pack(begin, self.number)
        return [data.data, memoryview(end)], zlib.crc32(end, zlib.crc32(data[:begin].data))

    def check(self, cells: IntArray | None = None) -> None:
        """See to some cells, None: all, that were not seen to yet. Raises DamageError."""
        if self._descriptor is not None and os.fstat(self._descriptor).st_size != self._size:
            raise DamageError(f"{self._mapped} was cut short")  # to read behind its end would kill the process
        if self._sums is None or self._checked is None:
            return
        chosen = np.arange(self.number) if cells is None else cells[cells >= 0]
        for cell in chosen[~self._checked[chosen]].tolist():
            if self._sum_of(cell) != self._sums[cell]:
                raise DamageError(f"cell {cell} of {self._mapped} is damaged")
            self._checked[cell] = True

    def _sum_of(self, cell: int) -> int:
        """CRC-32 of the codes and ids of a cell."""
        import faiss

        lists = self._cells.invlists
        if not (count := lists.list_size(cell)):
            return 0
        codes = faiss.rev_swig_ptr(lists.get_codes(cell), count * self._cells.code_size)
        return zlib.crc32(faiss.rev_swig_ptr(lists.get_ids(cell), count).data, zlib.crc32(codes.data))

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
        """(q, length) ids, the most promising first, -1 where there are no more in the cells that were read.

        Raises DamageError.
        """
        import faiss

        projected = queries @ self._directions  # (q, width)
        projected[:, -1] = spread * np.linalg.norm(projected, axis=1)
        read = min(probes, self.number)
        parameters = faiss.SearchParametersIVF(nprobe=read, sel=only)  # type: ignore[call-arg]
        started = time.perf_counter()
        near, cells = faiss.downcast_index(self._cells.quantizer).search(projected, read)  # (q, read)
        self.check(cells.ravel())
        length = min(length, len(self))
        ids, scores = np.empty((len(queries), length), np.int64), np.empty((len(queries), length), np.float32)
        # As Python's own `search_preassigned`, which takes no parameters
        arrays = [faiss.swig_ptr(array) for array in (cells, near, scores, ids)]
        self._cells.search_preassigned_c(len(queries), faiss.swig_ptr(projected), length, *arrays, False, parameters)
        if time.perf_counter() - started > FROM_MEMORY_S * read * len(queries):
            self._fetch()
        return ids

    def some_rows(self, count: int) -> tuple[IntArray, FloatArray]:
        """(ids (n,), rows (n, width)) as the codes tell them, from cells at even distances; to compare with others.

        Raises DamageError.
        """
        import faiss

        lists, ids, codes = self._cells.invlists, [], []
        cells = np.unique(np.linspace(0, self.number - 1, count).astype(np.int64))
        self.check(cells)
        for cell in cells.tolist():
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


def _sums_of_cells(path: Path, checksum: int) -> npt.NDArray[np.uint32]:
    """What the rows of each cell have to sum to, of a file all else of which is whole. Raises DamageError, OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END.size))
        last = file.read()
        begin, number = END.unpack(last) if len(last) == END.size else (size, 0)
        sums_at = size - END.size - SUM_BYTES * number
        if begin > sums_at:
            raise DamageError(f"the end of {path} is damaged")
        file.seek(sums_at)
        end = file.read()
        file.seek(0)
        found, left = 0, begin
        while left and (some := file.read(min(left, FETCHED_AT_ONCE))):
            found, left = zlib.crc32(some, found), left - len(some)
    if zlib.crc32(end, found) != checksum:
        raise DamageError(f"{path} is damaged")
    return np.frombuffer(end[: -END.size], "<u4")


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
