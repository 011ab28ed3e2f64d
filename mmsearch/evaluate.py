"""How good answers are: the rank of the best right one, recall@k, and how sure that figure is.

A query may have several right answers, and the same caption may stand for several pictures; what counts is the rank
of the best right one. Nothing here knows encoders or indexes: it reads a table of scores.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

RESAMPLES = 1000  # of a bootstrap; its 95 % limits then move by less than 0.003 from seed to seed


def best_ranks(scores: FloatArray, right: BoolArray) -> IntArray:
    """(q,) the 1-based rank of the best right answer of each query; equal scores count as better than it.

    scores, right: (q, n), the larger the better. Raises ValueError where a query has no right answer.
    """
    if not right.any(axis=1).all():
        raise ValueError("every query needs a right answer")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # (q, 1)
    ranks: IntArray = 1 + ((scores >= best) & ~right).sum(axis=1)
    return ranks


def recall_at_k(ranks: IntArray, k: int) -> float:
    """Share of queries whose first right answer has rank <= k.

    ranks: (q,) 1-based rank of the best right answer of each query. Raises ValueError if empty.
    As in Karpathy & Fei-Fei 2015, table 2; open_clip and clip_benchmark count the same way.
    """
    if len(ranks) == 0:
        raise ValueError("no query, no recall")
    return float((ranks <= k).mean())


@dataclass(frozen=True)
class Interval:
    """A figure and the limits that hold 95 % of its resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def recall_interval(ranks: IntArray, k: int, seed: int = 0) -> Interval:
    """recall@k with the 2.5th and 97.5th percentile of queries drawn anew, with replacement (Efron 1979)."""
    draws = np.random.default_rng(seed).integers(len(ranks), size=(RESAMPLES, len(ranks)))
    low, high = np.percentile((ranks[draws] <= k).mean(axis=1), [2.5, 97.5])
    return Interval(recall_at_k(ranks, k), float(low), float(high))
