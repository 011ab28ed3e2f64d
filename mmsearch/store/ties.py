"""The order of scores, also of equal ones: never by the order in which items came into the index."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.store.records import IntArray

Keys: TypeAlias = Callable[[Sequence[int]], Mapping[int, Any]]  # numbers -> by what each is ordered among equals


def best_first(numbers: IntArray, scores: npt.NDArray[np.floating[Any]], keys: Keys) -> IntArray:
    """Places (n,) of the scores (n,) of numbers (n,), the highest first; keys: asked for those that are equal alone."""
    order = np.argsort(-scores, kind="stable")
    equal = scores[order[1:]] == scores[order[:-1]]
    if not equal.any():
        return order
    tied = np.flatnonzero(np.concatenate((equal, [False])) | np.concatenate(([False], equal)))
    places = order[tied]
    known = keys(numbers[places].tolist())
    by_key = sorted(places.tolist(), key=lambda place: (-scores[place], known[int(numbers[place])]))
    order[tied] = by_key
    return order
