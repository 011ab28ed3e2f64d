"""How good answers are: the rank of the best right one, recall@k, and how sure that figure is.

A query may have several right answers, and the same caption may stand for several pictures; what counts is the rank
of the best right one. Nothing here knows encoders or indexes: it reads a table of scores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Statistic: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

CUTS = (1, 5, 10)  # k of recall@k
FLIPS = 10_000
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


def reciprocal_rank(ranks: IntArray) -> float:
    """Mean of 1 / rank (Voorhees 1999). ranks: (q,) 1-based. Raises ValueError if empty."""
    if len(ranks) == 0:
        raise ValueError("no query, no rank")
    return float((1 / ranks).mean())


def auc(matched: FloatArray, unmatched: FloatArray) -> float:
    """How often a matched pair has the higher score of two, one of each kind; a tie is half (Mann & Whitney 1947).

    matched, unmatched: (n,), (m,) scores. Raises ValueError if one is empty.
    """
    if not len(matched) or not len(unmatched):
        raise ValueError("an AUC needs pairs of both kinds")
    ordered = np.sort(unmatched)
    below, through = (np.searchsorted(ordered, matched, side) for side in ("left", "right"))
    return float((below + through).mean() / 2 / len(unmatched))


@dataclass(frozen=True)
class Interval:
    """A figure and the limits that hold 95 % of its resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def interval(values: npt.NDArray[Any], statistic: Statistic, seed: int = 0) -> Interval:
    """A statistic of values (q, ...) with the 2.5th and 97.5th percentile of queries drawn anew (Efron 1979).

    statistic: called with (resamples, q) values, gives (resamples,) figures.
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(statistic(values[draws]), [2.5, 97.5])
    return Interval(float(statistic(values[None])[0]), float(low), float(high))


@dataclass(frozen=True)
class Measured:
    """How good the answers in one direction are."""

    queries: int
    answers: int  # that they were looked for among
    recall: Mapping[int, Interval]  # @1, @5, @10
    median_rank: Interval
    reciprocal_rank: Interval  # the mean

    @property
    def finds(self) -> float:
        """recall@10."""
        return self.recall[10].value


def measured(ranks: IntArray, answers: int) -> Measured:
    """All figures of ranks (q,) among so many answers. Raises ValueError if empty."""
    return Measured(
        len(ranks),
        answers,
        {k: recall_interval(ranks, k) for k in CUTS},
        interval(ranks, lambda drawn: np.median(drawn, axis=1)),
        interval(1 / ranks, lambda drawn: drawn.mean(axis=1)),
    )


def difference(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating]) -> Interval:
    """Mean of after - before, query by query, with its 95 % interval; (q,) each, of the same queries."""
    return interval(after - before, lambda drawn: drawn.mean(axis=1))


def paired_p(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], seed: int = 0) -> float:
    """How often chance alone makes a mean difference as large: signs of the differences flipped at random, two-sided.

    Fisher's permutation test for pairs (1935), 10,000 draws; never 0.
    """
    changes = (after - before)[after != before]
    if not len(changes):
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(FLIPS, len(changes)))
    as_large = np.abs(signs @ changes) >= abs(changes.sum()) - 1e-12
    return float((1 + as_large.sum()) / (1 + FLIPS))


def recall_interval(ranks: IntArray, k: int, seed: int = 0) -> Interval:
    """recall@k with the 2.5th and 97.5th percentile of queries drawn anew, with replacement (Efron 1979)."""
    draws = np.random.default_rng(seed).integers(len(ranks), size=(RESAMPLES, len(ranks)))
    low, high = np.percentile((ranks[draws] <= k).mean(axis=1), [2.5, 97.5])
    return Interval(recall_at_k(ranks, k), float(low), float(high))
