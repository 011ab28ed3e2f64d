"""The projection heads as torch modules, and as the tensors that a bundle keeps of them."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.encoders.heads import mlp

FloatArray: TypeAlias = npt.NDArray[np.float32]


class MlpHead(nn.Module):
    """Features -> unit vectors through one hidden layer. `encoders.heads.mlp` is the same in numpy.

    mean, deviation: (features,) of the features it will be trained on; it reads them standardised, so that one learning
    rate suits every tower.
    """

    def __init__(self, mean: FloatArray, deviation: FloatArray, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("deviation", torch.from_numpy(deviation))
        self.hidden = nn.Linear(len(mean), hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, dim)

    def forward(self, features: Tensor) -> Tensor:
        standard = (features - self.mean) / self.deviation  # (n, features)
        return functional.normalize(self.out(self.dropout(functional.relu(self.hidden(standard)))), dim=1)  # (n, dim)

    def tensors(self) -> Mapping[str, FloatArray]:
        """As `encoders.heads.mlp` reads them; the standardisation is part of the first layer."""
        first = (self.hidden.weight / self.deviation).detach()  # (hidden, features)
        return {
            "hidden.weight": first.T.contiguous().numpy(),
            "hidden.bias": (self.hidden.bias - first @ self.mean).detach().numpy(),
            "out.weight": self.out.weight.detach().T.contiguous().numpy(),
            "out.bias": self.out.bias.detach().numpy(),
        }


def merged(heads: Sequence[MlpHead], features: FloatArray) -> dict[str, FloatArray]:
    """The tensors of one head that answers as the mean of several (Lakshminarayanan et al. 2017, deep ensembles).

    Their hidden layers stand side by side. Each counts the same: what it gives for `features` (n, features) has a mean
    length of 1 before the sum.
    """
    parts = [dict(head.tensors()) for head in heads]
    for part in parts:
        length = float(np.linalg.norm(mlp(features, part), axis=1).mean()) * len(heads)
        part["out.weight"], part["out.bias"] = part["out.weight"] / length, part["out.bias"] / length
    return {
        "hidden.weight": np.concatenate([part["hidden.weight"] for part in parts], axis=1),
        "hidden.bias": np.concatenate([part["hidden.bias"] for part in parts]),
        "out.weight": np.concatenate([part["out.weight"] for part in parts], axis=0),
        "out.bias": np.sum([part["out.bias"] for part in parts], axis=0),
    }
