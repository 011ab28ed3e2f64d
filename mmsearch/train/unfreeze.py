"""The last blocks of an open_clip model's towers, trained on pairs; the result is a model of its own.

Trained heads read what the towers show; where a domain needs what these do not show, their last blocks have to learn
too. The rest stays as it is. Old and new weights are mixed (WiSE-FT, Wortsman et al. 2022): half of the held-out pairs
chooses how much of what was learned goes in, the other half says what it is worth. Norms keep their statistics and
nothing drops out, so that a block reads in training what it reads in a search.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.encoders.openclip import Source, parse_name
from mmsearch.errors import ModelError, TrainingError, UsageError
from mmsearch.sources.pairs import GUESSED, PairColumns, read_pairs
from mmsearch.sources.tables import BadRow
from mmsearch.train.comparing import HeldOut, read_held_out
from mmsearch.train.design import EncoderDesign
from mmsearch.train.encoder import SUFFIX, Moment, Say, Tell, recall_of
from mmsearch.train.examples import Batches, Example, Examples, gather
from mmsearch.train.losses import LARGEST_SCALE, info_nce
from mmsearch.train.model import Shown, alike_in
from mmsearch.train.optimizers import optimizer, schedule
from mmsearch.train.settings import with_values

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of what was learned
# Where towers keep their blocks: open_clip's transformers, timm's, Hugging Face's
BLOCKS = ("transformer.resblocks", "trunk.blocks", "trunk.stages", "transformer.encoder.layer", "transformer.layer")
# and what follows them
AFTER = (
    "ln_post",
    "ln_final",
    "proj",
    "text_projection",
    "head",
    "trunk.norm",
    "trunk.fc_norm",
    "trunk.head",
    "pooler",
)


@dataclass(frozen=True)
class UnfreezeSettings:
    """How the last blocks learn. held_out: share of the groups that nothing is learned from."""

    epochs: int = 5
    batch: int = 64
    learning_rate: float = 2e-5
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    augment: float = 0.3
    held_out: float = 0.15
    seed: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "UnfreezeSettings":
        """Settings by their names. Raises UsageError for an unknown name, and for what makes no sense."""
        made = with_values(cls(), settings)
        if made.epochs < 1 or made.batch < 2:
            raise UsageError("epochs is 1 or more, and batch 2 or more: one pair alone has no wrong answer.")
        if not (0 < made.learning_rate < 1 and made.weight_decay >= 0 and made.augment >= 0):
            raise UsageError("learning_rate is above 0 and below 1; weight_decay and augment are 0 or more.")
        if not (0 < made.held_out < 0.9 and 0 <= made.warmup < 1):
            raise UsageError("held_out is between 0 and 0.9, warmup between 0 and 1.")
        return made


@dataclass(frozen=True)
class UnfreezeReport:
    """What came out. recall: @10, the mean of both directions, of held-out pairs that chose nothing.

    folder: None where nothing that was learned helped, and no model was written.
    """

    folder: Path | None
    base: str
    blocks: int
    learned: int  # numbers that learned
    pairs: int
    held_out: int
    before: float
    after: float
    share: float  # of what was learned that is mixed in
    steps: int
    seconds: float
    skipped: tuple[BadRow, ...]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"folder": self.folder and os.fspath(self.folder), "skipped": len(self.skipped)}


def unfreeze(
    model: str,
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    blocks: int,
    settings: UnfreezeSettings,
    *,
    columns: PairColumns = GUESSED,
    tell: Tell = lambda moment: None,
    say: Say = lambda line: None,
) -> UnfreezeReport:
    """Trains the last blocks of a model on pairs, and writes the result as a bundle into a folder.

    model: an open_clip model, as `encoders.openclip` reads names. say: gets lines for a person; how long it will take,
    before it starts. The weights also go to FOLDER.training, as open_clip's `local-dir:` reads them. Raises UsageError,
    SourceError, ModelError, TrainingError.
    """
    if blocks < 1:
        raise UsageError(f"--unfreeze takes how many blocks learn, 1 or more, not {blocks}.")
    target = Path(folder)
    training = target.with_name(target.name + SUFFIX)
    if target.exists():
        raise UsageError(f"{target} is there already. Name another folder for the model.")
    source = _open_clip_source(model)
    import open_clip

    from mmsearch.encoders import export

    towers, tokenizer = export.load(source.model, source.weights, say)
    learning = unfrozen(towers, blocks, model)
    mean, deviation, spec = export.pixels_of(towers.visual.preprocess_cfg)
    design = EncoderDesign(
        batch=settings.batch, augment=settings.augment, held_out=settings.held_out, seed=settings.seed
    )
    try:
        training.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{training} cannot be made: {error.strerror or error}.") from error
    pairs = (pair for each in sources for pair in read_pairs(each, columns))
    try:
        examples = gather(pairs, design, spec, training, say)
        chooses, reports = _halves(examples.held_out)
    except BaseException:
        with suppress(OSError):  # it is not empty: somebody's
            training.rmdir()
        raise
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run(towers.to(device), tokenizer, export.Normalised(nn.Identity(), mean, deviation).to(device), device)
    before = recall_of(run.read(examples, reports))
    old = {name: tensor.detach().clone() for name, tensor in learning.items()}
    started = time.monotonic()
    steps = _learn(run, learning, examples, chooses, design, settings, tell, say)
    share = _mixed(learning, old, lambda: recall_of(run.read(examples, chooses)))
    after = recall_of(run.read(examples, reports))
    report = UnfreezeReport(
        target if share else None, source.name, blocks, sum(tensor.numel() for tensor in learning.values()),
        len(examples.learned), len(examples.held_out), before, after, share, steps, time.monotonic() - started,
        examples.skipped,
    )  # fmt: skip
    if share:
        config = open_clip.get_model_config(source.model)
        plain = towers.cpu().requires_grad_(False)
        _save(plain, tokenizer, config, training / "open_clip")
        say("writing the model")
        export.write_model(plain, tokenizer, config, target, name=target.name, about=_about(report), progress=say)
    return report


def unfrozen(model: nn.Module, blocks: int, name: str) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name: of the last blocks of both towers, and of what follows these.

    Raises UsageError for towers that have no such blocks, or fewer.
    """
    model.requires_grad_(False)
    towers = {"image": model.get_submodule("visual"), "text": getattr(model, "text", model)}
    for kind, tower in towers.items():
        found = next((each for path in BLOCKS if (each := _part(tower, path)) is not None), None)
        if not isinstance(found, nn.Sequential | nn.ModuleList):
            raise UsageError(f"The {kind} tower of {name} is not made of blocks that can be unfrozen one by one.")
        if blocks > len(found):
            raise UsageError(f"The {kind} tower of {name} has {len(found)} blocks; --unfreeze asks for {blocks}.")
        for block in list(found)[-blocks:]:
            block.requires_grad_(True)
        for path in AFTER:
            after = _part(tower, path)
            if isinstance(after, nn.Module | nn.Parameter):
                after.requires_grad_(True)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _part(module: nn.Module, path: str) -> Any:
    part: Any = module
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


