"""Heads that begin as what a model knows: its own vectors plus something learned, which is nothing at first.

An index keeps the vectors of the model's own heads and the features of its towers, so that a step of training costs
small matrix products and no picture. Mixing old and new weights (WiSE-FT, Wortsman et al. 2022) is here to scale what
was learned: 0 is the old model to the last bit, 1 the new one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.errors import TrainingError, UsageError
from mmsearch.evaluate import best_ranks, recall_at_k, reciprocal_rank
from mmsearch.train.losses import LABEL_LOSSES, LOSSES, TEMPERED
from mmsearch.train.optimizers import OPTIMIZERS, SCHEDULES, optimizer, schedule
from mmsearch.train.rows import Rows, Taught, table_of
from mmsearch.train.settings import with_values

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Tensors: TypeAlias = dict[str, FloatArray]

KINDS = ("mlp", "linear")
TOWERS = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}
DEVIATION_FLOOR = 1e-3  # a feature that never changes is not blown up
LARGEST_SCALE = 100.0  # as CLIP clips it
REMEMBERED_AT_ONCE = 256  # rows of what is to stay as it is, beside each batch
READ_MOST = 512  # numbers of a feature that a head reads


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained. The defaults were chosen on symbols and icons (tests/benchmarks/heads.py).

    head: "mlp" (one hidden layer) or "linear". towers: which of them learn. temperature: where the learned one begins.
    warmup: share of all steps. patience: epochs without a better held-out recall@10 after which it ends. pull: how
    strongly what is beside the pairs is kept where it is. held_out: share of the groups that nothing is learned from;
    half of it chooses, half of it is reported. general: the least share of general answers that has to stay.
    """

    head: str = "mlp"
    towers: str = "both"
    loss: str = "info_nce"
    optimizer: str = "adamw"
    schedule: str = "cosine"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    batch: int = 512
    epochs: int = 30
    patience: int = 8
    hidden: int = 256
    dropout: float = 0.5
    temperature: float = 0.05
    pull: float = 10.0
    held_out: float = 0.2
    general: float = 0.97
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for a setting that makes no sense."""
        losses = [*LOSSES, "cross_entropy"]
        for name, known in (
            ("head", KINDS),
            ("towers", TOWERS),
            ("loss", losses),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}.")
        for name, least, most in (
            ("learning_rate", 1e-7, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("warmup", 0.0, 1.0),
            ("batch", 2, 65_536),
            ("epochs", 1, 10_000),
            ("patience", 1, 10_000),
            ("hidden", 1, 16_384),
            ("dropout", 0.0, 0.95),
            ("temperature", 0.01, 10.0),
            ("pull", 0.0, 1e6),
            ("held_out", 0.02, 0.8),
            ("general", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"{name} is a number from {least:g} to {most:g}, not {value}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "HeadSettings":
        """From names and values, as a TOML file has them. Raises UsageError for a name or type that is none."""
        return with_values(cls(), given)


@dataclass(frozen=True)
class Epoch:
    """How far a training is."""

    number: int  # 1-based
    epochs: int
    loss: float
    recall: float  # @10 on what chooses, text -> image
    best: float


@dataclass(frozen=True)
class Reading:
    """Features as a head reads them: standardised, and of many only the directions in which these differ most.

    mean, deviation: (features,). basis: (features, read), orthonormal columns; None where all are read. A fixed linear
    map, which the head's first layer takes in when it is done.
    """

    mean: FloatArray
    deviation: FloatArray
    basis: FloatArray | None

    @classmethod
    def of(cls, features: FloatArray, seed: int) -> "Reading":
        """From those that are learned from (n, features)."""
        deviation = np.maximum(features.std(axis=0), np.float32(DEVIATION_FLOOR))
        whole = cls(features.mean(axis=0), deviation, None)
        if features.shape[1] <= READ_MOST or len(features) <= READ_MOST:
            return whole
        random = np.random.default_rng(seed)
        some = whole.read(features[random.choice(len(features), min(len(features), 4 * READ_MOST), replace=False)])
        # The range finder of Halko et al. 2011, with one power iteration: what it leaves out is noise to a small head,
        # and costs four times the time
        spread = some.T @ (some @ random.standard_normal((some.shape[1], READ_MOST), np.float32))
        basis, _ = np.linalg.qr(spread)
        return cls(whole.mean, deviation, np.asarray(basis, np.float32))

    def read(self, features: FloatArray) -> FloatArray:
        """(n, features) -> (n, read)."""
        standard: FloatArray = (features - self.mean) / self.deviation
        return standard if self.basis is None else np.asarray(standard @ self.basis, np.float32)


class Residual(nn.Module):
    """vector + what is learned from the feature, as unit rows; what is learned begins as zeros."""

    def __init__(self, rows: Rows, settings: HeadSettings) -> None:
        super().__init__()
        self.reading = Reading.of(rows.features, settings.seed)
        basis = self.reading.basis
        features, dim = rows.features.shape[1] if basis is None else basis.shape[1], rows.vectors.shape[1]
        self.hidden = nn.Linear(features, settings.hidden) if settings.head == "mlp" else None
        self.dropout = nn.Dropout(settings.dropout)
        self.out = nn.Linear(settings.hidden if settings.head == "mlp" else features, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def learned(self, seen: Tensor) -> Tensor:
        """Features as they were read (n, read) -> (n, dim), to be added to the vectors."""
        if self.hidden is not None:
            seen = functional.relu(self.hidden(seen))
        learned: Tensor = self.out(self.dropout(seen))
        return learned

    def tensors(self, share: float) -> Tensors:
        """As `encoders.heads` reads them; standardisation and share are folded in."""
        first = self.out if self.hidden is None else self.hidden
        weight = first.weight.detach()  # (out, read)
        if self.reading.basis is not None:
            weight = weight @ torch.from_numpy(self.reading.basis).T
        weight = weight / torch.from_numpy(self.reading.deviation)
        bias = first.bias.detach() - weight @ torch.from_numpy(self.reading.mean)
        if self.hidden is None:
            return {"weight": _array(share * weight.T), "bias": _array(share * bias)}
        return {
            "hidden.weight": _array(weight.T),
            "hidden.bias": _array(bias),
            "out.weight": _array(share * self.out.weight.detach().T),
            "out.bias": _array(share * self.out.bias.detach()),
        }


def _array(tensor: Tensor) -> FloatArray:
    return np.ascontiguousarray(tensor.numpy(), np.float32)


class Heads:
    """The heads of both towers while they learn."""

    def __init__(self, pictures: Rows, texts: Rows, settings: HeadSettings) -> None:
        rows = {"image": pictures, "text": texts}
        self.towers = {tower: Residual(rows[tower], settings) for tower in TOWERS[settings.towers]}

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for tower in self.towers.values() for parameter in tower.parameters()]

    def read(self, tower: str, rows: Rows) -> Rows:
        """With the features as the tower's head reads them; once for all of a training."""
        if tower not in self.towers:
            return rows
        return Rows(rows.vectors, np.ascontiguousarray(self.towers[tower].reading.read(rows.features), np.float32))

    def vectors(self, tower: str, vectors: Tensor, seen: Tensor, share: float = 1.0) -> Tensor:
        """Vectors (n, dim) and features as they were read (n, read) -> (n, dim) unit rows."""
        if tower not in self.towers:
            return vectors
        return functional.normalize(vectors + share * self.towers[tower].learned(seen), dim=1)

    def made(self, tower: str, read: Rows, share: float = 1.0) -> FloatArray:
        """(n, dim) float32 unit rows, of rows that were read."""
        with torch.inference_mode():
            made = self.vectors(tower, *_tensors(read), share)
        return np.asarray(made.numpy(), np.float32)

    def rows(self, tower: str, rows: Rows, share: float = 1.0) -> FloatArray:
        """(n, dim) float32 unit rows."""
        return self.made(tower, self.read(tower, rows), share)

    def tensors(self, share: float = 1.0) -> Tensors:
        """Of both towers, under "image." and "text."; none where nothing is mixed in."""
        if not share:
            return {}
        return {
            f"{name}.{key}": each for name, tower in self.towers.items() for key, each in tower.tensors(share).items()
        }

    def train(self, learning: bool) -> None:
        """Dropout on or off."""
        for tower in self.towers.values():
            tower.train(learning)

    def state(self) -> list[dict[str, Tensor]]:
        """A copy of all that learns."""
        return [{key: each.clone() for key, each in tower.state_dict().items()} for tower in self.towers.values()]

    def restore(self, state: Sequence[dict[str, Tensor]]) -> None:
        """Back to a copy."""
        for tower, each in zip(self.towers.values(), state, strict=True):
            tower.load_state_dict(each)


