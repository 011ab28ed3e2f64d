"""The run that makes an encoder: from pairs through checkpoints to a bundle.

What is learned at a step follows from the settings and the step's number, so that a run that was killed and goes on
from its last checkpoint draws the same curve as one that was not; and several processes (torchrun) draw that of one.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmsearch.encoders.joint import Worth, fused_of
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import TrainingError, UsageError
from mmsearch.evaluate import best_ranks, recall_at_k
from mmsearch.sources.pairs import GUESSED, PairColumns, read_pairs
from mmsearch.sources.tables import BadRow
from mmsearch.train import checkpoints
from mmsearch.train.bundling import check_writable, make_bundle
from mmsearch.train.checkpoints import Checkpoint
from mmsearch.train.comparing import HeldOut, read_held_out
from mmsearch.train.design import EncoderDesign
from mmsearch.train.examples import Batches, Example, Examples, gather
from mmsearch.train.model import Model, Shown
from mmsearch.train.optimizers import optimizer, schedule
from mmsearch.train.words import Words, words_for

SUFFIX = ".training"  # of the folder beside the bundle that holds checkpoints, the log and the curves
TOLD_EVERY_S = 10.0


@dataclass(frozen=True)
class Moment:
    """What a run says while it goes on. recall: of held-out pairs, the mean of both directions; None between looks."""

    step: int
    steps: int
    loss: float
    pairs_per_second: float
    seconds_left: float
    recall: float | None


@dataclass(frozen=True)
class EncoderReport:
    """What a run made.

    chance: recall@10 of guessing. history: a record for each look at the held-out pairs. fusion: what it is worth.
    """

    folder: Path
    training: Path
    pairs: int
    held_out: int
    recall: float | None
    chance: float | None
    steps: int
    seconds: float
    skipped: tuple[BadRow, ...]
    history: tuple[Mapping[str, float], ...]
    classes: tuple[str, ...]
    fusion: Worth | None  # None without one that matches, or where there are too few held-out pairs

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": os.fspath(self.folder), "training": os.fspath(self.training), "pairs": self.pairs,
            "held_out": self.held_out, "recall_at_10": self.recall, "chance": self.chance, "steps": self.steps,
            "seconds": round(self.seconds, 1), "skipped": len(self.skipped), "classes": list(self.classes),
            "fusion": None if self.fusion is None else vars(self.fusion),
            "history": [dict(record) for record in self.history],
        }  # fmt: skip


Tell = Callable[[Moment], None]
Say = Callable[[str], None]


def train_encoder(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    design: EncoderDesign,
    *,
    columns: PairColumns = GUESSED,
    resume: bool = False,
    tell: Tell = lambda moment: None,
    say: Say = lambda line: None,
) -> EncoderReport | None:
    """Trains an encoder on pairs and writes it to a folder as a bundle; -> None in all processes but the first.

    tell: called with each step's figures now and then. say: called with lines for a person. Checkpoints, a log that
    TensorBoard reads and the curves lie in FOLDER.training. resume: go on from the last checkpoint there. Raises
    UsageError, SourceError, TrainingError and ModelError.
    """
    target = Path(folder)
    training = target.with_name(target.name + SUFFIX)
    last = checkpoints.latest(training)
    if last is not None and not resume:
        raise TrainingError(f"{training} holds a training. Go on with --resume, or remove it to start anew.")
    if last is None and resume:
        raise TrainingError(f"{training} holds no checkpoint to go on from. Leave --resume out to start.")
    if target.exists() and not (target / "preprocess.json").is_file():
        raise UsageError(f"{target} is there and is no model of mmsearch. Name another folder.")
    try:
        training.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{training} cannot be made: {error.strerror or error}.") from error
    with _processes() as (rank, world, device):
        run = _Run(sources, target, training, design, columns, last, rank, world, device, tell, say)
        run.train()
        return run.finish() if rank == 0 else None


@contextlib.contextmanager
def _processes() -> Iterator[tuple[int, int, int]]:
    """This process's number, how many there are, and its number on this machine, as torchrun says; joined with them."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield 0, 1, 0
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank, world, int(os.environ.get("LOCAL_RANK", 0))
    finally:
        torch.distributed.destroy_process_group()


