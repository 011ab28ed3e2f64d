"""Writing a bundle: whole or not at all, whoever else writes the same one, and whatever stood there before."""

import datetime
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.manifest import FORMAT, MANIFEST, HeadSpec, TextSpec, Tower
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.tokens import quickly_read
from mmsearch.errors import ModelError

PLACING_ATTEMPTS = 20  # each is lost only where another writer comes in between


def write_bundle(
    folder: str | os.PathLike[str],
    towers: Callable[[Path], None],
    *,
    name: str,
    dim: int,
    pixels: PixelSpec,
    text: TextSpec,
    tokenizer_json: str,
    image_head: HeadSpec,
    text_head: HeadSpec,
    card: str,
    fingerprint: str | None = None,
    extras: Mapping[str, Any] | None = None,
    check: Callable[[Bundle], None] = lambda bundle: None,
) -> Bundle:
    """Makes the folder: all of it, or, after an error, none of it. What stood there before is replaced.

    towers: called with the folder to be filled; puts `image.onnx` and `text.onnx` there, see `optimise`.
    tokenizer_json: the text of a `tokenizers` file. card: the model card, Markdown.
    fingerprint: what an index remembers; by default a hash of all that is written here. A model that is converted again
        by newer libraries gives files that differ in no way that matters: pass a hash of its weights then.
    extras: what is to be said of `fusion.onnx`, `decoder.onnx` and the calibration, if there are any.
    check: called with the finished bundle before it takes its place; what it raises keeps it from there.
    """
    target = Path(folder)
    with _becoming(target) as draft:
        towers(draft)
        (draft / "tokenizer.json").write_text(quickly_read(tokenizer_json), encoding="utf-8")
        _write_heads(draft / "heads.safetensors", {"image": image_head, "text": text_head})
        says: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "dim": dim,
            "image": asdict(pixels),
            "text": asdict(text),
            "heads": {"image": {"kind": image_head.kind}, "text": {"kind": text_head.kind}},
        }
        if extras:
            says["extras"] = dict(extras)
        says["fingerprint"] = fingerprint or _content_hash(draft, says)
        (draft / "README.md").write_text(card, encoding="utf-8")
        says["files"] = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(says, indent=2) + "\n", encoding="utf-8")
        check(Bundle.open(draft))
    return _open_among_writers(target)


def derive_bundle(
    source: Bundle,
    folder: str | os.PathLike[str],
    towers: Callable[[Path], None],
    *,
    name: str,
    fingerprint: str,
    compare: Callable[[Bundle], Mapping[str, float]],
) -> Bundle:
    """A bundle with towers of its own, and all else as in `source`; made whole or not at all, as by `write_bundle`.

    compare: called with the finished bundle; the figures that it gives are kept in the manifest and in the card.
    """
    target = Path(folder)
    with _becoming(target) as draft:
        towers(draft)
        for file in ("tokenizer.json", "heads.safetensors"):
            shutil.copy(source.folder / file, draft / file)
        says = json.loads((source.folder / MANIFEST).read_text(encoding="utf-8"))
        says |= {"name": name, "fingerprint": fingerprint, "files": {}}
        (draft / MANIFEST).write_text(json.dumps(says), encoding="utf-8")
        says["agreement"] = dict(compare(Bundle.open(draft)))
        (draft / MANIFEST).unlink()
        card = (source.folder / "README.md").read_text(encoding="utf-8").replace(source.name, name, 1)
        figures = "\n".join(f"| {figure} | {value:.4f} |" for figure, value in says["agreement"].items())
        card += f"\n## Beside `{source.name}`\n\n| on a built-in sample | |\n| --- | --- |\n{figures}\n"
        (draft / "README.md").write_text(card, encoding="utf-8")
        says["files"] = {path.name: path.stat().st_size for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(says, indent=2) + "\n", encoding="utf-8")
    return _open_among_writers(target)


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which takes its place when all went well and is gone otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"Cannot write a model to {target.parent}: {error.strerror}.") from error
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp keeps others out; a bundle is no secret
        _put_in_place(draft, target)
    except OSError as error:
        raise ModelError(
            f"Cannot write the model {target}: {error}. Free some space, or set MMSEARCH_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _open_among_writers(target: Path) -> Bundle:
    """Open a bundle that was just put in place, which another writer may be exchanging for its own at this moment."""
    for _ in range(50):
        with suppress(ModelError):
            return Bundle.open(target)
        time.sleep(0.02)
    return Bundle.open(target)


def _put_in_place(draft: Path, target: Path) -> None:
    for _ in range(PLACING_ATTEMPTS):
        with suppress(OSError):  # what it is called for a folder that is not empty depends on the system
            draft.rename(target)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        with suppress(FileNotFoundError):  # another process moved it first
            target.rename(old / "old")
        shutil.rmtree(old, ignore_errors=True)
    draft.rename(target)  # says why it cannot be done


def _content_hash(folder: Path, says: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(says, sort_keys=True).encode())
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_heads(path: Path, heads: Mapping[Tower, HeadSpec]) -> None:
    from safetensors.numpy import save

    tensors = {f"{tower}.{name}": tensor for tower, head in heads.items() for name, tensor in head.tensors.items()}
    path.write_bytes(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}))


def conversion_card(
    name: str,
    origin: str,
    library: str,
    packages: Sequence[str],
    *,
    licence: str | None,
    dim: int,
    pixels: PixelSpec,
    text: TextSpec,
) -> str:
    """The card of a model that another library saved; origin: what it is, as a sentence begins."""
    made = datetime.datetime.now(datetime.UTC).date()
    return f"""# {name}

{origin}, converted by mmsearch to run on ONNX Runtime. Its vectors agree with {library}'s own.

| | |
| --- | --- |
| source | `{name}` |
| licence | {licence or "not known to mmsearch; see where the model comes from"} |
| vectors | {dim} numbers, length 1 |
| pictures | {pixels.width} x {pixels.height}, {pixels.resize}, {pixels.interpolation} |
| texts | {"exactly" if text.fixed_length else "at most"} {text.max_tokens} tokens |
| made | {made}, with {", ".join(f"{package} {version(package)}" for package in packages)} |
"""