def fit(
    pictures: Rows,
    texts: Rows,
    taught: Taught,
    chooses: Taught,
    beside: Mapping[str, Rows],
    settings: HeadSettings,
    tell: Callable[[Epoch], None] = lambda epoch: None,
) -> Heads:
    """Heads as they were in their best epoch, by recall@10 on what chooses; the last one where nothing does.

    beside: "image" and "text" rows that are no pairs, which the heads are pulled to leave as they are (Li et al. 2018,
    L2-SP, on answers instead of weights). The same input gives the same heads on one machine. Raises TrainingError
    where the loss is no number.
    """
    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    learned_from = Rows(pictures.vectors, pictures.features).of(np.unique(taught.pictures))
    heads = Heads(learned_from, texts.of(np.unique(taught.texts)), settings)
    scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)), requires_grad=settings.loss in TEMPERED)
    offset = nn.Parameter(torch.zeros(1))  # the cosine at which a pair is as likely matched as not, times the scale
    moved = optimizer(
        settings.optimizer, [*heads.parameters(), scale, offset], settings.learning_rate, settings.weight_decay
    )
    size = min(settings.batch, len(taught))
    steps = settings.epochs * max(1, len(taught) // size)
    rates = schedule(settings.schedule, moved, steps, round(settings.warmup * steps))
    pictures, texts = heads.read("image", pictures), heads.read("text", texts)
    of_pictures, of_texts = _tensors(pictures), _tensors(texts)
    kept = {tower: _tensors(heads.read(tower, rows)) for tower, rows in beside.items() if len(rows)}
    belongs = _texts_of(taught)
    classes = np.unique(taught.texts) if settings.loss == "cross_entropy" else None
    best, best_state, since = (-1.0, -1.0), heads.state(), 0
    for number in range(1, settings.epochs + 1):
        heads.train(True)
        total = 0.0
        batches = 0
        for batch in _batches(taught, size, random):
            shown, said = taught.pictures[batch], taught.texts[batch]
            factor = scale.exp().clamp(max=LARGEST_SCALE) if settings.loss in (*TEMPERED, "cross_entropy") else 1.0
            images = heads.vectors("image", *_at(of_pictures, shown))
            if classes is not None:
                words = heads.vectors("text", *_at(of_texts, classes))
                labels = torch.from_numpy(np.searchsorted(classes, said))
                weights = torch.from_numpy(taught.weights[batch])
                loss = LABEL_LOSSES["cross_entropy"](factor * images @ words.T, labels, weights)
            else:
                words = heads.vectors("text", *_at(of_texts, said))
                loss = LOSSES[settings.loss](factor * images @ words.T, _alike(shown, said, belongs))
            if len(taught.unmatched):
                loss = loss + _of_unmatched(heads, of_pictures, of_texts, taught, scale, offset, random)
            loss = loss + settings.pull * _pull(heads, kept, random)
            moved.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            moved.step()
            rates.step()
            total, batches = total + loss.item(), batches + 1
        if not math.isfinite(total):
            raise TrainingError(
                f"The loss is no number any more in epoch {number}. Take a smaller learning_rate than "
                f"{settings.learning_rate:g}; the index is as it was."
            )
        heads.train(False)
        found = _recall(heads, pictures, texts, chooses, 1.0) if len(chooses) else (0.0, float(number))
        if found > best:
            best, best_state, since = found, heads.state(), 0
        else:
            since += 1
        tell(Epoch(number, settings.epochs, total / batches, found[0], best[0]))
        if since >= settings.patience:
            break
    heads.restore(best_state)
    return heads


def held_out_recall(
    heads: Heads, pictures: Rows, texts: Rows, asked: Taught, share: float = 1.0
) -> tuple[float, float]:
    """recall@10 and mean reciprocal rank, text -> image, among the pictures of these pairs."""
    shown, said, _ = table_of(asked)
    places = Taught(np.searchsorted(shown, asked.pictures), np.searchsorted(said, asked.texts), asked.weights)
    return _recall(heads, heads.read("image", pictures.of(shown)), heads.read("text", texts.of(said)), places, share)


def _recall(heads: Heads, pictures: Rows, texts: Rows, asked: Taught, share: float) -> tuple[float, float]:
    shown, said, right = table_of(asked)
    scores = heads.made("text", texts.of(said), share) @ heads.made("image", pictures.of(shown), share).T
    ranks = best_ranks(scores, right)
    return recall_at_k(ranks, 10), reciprocal_rank(ranks)


def _tensors(rows: Rows) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows.vectors), torch.from_numpy(rows.features)


