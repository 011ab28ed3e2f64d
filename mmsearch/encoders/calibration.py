"""From how far a text stands out as an answer to a picture, to the probability that it belongs to it.

Platt 1999: a logistic curve fitted on pairs whose label is known. A bundle that was trained here carries its own.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

RIDGE = np.array((1e-4, 1e-6))  # keeps the curve finite where the pairs can be told apart without a mistake
ROUNDS = 50  # of Newton's method, which is done after ten


@dataclass(frozen=True)
class Calibration:
    """1 / (1 + exp(-(slope * x + intercept)))."""

    slope: float
    intercept: float

    def probability(self, stands_out: FloatArray) -> FloatArray:
        """(n,) standard deviations -> (n,) probabilities."""
        likely: FloatArray = 1 / (1 + np.exp(-np.clip(self.slope * stands_out + self.intercept, -30, 30)))
        return likely

    @classmethod
    def fitted(cls, matched: FloatArray, unmatched: FloatArray) -> "Calibration":
        """The curve of least log loss, where matched and unmatched pairs weigh half each, however many there are.

        matched, unmatched: (n,), (m,) standard deviations. Raises ValueError where one of them is empty.
        """
        if not len(matched) or not len(unmatched):
            raise ValueError("a calibration needs pairs of both kinds")
        read = np.concatenate((matched, unmatched)).astype(np.float64)
        rows = np.stack((read, np.ones_like(read)), axis=1)  # (n + m, 2)
        labels = np.repeat((1.0, 0.0), (len(matched), len(unmatched)))
        weights = np.repeat((0.5 / len(matched), 0.5 / len(unmatched)), (len(matched), len(unmatched)))
        found = np.zeros(2)
        for _ in range(ROUNDS):
            likely = 1 / (1 + np.exp(-np.clip(rows @ found, -30, 30)))
            slopes = rows.T @ (weights * (likely - labels)) + RIDGE * found
            curvature = (rows * (weights * likely * (1 - likely))[:, None]).T @ rows + np.diag(RIDGE)
            found -= np.linalg.solve(curvature, slopes)
        return cls(round(float(found[0]), 4), round(float(found[1]), 4))
