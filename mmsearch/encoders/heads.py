"""The projection heads: from the features that a tower gives to unit vectors in the shared space.

They stand apart from the towers so that an index can keep features and move to other heads without reading a picture
again. A kind of head is a row of `HEADS`: a function of features and of the head's own tensors.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.errors import ModelError

FloatArray: TypeAlias = npt.NDArray[np.float32]
Tensors: TypeAlias = Mapping[str, FloatArray]
Head: TypeAlias = Callable[[FloatArray, Tensors], FloatArray]

AT_ONCE = 256  # pictures whose crowd is counted at once


def identity(features: FloatArray, tensors: Tensors) -> FloatArray:
    """The features are the vector already."""
    return features


def linear(features: FloatArray, tensors: Tensors) -> FloatArray:
    """`weight` (features, dim), and a `bias` (dim,) where there is one."""
    vectors = features @ tensors["weight"]  # (n, dim)
    return vectors + tensors["bias"] if "bias" in tensors else vectors


def conse(features: FloatArray, tensors: Tensors) -> FloatArray:
    """A classifier's likeliest classes, each as its vector, weighted by their probabilities.

    `weight` (read, classes), `bias` (classes,), `classes` (classes, dim), `temperature` and `top` (how many classes),
    both (1,). The classifier reads the first features, as many as its weight has rows. ConSE, Norouzi et al. 2013; the
    temperature is ours.
    """
    read = features[:, : len(tensors["weight"])]
    logits = (read @ tensors["weight"] + tensors["bias"]) / tensors["temperature"]  # (n, classes)
    top = min(int(tensors["top"][0]), logits.shape[1])
    least = np.partition(logits, -top, axis=1)[:, -top, None]  # (n, 1), the smallest logit that counts
    shares = np.where(logits >= least, np.exp(logits - logits.max(axis=1, keepdims=True)), np.float32(0))
    vectors: FloatArray = shares @ tensors["classes"]  # (n, dim); a common factor is lost in the length
    return vectors


def mlp(features: FloatArray, tensors: Tensors) -> FloatArray:
    """One hidden layer: `hidden.weight` (features, hidden), `out.weight` (hidden, dim), and their biases."""
    hidden: FloatArray = features @ tensors["hidden.weight"]  # (n, hidden)
    hidden += tensors["hidden.bias"]
    np.maximum(hidden, np.float32(0), out=hidden)
    vectors: FloatArray = hidden @ tensors["out.weight"]  # (n, dim)
    vectors += tensors["out.bias"]
    return vectors


def conse_and_mlp(features: FloatArray, tensors: Tensors) -> FloatArray:
    """What a classifier knows, and `share` (1,) times what was learned beside it; both have length 1 before that."""
    vectors: FloatArray = unit_rows(conse(features, tensors)) + tensors["share"] * unit_rows(mlp(features, tensors))
    return vectors


def uncrowded(features: FloatArray, tensors: Tensors) -> FloatArray:
    """`conse_and_mlp`, and beside it how near a picture is to texts of all kinds: the nearer, the less it answers.

    A picture that is near to very many texts is found by too many words (a hub). What is written by `_uncrowd` lies in
    a direction in which texts have a constant; `beside` (dim,), where there is one, is the constant for their own.
    """
    vectors = unit_rows(conse_and_mlp(features, tensors))
    _uncrowd(vectors, tensors)
    if "beside" in tensors:
        vectors += tensors["beside"]
    return vectors


def uncrowded_text(features: FloatArray, tensors: Tensors) -> FloatArray:
    """`constant`, and beside it how near a text is to pictures of all kinds, as `uncrowded` for texts."""
    vectors = unit_rows(features)
    _uncrowd(vectors, tensors)
    vectors += tensors["beside"]
    return vectors


def _uncrowd(vectors: FloatArray, tensors: Tensors) -> None:
    """Write into unit vectors (n, dim) how crowded it is around each.

    `crowd` (m, dim) times `crowd.scale` (1,): unit rows of the other kind that stand for what may be asked, or found;
    `crowd.nearest` (1,): how many of them count; `crowd.usual` (1,): how near they usually are; `crowd.axis` (dim,):
    where the difference is written, a direction in which the other kind has the same small constant and nothing else.
    CSLS, Conneau et al. 2018, with known items in the place of the queries.
    """
    count = int(tensors["crowd.nearest"][0])
    for start in range(0, len(vectors), AT_ONCE):
        some = vectors[start : start + AT_ONCE]
        near = np.partition(some @ tensors["crowd"].T, -count, axis=1)[:, -count:].mean(axis=1, keepdims=True)  # (n, 1)
        some += (near * tensors["crowd.scale"] - tensors["crowd.usual"]) * tensors["crowd.axis"]


def constant(features: FloatArray, tensors: Tensors) -> FloatArray:
    """The features, scaled to length 1, and the same `beside` (dim,) for all of them."""
    vectors: FloatArray = unit_rows(features) + tensors["beside"]
    return vectors


HEADS: dict[str, Head] = {
    "identity": identity,
    "constant": constant,
    "linear": linear,
    "mlp": mlp,
    "conse": conse,
    "conse_and_mlp": conse_and_mlp,
    "uncrowded": uncrowded,
    "uncrowded_text": uncrowded_text,
}


@dataclass(frozen=True)
class TrainedHeads:
    """What was learned for an index beside the model's own heads, which stay as they are.

    name: what the user calls it. tensors: for each tower that learned something, those of `linear` or `mlp` under
    "image." or "text.". What they give is added to the unit vector of the model's own head: zeros change nothing.
    """

    name: str
    hash: str  # of the tensors
    tensors: Tensors

    def project(self, tower: str, vectors: FloatArray, features: FloatArray) -> FloatArray:
        """Vectors (n, dim) by the model's own head and features (n, features) -> (n, dim) float32, rows of length 1.

        Raises ModelError for features of another length than those that the heads were trained on.
        """
        mine = {key.partition(".")[2]: each for key, each in self.tensors.items() if key.startswith(f"{tower}.")}
        if not mine:
            return vectors
        width = len(mine["hidden.weight" if "hidden.weight" in mine else "weight"])
        if features.shape[1] != width:
            raise ModelError(
                f"The heads '{self.name}' read features of {width} numbers, and these {tower}s have "
                f"{features.shape[1]}. Give them features of the model of this index, or turn the heads off: "
                "mmsearch heads off"
            )
        learned = HEADS["mlp" if "hidden.weight" in mine else "linear"](np.asarray(features, np.float32), mine)
        learned += vectors
        return unit_rows(learned)

    @classmethod
    def of(cls, name: str, tensors: Tensors) -> "TrainedHeads":
        """Heads with their hash."""
        return cls(name, hashlib.sha256(_saved(tensors)).hexdigest()[:16], tensors)

    def to_bytes(self) -> bytes:
        """Safetensors."""
        return _saved(self.tensors)

    @classmethod
    def from_bytes(cls, name: str, hash_: str, data: bytes) -> "TrainedHeads":
        """Raises ModelError for anything that is not what `to_bytes` wrote; nothing is unpickled."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return cls(name, hash_, load(data))
        except (SafetensorError, ValueError, KeyError) as error:
            raise ModelError(
                f"The heads '{name}' are damaged: {error}. Go back to the model's own with `mmsearch heads off`, and "
                "train them again."
            ) from error


def _saved(tensors: Tensors) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()})


def project(kind: str, features: FloatArray, tensors: Tensors) -> FloatArray:
    """(n, features) -> (n, dim) float32, rows of length 1; a row of zeros stays one.

    Raises KeyError for an unknown kind.
    """
    return unit_rows(HEADS[kind](np.asarray(features, dtype=np.float32), tensors))


def unit_rows(rows: FloatArray) -> FloatArray:
    """Every row scaled to length 1; a row of zeros has no direction and stays as it is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = np.divide(rows, lengths, out=np.zeros_like(rows, dtype=np.float32), where=lengths > 0)
    return unit