def _at(rows: tuple[Tensor, Tensor], places: IntArray) -> tuple[Tensor, Tensor]:
    index = torch.from_numpy(places)
    return rows[0][index], rows[1][index]


def _batches(taught: Taught, size: int, random: np.random.Generator) -> Iterator[IntArray]:
    """An epoch: every pair as often as its weight says, on average; the last part, too small for a batch, is left."""
    shares = taught.weights / taught.weights.sum()
    even = bool(np.all(taught.weights == taught.weights[0]))
    order = random.permutation(len(taught)) if even else random.choice(len(taught), len(taught), p=shares)
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def _texts_of(taught: Taught) -> dict[int, list[int]]:
    """picture -> its texts."""
    texts: dict[int, list[int]] = {}
    for picture, text in zip(taught.pictures.tolist(), taught.texts.tolist(), strict=True):
        texts.setdefault(picture, []).append(text)
    return texts


def _alike(shown: IntArray, said: IntArray, belongs: Mapping[int, Sequence[int]]) -> Tensor:
    """(n, n) where a text belongs to another pair's picture too; never on the diagonal."""
    alike = np.zeros((len(shown), len(said)), bool)
    columns: dict[int, list[int]] = {}
    for column, text in enumerate(said.tolist()):
        columns.setdefault(text, []).append(column)
    for row, picture in enumerate(shown.tolist()):
        for text in belongs[picture]:
            alike[row, columns.get(text, [])] = True
    np.fill_diagonal(alike, False)
    return torch.from_numpy(alike)


