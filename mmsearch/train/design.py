"""How an encoder is built and trained: every choice in one frozen record, from flags and a TOML file.

What makes no sense together is refused here, in a sentence, before anything is read or made.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmsearch.errors import UsageError

TWO_TOWER = ("info_nce", "sigmoid", "triplet", "matched")  # rows of losses.LOSSES
OBJECTIVES = (*TWO_TOWER, "matching", "classification", "description")
FUSIONS = ("none", "concatenation", "bilstm", "cross_attention", "transformer")
TEXT_KINDS = ("bilstm", "bert", "roberta", "distilbert", "minilm", "gpt2", "open_clip")
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class EncoderDesign:
    """The parts of an encoder, and how it is taught. `EncoderDesign.of` reads and checks it."""

    # The parts. A text tower is a kind or the folder of a Hugging Face model; an image tower a timm name, or
    # open_clip:NAME. Weights: a safetensors file, "" for random ones.
    image_tower: str = "resnet18"
    text_tower: str = "bilstm"
    image_weights: str = ""
    image_size: int = 0  # pixels; 0: what the tower was made for
    dim: int = 256  # of the shared space
    text_width: int = 256
    text_layers: int = 1  # of a BiLSTM; transformers are well served by 4 or more
    text_heads: int = 4
    max_tokens: int = 32
    vocabulary: int = 8000
    dropout: float = 0.1
    fusion: str = "none"
    fusion_width: int = 256
    fusion_layers: int = 2
    # What is learned: objectives with their weights
    objective: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"info_nce": 1.0})
    # How
    steps: int = 2000
    batch: int = 128
    accumulate: int = 1  # batches whose gradients make one step
    optimizer: str = "adamw"
    schedule: str = "cosine"
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0  # of all gradients together; 0: none
    ema: float = 0.0  # decay of the moving average of the weights, which is then what is kept; 0: none
    augment: float = 1.0  # how strongly pictures are changed, 0: not at all
    precision: Precision = "auto"
    device: str = "auto"
    held_out: float = 0.1  # share of the groups that is measured on and not learned from
    interval: int = 200  # steps between checkpoints, and between looks at the held-out pairs
    seed: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "EncoderDesign":
        """Settings by their names. Raises UsageError for an unknown name, and for what makes no sense."""
        hints = typing.get_type_hints(cls)
        unknown = [name for name in settings if name not in hints]
        if unknown:
            raise UsageError(f"There is no setting '{unknown[0]}'. `train encoder --list` names them all.")
        design = cls(**{name: _read(name, hints[name], value) for name, value in settings.items()})
        design.check()
        return design

    def check(self) -> None:
        """Raises UsageError for parts that do not go together, and for numbers out of range."""
        from mmsearch.train.optimizers import OPTIMIZERS, SCHEDULES

        _one_of("fusion", self.fusion, FUSIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        for name, weight in self.objective.items():
            _one_of("objective", name, OBJECTIVES)
            if not (math.isfinite(weight) and weight > 0):
                raise UsageError(f"The objective '{name}' has the weight {weight}; weights are numbers above 0.")
        if not self.contrastive:
            raise UsageError(
                f"An encoder is searched by its two towers: add one of the objectives {', '.join(TWO_TOWER)}."
            )
        if self.fusion == "none" and (needy := {"matching", "classification"} & {*self.objective}):
            raise UsageError(
                f"The objective '{min(needy)}' reads picture and text together: choose a fusion, "
                f"one of {', '.join(FUSIONS[1:])}."
            )
        if self.fusion != "none" and not {"matching", "classification"} & {*self.objective}:
            raise UsageError(
                f"The fusion '{self.fusion}' would learn nothing: add the objective 'matching' or 'classification'."
            )
        for name in ("dim", "text_width", "text_layers", "text_heads", "fusion_width", "fusion_layers", "steps",
                     "batch", "accumulate", "interval", "vocabulary"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is a number of 1 or more, not {getattr(self, name)}.")
        if self.batch < 2:
            raise UsageError("A batch of one pair has no wrong answer to learn from: batch is 2 or more.")
        if self.max_tokens < 3:
            raise UsageError("max_tokens is 3 or more: two mark the beginning and the end.")
        if self.text_tower != "bilstm" and self.text_width % self.text_heads:
            raise UsageError(f"text_width ({self.text_width}) has to be a multiple of text_heads ({self.text_heads}).")
        if self.text_tower == "bilstm" and self.text_width % 2:
            raise UsageError(
                f"A BiLSTM reads both ways, half of its width each: text_width is even, not {self.text_width}."
            )
        if self.fusion_width % 8:
            raise UsageError(f"fusion_width is a multiple of 8, not {self.fusion_width}.")
        for name, low, high in (("dropout", 0, 0.9), ("ema", 0, 0.99999), ("augment", 0, 2), ("held_out", 0, 0.9)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is between {low} and {high}, not {getattr(self, name)}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate is a number above 0, not {self.learning_rate}.")
        if self.image_size < 0 or self.warmup_steps < 0 or self.clip_norm < 0 or self.weight_decay < 0:
            raise UsageError("image_size, warmup_steps, clip_norm and weight_decay are 0 or more.")

    @property
    def contrastive(self) -> tuple[str, ...]:
        """The objectives of the two towers."""
        return tuple(name for name in self.objective if name in TWO_TOWER)

    @property
    def architecture(self) -> dict[str, Any]:
        """What decides the shapes of the weights: a checkpoint of another architecture does not fit."""
        names = ("image_tower", "text_tower", "image_size", "dim", "text_width", "text_layers", "text_heads",
                 "max_tokens", "vocabulary", "fusion", "fusion_width", "fusion_layers")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"objective": sorted(self.objective)}


def _one_of(what: str, given: str, known: "typing.Iterable[str]") -> None:
    if given not in known:
        raise UsageError(f"There is no {what} '{given}'; there are {', '.join(known)}.")


def _read(name: str, kind: Any, value: Any) -> Any:
    """A value as its field has it. Raises UsageError."""
    if name == "objective":
        return _objective(value)
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UsageError(f"{name} is one of {', '.join(choices)}, not '{value}'.")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    said: Any = {int: "a whole number", float: "a number", str: "a word"}.get(kind, kind)
    raise UsageError(f"{name} is {said}, not {value!r}.")


def _objective(value: Any) -> Mapping[str, float]:
    """{"info_nce": 1, "matching": 0.5}, ["info_nce"], or "info_nce,matching=0.5"."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple):
        pairs = [str(part).partition("=") for part in value]
        value = {name.strip(): weight.strip() or "1" for name, _, weight in pairs}
    try:
        return types.MappingProxyType({str(name): float(weight) for name, weight in value.items()})
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"objective names what is learned, with weights, as 'info_nce,matching=0.5', not {value!r}."
        ) from None
