"""Nearest rows by one product of matrices after another, in numpy.

FAISS brings a BLAS of its own, which takes processors that it does not know for the oldest that it does: on a Xeon of
2023 its nearest centres take three times as long as these. So what compares very many rows with very many is done here.
"""

import numpy as np

from mmsearch.store.records import FloatArray, IntArray

PRODUCT = 2**23  # numbers that stand in memory at once: 32 MB


def nearest_centre(rows: FloatArray, centres: FloatArray) -> tuple[IntArray, FloatArray]:
    """For each of the rows (n, dim), which of the centres (m, dim) is nearest (n,), and its squared distance (n,)."""
    halves = (centres * centres).sum(axis=1) / 2  # |r - c|^2 = |r|^2 - 2 (r c - |c|^2 / 2)
    nearest, best = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    step = max(1, PRODUCT // len(centres))
    room = np.empty((min(step, len(rows)), len(centres)), np.float32)  # made once: to be given new pages takes longer
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        scores = np.matmul(rows[some], centres.T, out=room[: len(rows[some])])
        scores -= halves
        nearest[some] = scores.argmax(axis=1)
        best[some] = np.take_along_axis(scores, nearest[some, None], axis=1)[:, 0]
    return nearest, np.maximum((rows * rows).sum(axis=1) - 2 * best, 0)


def nearest_rows(queries: FloatArray, rows: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
    """For each of the queries (q, dim) the rows (n, dim) of the greatest products: these (q, k), and which rows (q, k).

    Best first, ties by place; k = min(count, n).
    """
    count = min(count, len(rows))
    scores, places = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
    if not count:
        return scores, places
    step = max(1, PRODUCT // len(rows))
    room = np.empty((min(step, len(queries)), len(rows)), np.float32)
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        every = np.matmul(queries[some], rows.T, out=room[: len(queries[some])])
        best = np.sort(np.argpartition(every, len(rows) - count, axis=1)[:, len(rows) - count :], axis=1)
        told = np.take_along_axis(every, best, axis=1)
        order = np.argsort(-told, axis=1, kind="stable")
        scores[some] = np.take_along_axis(told, order, axis=1)
        places[some] = np.take_along_axis(best, order, axis=1)
    return scores, places


def kmeans(rows: FloatArray, number: int, rounds: int) -> FloatArray:
    """Centres (number, dim) of the rows (n, dim), n >= 1: Lloyd's algorithm (1982), the same ones every time.

    It begins with rows drawn by chance. A cell that stays empty takes half of the fullest one.
    """
    chance = np.random.default_rng(1)
    centres = rows[chance.choice(len(rows), number, replace=number > len(rows))].copy()
    for _ in range(rounds):
        nearest, _ = nearest_centre(rows, centres)
        counts = np.bincount(nearest, minlength=number)
        full = np.flatnonzero(counts)
        ordered = rows[np.argsort(nearest, kind="stable")]
        starts = (np.cumsum(counts) - counts)[full]
        centres[full] = np.add.reduceat(ordered, starts, axis=0) / counts[full, None]
        for empty in np.flatnonzero(counts == 0):
            fullest = int(counts.argmax())
            apart = centres[fullest] * np.where(np.arange(centres.shape[1]) % 2, 1, -1) / 1024
            centres[empty] = centres[fullest] + apart
            centres[fullest] -= apart
            counts[empty] = counts[fullest] // 2
            counts[fullest] -= counts[empty]
    return centres


class Neighbours:
    """The nearest rows of some queries, told exactly from blocks of rows that pass by once."""

    def __init__(self, queries: FloatArray, count: int) -> None:
        """queries: (q, dim); count: of neighbours of each, and one more that may be the query itself."""
        self._queries, self._count = queries, count
        self._scores = np.full((len(queries), count + 1), -np.inf, np.float32)
        self._ids = np.full((len(queries), count + 1), -1, np.int64)

    def see(self, ids: IntArray, rows: FloatArray) -> None:
        """A block of ids (n,) and rows (n, dim)."""
        scores, places = nearest_rows(self._queries, rows, self._count + 1)
        scores = np.concatenate((self._scores, scores), axis=1)
        known = np.concatenate((self._ids, ids[places]), axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._count + 1]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._ids = np.take_along_axis(known, best, axis=1)

    def but_for(self, own: IntArray) -> IntArray:
        """(q, count) ids, best first, without the row that a query itself is: own (q,), -1 where it is none."""
        others = self._ids != own[:, None]
        order = np.argsort(~others, axis=1, kind="stable")[:, : self._count]
        neighbours: IntArray = np.take_along_axis(self._ids, order, axis=1)
        return neighbours