class _Run:
    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        target: Path,
        training: Path,
        design: EncoderDesign,
        columns: PairColumns,
        last: Path | None,
        rank: int,
        world: int,
        local: int,
        tell: Tell,
        say: Say,
    ) -> None:
        self.target, self.training, self.design = target, training, design
        self.rank, self.world, self._tell, self._say = rank, world, tell, say
        self.device = _device(design, local)
        torch.manual_seed(design.seed)
        before = None if last is None else checkpoints.read(last)
        if before is not None and before.architecture != json.loads(json.dumps(design.architecture)):
            wrong = [name for name, value in design.architecture.items() if before.architecture.get(name) != value]
            raise TrainingError(
                f"{last} is of another architecture (its {', '.join(wrong)} differ). Give the settings that it was "
                "made with, or start anew in another folder."
            )
        spec = _spec(design)
        pairs = (pair for source in sources for pair in read_pairs(source, columns))
        self.examples: Examples = gather(pairs, design, spec, training, say if rank == 0 else _silent)
        texts = [example.text for example in self.examples.learned]
        self.words = words_for(design, texts) if before is None else Words.again(before.tokenizer_json, design)
        self.classes = self.examples.classes if before is None else before.classes
        self.model = Model(design, len(self.words), len(self.classes))
        if before is None and rank == 0:  # hours of training are not to end in what cannot be written
            say("checking that torch can write such a model")
            check_writable(self.model, self.words, spec, training)
        self.model.to(self.device)
        if world > 1 and self.device.type == "cuda":
            synced: Any = nn.SyncBatchNorm
            self.model = synced.convert_sync_batchnorm(self.model)
        self.moved = optimizer(design.optimizer, self.model.parameters(), design.learning_rate, design.weight_decay)
        self.step, self.ema = 0, None
        self.history: list[Mapping[str, float]] = []
        self.rates = schedule(design.schedule, self.moved, design.steps, min(design.warmup_steps, design.steps // 2))
        if before is not None and last is not None:
            self.ema = checkpoints.load(last, self.model, self.moved)
            self.step, self.history = before.step, list(before.history)
            self.rates.last_epoch = self.step
        self.batches = Batches(replace(self.examples, classes=self.classes), self.words, design, (rank, world))
        self.spec = spec
        self.started = time.monotonic()

    def train(self) -> None:
        """Takes the steps that are left."""
        design = self.design
        module: nn.Module = self.model
        if self.world > 1:
            module = DistributedDataParallel(self.model, find_unused_parameters=True)  # no objective reaches them all
        half = _half(design, self.device)
        told, first = time.monotonic(), self.step
        with self._log() as log, ThreadPoolExecutor(1) as ahead:
            numbers = iter(range(self.step * design.accumulate, design.steps * design.accumulate))
            waiting = [ahead.submit(self.batches.batch, number) for number in islice(numbers, 2)]
            while self.step < design.steps:
                self.model.train()
                torch.manual_seed(design.seed * 7_919 + self.step)  # what drops out, and which wrong answers are drawn
                self.moved.zero_grad(set_to_none=True)
                losses: dict[str, float] = {}
                for _ in range(design.accumulate):
                    batch = _on(waiting.pop(0).result(), self.device)
                    if (number := next(numbers, None)) is not None:
                        waiting.append(ahead.submit(self.batches.batch, number))
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                        parts = module(batch)
                    (parts["loss"] / design.accumulate).backward()
                    for name, part in parts.items():
                        losses[name] = losses.get(name, 0.0) + part.item() / design.accumulate
                if not math.isfinite(losses["loss"]):
                    raise TrainingError(
                        f"The loss is no number any more at step {self.step + 1}. Lower learning_rate "
                        f"({design.learning_rate}) or raise warmup_steps; checkpoints are kept in {self.training}."
                    )
                if design.clip_norm:
                    nn.utils.clip_grad_norm_(self.model.parameters(), design.clip_norm)
                self.moved.step()
                self.rates.step()
                self.step += 1
                self.ema = checkpoints.averaged(self.ema, self.model, design.ema, self.step)
                if self.rank:
                    continue
                elapsed = time.monotonic() - self.started
                rate = (self.step - first) * self.batches.size * design.accumulate / elapsed
                left = elapsed / (self.step - first) * (design.steps - self.step)
                recall = None
                if self.step % design.interval == 0 or self.step == design.steps:
                    recall = self._look(losses)
                for name, value in (losses | ({} if recall is None else {"recall@10": recall})).items():
                    log(name, value, self.step)
                if recall is not None or self.step == 1 or time.monotonic() - told > TOLD_EVERY_S:
                    told = time.monotonic()
                    self._tell(Moment(self.step, design.steps, losses["loss"], rate, left, recall))

    def _look(self, losses: Mapping[str, float]) -> float | None:
        """Measures the held-out pairs and writes a checkpoint."""
        recall = None
        if self.examples.held_out:
            with self._kept():
                recall = recall_of(self._read(self.examples.held_out))
        found = {"recall@10": recall} if recall is not None else {}
        self.history.append({"step": float(self.step), **losses, **found})
        checkpoint = Checkpoint(
            self.step, self.design.architecture, {**vars(self.design), "objective": dict(self.design.objective)},
            self.words.json, self.classes, tuple(self.history),
        )  # fmt: skip
        checkpoints.write(self.training, checkpoint, self.model, self.ema, self.moved)
        return recall

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """The model with the weights that will be kept: the moving average where there is one."""
        if self.ema is None:
            yield
            return
        now = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        try:
            yield
        finally:
            self.model.load_state_dict(now)

    def _read(self, examples: Sequence[Example]) -> HeldOut:
        """The vectors of the examples' pictures and texts, as the model is now."""
        self.model.eval()

        def images(pixels: Tensor) -> Tensor:
            return self.model.image_vectors(self.model.image(pixels.to(self.device)))

        def said(texts: Sequence[str]) -> Tensor:
            ids = torch.from_numpy(self.words.rows(texts))
            return self.model.text_vectors(self.model.text(ids.to(self.device)))

        return read_held_out(self.examples.pixels, [(one.picture, one.text) for one in examples], images, said)

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[str, float, int], None]]:
        """Where scalars go that TensorBoard reads."""
        if self.rank:
            yield lambda name, value, step: None
            return
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        with make(os.fspath(self.training / "log"), purge_step=self.step + 1 if self.step else None) as writer:
            yield writer.add_scalar

    def finish(self) -> EncoderReport:
        """Writes the bundle and the curves."""
        from mmsearch.plots import training_curves

        seconds = time.monotonic() - self.started
        self._say("writing the model")
        with self._kept():
            held_out = self._read(self.examples.held_out) if self.examples.held_out else None
            recall = recall_of(held_out) if held_out else None
            chance = chance_of(held_out.right) if held_out else None
            facts = {
                "pairs": f"{len(self.examples.learned):,}",
                "held out": f"{len(self.examples.held_out):,}",
                "steps": f"{self.step:,} of {self.batches.size * self.design.accumulate} pairs",
                "time": f"{seconds / 60:.1f} minutes",
                "held-out recall@10": "not measured" if recall is None else f"{recall:.3f} (chance {chance:.4f})",
            }
            model = self.model.cpu()
            bundle = make_bundle(self.target, model, self.words, self.spec, self.classes, facts, held_out)
            fused = fused_of(bundle)
        (self.training / "curves.png").write_bytes(training_curves(self.history))
        return EncoderReport(
            self.target, self.training, len(self.examples.learned), len(self.examples.held_out), recall, chance,
            self.step, seconds, self.examples.skipped, tuple(self.history), self.classes,
            None if fused is None else fused.worth,
        )  # fmt: skip


