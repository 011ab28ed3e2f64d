"""Checkpoints of a run: safetensors for numbers, JSON for the rest; whole or not there at all.

    OUT.training/step-000200/   model, ema and optimizer .safetensors, state.json (written last)

A checkpoint is written into a hidden folder and renamed when it is on the disk, so that a full disk or a kill leaves
the ones before as they were. The last two are kept.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mmsearch.errors import ModelError, TrainingError, in_a_line
from mmsearch.train.towers import read_weights

KEPT = 2
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A run after some steps. history: what was told until then, a record a look."""

    step: int
    architecture: Mapping[str, Any]
    settings: Mapping[str, Any]
    tokenizer_json: str
    classes: tuple[str, ...]
    history: tuple[Mapping[str, float], ...]


def write(folder: Path, checkpoint: Checkpoint, model: nn.Module, ema: Mapping[str, Tensor] | None, moved: Any) -> Path:
    """Raises TrainingError where the disk is full or may not be written."""
    target = folder / f"step-{checkpoint.step:06d}"
    draft = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
        _put(draft / "model.safetensors", save(_whole(model.state_dict())))
        if ema is not None:
            _put(draft / "ema.safetensors", save(_whole(ema)))
        tensors, numbers = _flat(moved.state_dict())
        _put(draft / "optimizer.safetensors", save(tensors))
        says = {"format": 1, **vars(checkpoint), "optimizer": numbers}
        _put(draft / STATE, json.dumps(says, default=dict, indent=1).encode())
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except OSError as error:
        raise TrainingError(
            f"The checkpoint after step {checkpoint.step} cannot be written to {folder}: {error.strerror or error}. "
            "Earlier ones are as they were; make room and go on with --resume."
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The last whole checkpoint of a run."""
    found = _all(folder)
    return found[-1] if found else None


def read(path: Path) -> Checkpoint:
    """Raises TrainingError for a damaged one."""
    try:
        says = json.loads((path / STATE).read_text(encoding="utf-8"))
        says = {name: says[name] for name in Checkpoint.__annotations__}
        return Checkpoint(**{**says, "classes": tuple(says["classes"]), "history": tuple(says["history"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TrainingError:
    others = any(other.name < path.name for other in _all(path.parent))
    mend = (
        "Remove it; the one before is used then" if others else "There is none before it: start anew in another folder"
    )
    return TrainingError(f"The checkpoint {path} is damaged: {in_a_line(error)}. {mend}.")


def load(path: Path, model: nn.Module, moved: Any) -> dict[str, Tensor] | None:
    """Put a checkpoint into a model and its optimizer; -> the moving average of the weights, where there is one.

    Raises TrainingError for a checkpoint of another architecture, and for a damaged one.
    """
    try:
        return _load(path, model, moved)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ModelError) as error:
        raise _damaged(path, error) from error


def _load(path: Path, model: nn.Module, moved: Any) -> dict[str, Tensor] | None:
    weights = read_weights(path / "model.safetensors")
    own = model.state_dict()
    wrong = next((key for key in own if key not in weights or weights[key].shape != own[key].shape), None)
    if wrong is not None:
        raise TrainingError(
            f"{path} is of another architecture: it has no fitting {wrong}. Start anew in another folder."
        )
    model.load_state_dict(weights)
    says = json.loads((path / STATE).read_text(encoding="utf-8"))["optimizer"]
    state: dict[int, dict[str, Any]] = {int(key): dict(values) for key, values in says["state"].items()}
    for key, tensor in read_weights(path / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    groups = moved.state_dict()["param_groups"]
    for group, values in zip(groups, says["groups"], strict=True):
        group.update(values)
    moved.load_state_dict({"state": state, "param_groups": groups})
    return read_weights(path / "ema.safetensors") if (path / "ema.safetensors").is_file() else None


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors, and as what JSON holds."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
            elif value is not None:
                numbers.setdefault(str(number), {})[name] = value
    groups = [
        {name: value for name, value in group.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        for group in state["param_groups"]
    ]
    return tensors, {"state": numbers, "groups": groups}


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own: safetensors refuses tensors that share it, as tied weights do."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def averaged(ema: dict[str, Tensor] | None, model: nn.Module, decay: float, step: int) -> dict[str, Tensor] | None:
    """The moving average of the weights after one more step; it forgets faster at the beginning (Tan & Le 2019)."""
    if not decay:
        return None
    now = model.state_dict()
    if ema is None:
        return {name: tensor.detach().clone() for name, tensor in now.items()}
    keep = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in now.items():
            if tensor.is_floating_point():
                ema[name].lerp_(tensor, 1 - keep)
            else:
                ema[name].copy_(tensor)
    return ema