def _of_unmatched(
    heads: Heads,
    pictures: tuple[Tensor, Tensor],
    texts: tuple[Tensor, Tensor],
    taught: Taught,
    scale: Tensor,
    offset: Tensor,
    random: np.random.Generator,
) -> Tensor:
    """The log loss of pairs that are said not to match, and of as many that do."""
    count = min(len(taught.unmatched), REMEMBERED_AT_ONCE)
    wrong = taught.unmatched[random.choice(len(taught.unmatched), count, replace=False)]
    right = random.choice(len(taught), min(count, len(taught)), replace=False)
    shown = np.concatenate((wrong[:, 0], taught.pictures[right]))
    said = np.concatenate((wrong[:, 1], taught.texts[right]))
    cosines = (heads.vectors("image", *_at(pictures, shown)) * heads.vectors("text", *_at(texts, said))).sum(dim=1)
    labels = torch.cat((torch.zeros(len(wrong)), torch.ones(len(right))))
    return LABEL_LOSSES["bce"](scale.exp().clamp(max=LARGEST_SCALE) * cosines - offset, labels, None)


def _pull(heads: Heads, kept: Mapping[str, tuple[Tensor, Tensor]], random: np.random.Generator) -> Tensor:
    """How far, squared, the heads move what is to stay: the mean over rows, summed over towers."""
    pull = torch.zeros(())
    for tower, (vectors, features) in kept.items():
        if tower in heads.towers:
            rows = torch.from_numpy(random.integers(len(vectors), size=min(len(vectors), REMEMBERED_AT_ONCE)))
            pull = pull + heads.towers[tower].learned(features[rows]).square().sum(dim=1).mean()
    return pull
