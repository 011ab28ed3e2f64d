"""What heads are trained and measured on: rows as an index keeps them, and pairs by their places among these.

No torch here: who only measures has no use for it.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Pictures or texts as an index keeps them: vectors (n, dim) by the model's own head, features (n, features)."""

    vectors: FloatArray
    features: FloatArray

    def __len__(self) -> int:
        return len(self.vectors)

    def first(self, count: int) -> "Rows":
        """So many of them at most."""
        return Rows(self.vectors[:count], self.features[:count])

    def halves(self) -> tuple["Rows", "Rows"]:
        """Every other one of them, and the rest."""
        return Rows(self.vectors[::2], self.features[::2]), Rows(self.vectors[1::2], self.features[1::2])

    def of(self, places: IntArray) -> "Rows":
        """Some of them."""
        return Rows(self.vectors[places], self.features[places])


@dataclass(frozen=True)
class Taught:
    """Pairs by their places among pictures and texts.

    pictures, texts, weights: (n,). unmatched: (m, 2) pairs of places that are said not to belong together.
    """

    pictures: IntArray
    texts: IntArray
    weights: FloatArray
    unmatched: IntArray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def __len__(self) -> int:
        return len(self.pictures)


def table_of(pairs: Taught) -> tuple[IntArray, IntArray, BoolArray]:
    """The different pictures (p,) and texts (t,) of some pairs, and which belong together, (t, p)."""
    shown, picture_at = np.unique(pairs.pictures, return_inverse=True)
    said, text_at = np.unique(pairs.texts, return_inverse=True)
    right = np.zeros((len(said), len(shown)), bool)
    right[text_at, picture_at] = True
    return shown, said, right
