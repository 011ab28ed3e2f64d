"""Vectors as the store has them, in 16 bits, and in the 32 that are computed with."""

from collections.abc import Sequence

import numpy as np

from mmsearch.errors import IndexDamagedError
from mmsearch.store.records import FloatArray, HalfArray

_AT_ONCE = 128  # rows, so that what is made of them stays in the processor's cache
_SIGN_AND_DIGITS = np.int32(0x0FFFE000 - 2**31)
_EXPONENT = np.float32(2.0**112)  # from float16's bias, 15, to float32's, 127


def stacked(vectors: Sequence[bytes]) -> HalfArray:
    """Vectors as the store has them, one row each (n, dim) float16. Raises IndexDamagedError for different lengths.

    Joined without that, they would be cut anew: each row would hold some of its neighbours' numbers.
    """
    lengths = set(map(len, vectors))
    if len(lengths) > 1 or any(length % 2 for length in lengths):
        raise IndexDamagedError(
            f"index.db is damaged: it has vectors of {min(lengths)} and of {max(lengths)} bytes where all are as long. "
            "Restore it from a backup, or delete the index's folder and index again; your pictures are not touched."
        )
    rows = np.frombuffer(b"".join(vectors), np.float16)
    return rows.reshape(len(vectors), -1 if vectors else 0)


def floats(halves: HalfArray) -> FloatArray:
    """(n, dim) float16 -> the same numbers as float32; of what is infinite or NaN, which no vector is, something else.

    numpy converts them one by one, which takes three times as long as reading them. Their bits, moved to where float32
    has them, are the same number with another exponent: also for those too small to be normal.
    """
    bits = np.empty(halves.shape, np.int32)
    for start in range(0, len(halves), _AT_ONCE):
        part = bits[start : start + _AT_ONCE]
        part[...] = halves[start : start + _AT_ONCE].view(np.int16)
        part <<= 13
        part &= _SIGN_AND_DIGITS
        numbers = part.view(np.float32)
        numbers *= _EXPONENT
    return bits.view(np.float32)
