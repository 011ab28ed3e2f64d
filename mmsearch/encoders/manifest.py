"""What a bundle says of itself: `preprocess.json`, and the reading of the small files beside it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.heads import HEADS
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import ModelError, memory_watched

Clean: TypeAlias = Literal["none", "whitespace", "lower", "canonicalize"]
Tower: TypeAlias = Literal["image", "text"]

FORMAT = 1
MANIFEST = "preprocess.json"


@dataclass(frozen=True)
class TextSpec:
    """How a text becomes the tokens that the text tower reads.

    clean: none, or as open_clip does: mended (ftfy) and with its HTML entities and runs of white space undone, then
        left so (whitespace), in lower case (lower), or without punctuation too (canonicalize).
    fixed_length: the tower reads exactly `max_tokens`; else a batch is as long as its longest text.
    last_id: a token that takes the last place of every row.
    blank_id: a token that is replaced by 0.
    """

    max_tokens: int
    pad_id: int = 0
    clean: Clean = "none"
    fixed_length: bool = False
    padding: Literal["right", "left"] = "right"
    last_id: int | None = None
    blank_id: int | None = None


@dataclass(frozen=True)
class HeadSpec:
    """One projection head: its kind, a row of `heads.HEADS`, and its tensors."""

    kind: str
    tensors: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What `preprocess.json` says."""

    name: str
    dim: int
    fingerprint: str
    pixels: PixelSpec
    text: TextSpec
    image_head: str
    text_head: str
    extras: Mapping[str, Any] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)


def damaged(folder: Path, reason: str) -> ModelError:
    """What is said of a bundle with something wrong in it."""
    return ModelError(f"The model in {folder} is damaged: {reason}. {_mend(folder)}.")


def _mend(folder: Path) -> str:
    """What a person can do about a bundle. Only those in the cache are made again by themselves."""
    from mmsearch.encoders.openclip import bundles_folder  # here: it reads bundles, and so this module

    if Path(__file__).parent in folder.parents:
        return "Install mmsearch again"
    if bundles_folder().resolve() in folder.resolve().parents:
        return "Delete that folder; it is made again, from the weights that it was made of, when it is next used"
    return "Put back a copy of that folder, or train or convert the model again into another one"


@contextmanager
def understood(folder: Path, what: str) -> Iterator[None]:
    """Read what the manifest says of something; raises ModelError where that is nonsense."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{MANIFEST} cannot be understood in what it says of {what}") from error


def read_manifest(folder: Path) -> Manifest:
    """Also checks that every file is there in full. Raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"There is no model in {folder}: no such folder.")
    try:
        says = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if says["format"] > FORMAT:
            raise ModelError(f"The model in {folder} was made by a newer mmsearch. Upgrade mmsearch.")
        for name, size_bytes in says["files"].items():
            if (folder / name).stat().st_size != size_bytes:
                raise damaged(folder, f"{name} is not complete")
        heads = says["heads"]["image"]["kind"], says["heads"]["text"]["kind"]
        if not {*heads} <= {*HEADS}:
            raise damaged(folder, f"{' or '.join(heads)} is not a kind of projection head")
        return Manifest(
            says["name"],
            says["dim"],
            says["fingerprint"],
            PixelSpec(**says["image"]),
            TextSpec(**says["text"]),
            *heads,
            extras=dict(says.get("extras", {})),
            agreement=says.get("agreement", {}),
        )
    except FileNotFoundError as error:
        raise damaged(folder, f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise ModelError(f"The model in {folder} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"{MANIFEST} cannot be understood") from error


def read_head(folder: Path, tower: Tower) -> dict[str, FloatArray]:
    """The tensors of one head; those of the other are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "heads.safetensors", framework="numpy") as heads:
            offered: list[str] = heads.keys()
            names = [name for name in offered if name.startswith(f"{tower}.")]
            return {name.removeprefix(f"{tower}."): heads.get_tensor(name).astype(np.float32) for name in names}
    except (OSError, SafetensorError) as error:
        raise damaged(folder, "heads.safetensors cannot be read") from error


@contextmanager
def tokenizer_json(folder: Path) -> Iterator[str]:
    """The text of the file, to be understood in the block."""
    try:
        with memory_watched():
            yield (folder / "tokenizer.json").read_text(encoding="utf-8")
    except ModelError:
        raise
    except OSError as error:
        raise damaged(folder, "tokenizer.json cannot be read") from error
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise damaged(folder, "tokenizer.json cannot be understood") from error