class _Run:
    """A model in torch, for pixels and texts as they are."""

    def __init__(self, model: Any, tokenizer: Any, normal: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        self._tokenizer, self._normal = tokenizer, normal

    def rows(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """(n, t) int64 tokens."""
        tokens: npt.NDArray[np.int64] = self._tokenizer(list(texts)).numpy()
        return tokens

    def images(self, pixels: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> (n, dim) of length 1."""
        return functional.normalize(self.model.encode_image(self._normal(pixels.to(self.device))), dim=1)

    def texts(self, input_ids: Tensor) -> Tensor:
        """(n, t) int64 -> (n, dim) of length 1."""
        return functional.normalize(self.model.encode_text(input_ids.to(self.device)), dim=1)

    def loss(self, batch: Shown) -> Tensor:
        """InfoNCE at the model's own temperature."""
        scale = self.model.logit_scale.exp().clamp(max=LARGEST_SCALE)
        scores = self.images(batch.pixels) @ self.texts(batch.input_ids).T
        return info_nce(scores * scale, alike_in(batch).to(self.device))

    def read(self, examples: Examples, some: Sequence[Example]) -> HeldOut:
        """The vectors of some examples, as the model is now."""
        pairs = [(one.picture, one.text) for one in some]
        return read_held_out(
            examples.pixels, pairs, self.images, lambda texts: self.texts(torch.from_numpy(self.rows(texts)))
        )


def _learn(
    run: _Run,
    learning: Mapping[str, nn.Parameter],
    examples: Examples,
    chooses: Sequence[Example],
    design: EncoderDesign,
    settings: UnfreezeSettings,
    tell: Tell,
    say: Say,
) -> int:
    """Takes all steps. Returns how many they were."""
    batches = Batches(examples, run, design)
    steps = batches.per_epoch * settings.epochs
    moved = optimizer("adamw", learning.values(), settings.learning_rate, settings.weight_decay)
    rates = schedule("cosine", moved, steps, int(settings.warmup * steps))
    began = time.monotonic()
    run.loss(batches.batch(0)).backward()  # type: ignore[no-untyped-call]
    one = time.monotonic() - began
    say(f"{steps:,} steps of {batches.size} pairs, some {max(1, round(one * steps / 60))} minutes on this machine")
    began = time.monotonic()
    for step in range(steps):
        moved.zero_grad(set_to_none=True)
        loss = run.loss(batches.batch(step))
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is no number any more at step {step + 1}. Lower learning_rate ({settings.learning_rate})."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        moved.step()
        rates.step()
        elapsed = time.monotonic() - began
        ends_epoch = (step + 1) % batches.per_epoch == 0
        recall = recall_of(run.read(examples, chooses)) if ends_epoch else None
        if ends_epoch or step == 0:
            rate = (step + 1) * batches.size / elapsed
            tell(Moment(step + 1, steps, loss.item(), rate, elapsed / (step + 1) * (steps - step - 1), recall))
    return steps


def _mixed(learning: Mapping[str, nn.Parameter], old: Mapping[str, Tensor], recall: Callable[[], float]) -> float:
    """Leaves the model with the share of what was learned that the choosing half likes best; returns it."""
    new = {name: parameter.detach().clone() for name, parameter in learning.items()}
    found: dict[float, float] = {}
    for share in SHARES:
        _mix(learning, old, new, share)
        found[share] = recall()
    best = max(SHARES, key=lambda share: (found[share], -share))  # of two that are as good, what changes less
    _mix(learning, old, new, best)
    return best


def _mix(
    learning: Mapping[str, nn.Parameter], old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float
) -> None:
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(old[name].lerp(new[name], share))


def _halves(held_out: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Held-out examples in two, no group in both. Raises TrainingError where there are too few."""
    groups = {group: place for place, group in enumerate(sorted({example.group for example in held_out}))}
    if len(groups) < 4:
        raise TrainingError(
            f"{len(groups)} held-out pairs tell nothing: give more pairs, or raise held_out; with --unfreeze, some "
            "thousands are of use."
        )
    chooses, reports = list[Example](), list[Example]()
    for example in held_out:
        (chooses if groups[example.group] % 2 else reports).append(example)
    return chooses, reports


def _open_clip_source(name: str) -> Source:
    try:
        return parse_name(name)
    except ModelError as error:
        raise UsageError(
            f"--unfreeze trains open_clip models; '{name}' is none, or does not lie as torch weights here. For it, "
            "train heads without --unfreeze."
        ) from error


def _save(model: nn.Module, tokenizer: Any, config: Mapping[str, Any], folder: Path) -> None:
    """As open_clip's `local-dir:` reads it."""
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        save_config_for_hf(model, folder / "open_clip_config.json", dict(config))
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be written: {error.strerror or error}.") from error


def _about(report: UnfreezeReport) -> str:
    return f"""
Fine-tuned by `mmsearch train heads --unfreeze {report.blocks}`: the last {report.blocks} blocks of both towers and what
follows them, {report.learned / 1e6:.1f} million numbers.

| | |
| --- | --- |
| made of | `{report.base}` |
| pairs learned from | {report.pairs:,} |
| steps, time | {report.steps:,}, {report.seconds / 60:.1f} minutes |
| of what was learned | {report.share:.0%} mixed in |
| recall@10 of held-out pairs that chose nothing, before and after | {report.before:.3f}, {report.after:.3f} |
"""
