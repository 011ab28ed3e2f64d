"""Mean and spread of a query's scores over all vectors of a kind, without reading the vectors.

The scores of a query q have the mean q.s / n and the mean square q'Pq / n, where s is the sum of all vectors and P the
sum of their products with themselves. Both are kept in index.db as of some vector id. What came later is scored one by
one and added; what was deleted since is kept apart (`lost_vectors`) and taken off.

Vectors are taken to a grid of 2^-20, the step of half precision from 2^-10 on. Sums and products are then whole
numbers, which float64 adds without rounding up to 2^53: some four million vectors. So the same vectors give the same
moments in whatever order they came, and a vector that is taken off leaves nothing behind, however often. Beyond that
number the first digit that is lost stands at 2^-40.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.store.records import FloatArray

DoubleArray: TypeAlias = npt.NDArray[np.float64]

GRID = 2.0**20
PER_NUMBER = 4  # times so many vectors as they have numbers: from then on P is smaller than the vectors are
AT_ONCE = 1_024  # vectors in float64


def worth(dim: int) -> int:
    """From how many vectors on their moments are kept; fewer are sooner scored."""
    return PER_NUMBER * dim


@dataclass(frozen=True)
class Moments:
    """Of the vectors of a kind with ids up to `through_id`, on the grid. sums: (dim,). products: (dim, dim)."""

    through_id: int
    count: int
    sums: DoubleArray
    products: DoubleArray

    @classmethod
    def none(cls, dim: int) -> "Moments":
        """Of no vectors."""
        return cls(0, 0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def from_bytes(cls, through_id: int, count: int, sums: bytes, products: bytes, dim: int) -> "Moments | None":
        """As index.db has them; None for what cannot be of vectors of so many numbers."""
        if len(sums) != 8 * dim or len(products) != 8 * dim * dim or through_id < 0 or count <= 0:
            return None
        return cls(through_id, count, np.frombuffer(sums), np.frombuffer(products).reshape(dim, dim))

    def plus(self, vectors: FloatArray, through_id: int) -> "Moments":
        """With further vectors (n, dim), whose ids reach up to `through_id`."""
        return self._changed(vectors, 1, through_id)

    def minus(self, vectors: FloatArray) -> "Moments":
        """Without some of the vectors (n, dim)."""
        return self._changed(vectors, -1, self.through_id)

    def _changed(self, vectors: FloatArray, sign: int, through_id: int) -> "Moments":
        sums, products = self.sums.copy(), self.products.copy()
        for start in range(0, len(vectors), AT_ONCE):
            rows = np.rint(vectors[start : start + AT_ONCE].astype(np.float64) * GRID)
            sums += sign * rows.sum(axis=0)
            products += sign * (rows.T @ rows)
        return Moments(through_id, self.count + sign * len(vectors), sums, products)

    def of_scores(self, query: FloatArray) -> "Scores":
        """What a query (dim,) scores with the vectors."""
        asked = query.astype(np.float64) / GRID
        return Scores(self.count, float(self.sums @ asked), float(asked @ (self.products @ asked)))


@dataclass(frozen=True)
class Scores:
    """How many scores there are, their sum, and the sum of their squares."""

    count: int
    total: float
    squares: float

    @classmethod
    def of(cls, scores: FloatArray) -> "Scores":
        """Of scores (n,)."""
        exact = scores.astype(np.float64)
        return cls(len(exact), float(exact.sum()), float(exact @ exact))

    def __add__(self, other: "Scores") -> "Scores":
        return Scores(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def __sub__(self, other: "Scores") -> "Scores":
        return Scores(self.count - other.count, self.total - other.total, self.squares - other.squares)

    @property
    def mean_and_deviation(self) -> tuple[float, float]:
        """(0, 1) of no scores."""
        if self.count <= 0:
            return 0.0, 1.0
        mean = self.total / self.count
        return mean, max(self.squares / self.count - mean * mean, 0.0) ** 0.5