def recall_of(held_out: HeldOut) -> float:
    """recall@10, the mean of texts that find their pictures and of pictures that find their texts."""
    scores, right = held_out.images @ held_out.texts.T, held_out.right
    return (recall_at_k(best_ranks(scores, right), 10) + recall_at_k(best_ranks(scores.T, right.T), 10)) / 2


def chance_of(right: "np.ndarray[Any, Any]") -> float:
    """What `recall_of` gives for scores that mean nothing."""
    pictures, texts = right.shape
    return float(min(1, 10 * right.sum(axis=1).mean() / texts) + min(1, 10 * right.sum(axis=0).mean() / pictures)) / 2


def _spec(design: EncoderDesign) -> PixelSpec:
    from mmsearch.train.towers import image_tower

    size = image_tower(replace(design, image_weights="")).size
    return PixelSpec(size, size, "longest", fill=255)


def _device(design: EncoderDesign, local: int) -> torch.device:
    if design.device != "auto":
        try:
            return torch.device(design.device)
        except RuntimeError as error:
            raise UsageError(f"There is no device '{design.device}'; there are cpu and cuda.") from error
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def _half(design: EncoderDesign, device: torch.device) -> bool:
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return design.precision == "bf16" or (design.precision == "auto" and able)


def _on(batch: Shown, device: torch.device) -> Shown:
    if device.type == "cpu":
        return batch
    return Shown(*(tensor.to(device, non_blocking=True) for tensor in vars(batch).values()))


def _silent(line: str) -> None:
    pass
