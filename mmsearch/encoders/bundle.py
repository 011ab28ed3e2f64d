"""An encoder on disk, and how it is run: a folder of two ONNX towers, a tokenizer and two projection heads.

    image.onnx        "pixels" uint8 (n, h, w, 3) -> "features" float32 (n, fi); mean and deviation are in the graph
    text.onnx         "input_ids" int64 (n, t), perhaps "attention_mask" int64 (n, t) -> "features" float32 (n, ft)
    tokenizer.json    read by Hugging Face `tokenizers`
    heads.safetensors image.weight, image.bias, text.weight, ...
    preprocess.json   everything else; written last, so that a folder without it is not a bundle
    README.md         the model card

Of an encoder that was trained here there may also be, named by "extras" in preprocess.json (encoders/joint runs them):

    fusion.onnx       "image_tokens", "text_tokens", "mask", "cosine" (n,) -> "match" (n,), "classes" (n, c), logits of
                      pairs
    decoder.onnx      "image_tokens", "input_ids" -> "next" (n, t, vocabulary)

The towers are loaded when they are first used, each for itself: a search by words never reads the image tower. Large
weights lie beside the graphs (`image.onnx.data`) and are mapped, not read. The graphs were optimised when the bundle
was made, as far as that holds on any processor. A bundle in 8 bits is made from one in full precision
(`mmsearch.encoders.quantise`) and bears its name with "#int8" behind it.
"""

import ctypes
import hashlib
import html
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import string
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.heads import HEADS, project
from mmsearch.encoders.preprocess import PixelSpec, fit
from mmsearch.encoders.tokens import quickly_read, tokenizer_for, whole_tokenizer
from mmsearch.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions
    from PIL import Image
    from tokenizers import Tokenizer

    from mmsearch.encoders.gpu import GpuTower

Clean: TypeAlias = Literal["none", "whitespace", "lower", "canonicalize"]
Tower: TypeAlias = Literal["image", "text"]
Graph: TypeAlias = Literal["image", "text", "fusion", "decoder"]
Precision: TypeAlias = Literal["auto", "fp32", "int8"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
TokenArray: TypeAlias = npt.NDArray[np.int64]
# How a tower is run: pictures one by one, or some on every core at the same time; other graphs rarely, or so often that
# unpacking their weights pays.
Way: TypeAlias = Literal["alone", "abreast", "rarely", "often"]

FORMAT = 1
MANIFEST = "preprocess.json"
INT8 = "#int8"  # ends the name of a bundle in 8 bits, so that an index remembers which of the two it was made with
PLACING_ATTEMPTS = 20  # each is lost only where another writer comes in between
IMAGES_AT_ONCE = 4  # of a list, whose pixels stand in memory together
# A core has pictures of its own, where there are so many: no core waits for another within a picture, and decoders find
# room between them. Pictures/s on two cores of a Xeon, calls that share both cores -> one core a call -> and four
# pictures a call: ViT-B-32-256 18.9 -> 20.7 -> 23.3, MobileCLIP2-S0 44.6 -> 49.3 -> 50.6, lite 115 -> 127 -> 124.
MOST_CALLS = 8
IMAGES_A_CALL = 4
FOR_A_GPU = 256  # pictures; for fewer it does not pay to start one, which takes some seconds
TEXTS_AT_ONCE = 16
# Weights can be unpacked from 8 bits and laid out for the processor when a tower is loaded. Of the text tower of
# ViT-B-32-256 that takes 0.15 s and then saves 13 ms a run; of lite's 0.07 s and 29 MB, and saves 4.8 of 8 ms: it pays
# for whoever has much to encode, not for one query on the command line.
RUNS_BEFORE_PACKING = 8

_log = logging.getLogger(__name__)


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


class Bundle:
    """A `FeatureEncoder` that ONNX Runtime runs. Safe to use from several threads, and in processes forked later."""

    def __init__(self, folder: Path, manifest: Manifest, device: Device = "cpu") -> None:
        """For `Bundle.open`, which reads the manifest."""
        self.folder = folder
        self._manifest = manifest
        self._device = device
        self._image_tower = TowerSession(folder, "image")
        self._text_tower = TowerSession(folder, "text")
        self._gpu_tower: GpuTower | None = None
        self._lock = threading.RLock()
        self._tokenizer: Tokenizer | None = None
        self._a_text_was_read = False
        self._heads: dict[Tower, dict[str, FloatArray]] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Bundle":
        """Reads `preprocess.json` and checks that every file is there in full. Raises ModelError."""
        path = Path(folder)
        return cls(path, _read_manifest(path))

    def on(self, device: Device) -> "Bundle":
        """The same bundle, its pictures encoded on a device; texts, few and short, stay on the processor.

        auto: a CUDA GPU where there is one, for many pictures (`uses_gpu_for`); the processor for a bundle in
        8 bits, which is made for it. Raises ModelError for cuda where it cannot be.
        """
        if device == "cuda" and not has_cuda():
            raise ModelError(
                "torch finds no CUDA GPU here. Take --device cpu, or install the NVIDIA driver and a torch with CUDA "
                "(pytorch.org/get-started)."
            )
        if device == "cuda" and self.precision == "int8":
            raise ModelError(f"'{self.name}' runs on the processor alone. Take --precision fp32 for --device cuda.")
        if device == "auto" and self.precision == "int8":
            device = "cpu"
        return Bundle(self.folder, self._manifest, device)

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, folder={os.fspath(self.folder)!r})"

    @property
    def name(self) -> str:
        """What the index remembers it by."""
        return self._manifest.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._manifest.dim

    @property
    def fingerprint(self) -> str:
        """Hash of what the bundle computes; an index made with another one is refused."""
        return self._manifest.fingerprint

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """What its matrices are multiplied in."""
        return "int8" if self.name.endswith(INT8) else "fp32"

    @property
    def agreement(self) -> Mapping[str, float]:
        """Of a bundle in 8 bits: how near it came to the one that it was made of; see `mmsearch.encoders.quantise`."""
        return self._manifest.agreement

    @property
    def pixels(self) -> PixelSpec:
        """The pixels that the image tower reads."""
        return self._manifest.pixels

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text the text tower reads; the rest is cut."""
        return self._manifest.text.max_tokens

    @property
    def calibration(self) -> Calibration | None:
        """From how far a text stands out to a probability, where it was fitted for this model."""
        says = self._manifest.extras.get("calibration")
        with understood(self.folder, "the calibration"):
            return None if says is None else Calibration(float(says["slope"]), float(says["intercept"]))

    @property
    def extras(self) -> Mapping[str, Any]:
        """What the bundle says of its fusion encoder and its decoder; empty for most."""
        return self._manifest.extras

    def read_images(self, pixels: PixelArray) -> tuple[FloatArray, FloatArray]:
        """(n, h, w, 3) uint8 -> (n, dim) of length 1, and (n, tokens, width) float32, for a bundle with extras."""
        features, tokens = self._image_tower.run_for({"pixels": pixels}, ("features", "tokens"))
        return self.project_images(features), tokens

    def read_texts(self, texts: Sequence[str]) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
        """-> (n, dim) of length 1, (n, t, width) float32, and (n, t) which tokens are no padding; as `read_images`."""
        inputs = self._padded([self._token_row(text) for text in texts])
        features, tokens = self._text_tower.run_for(inputs, ("features", "tokens"))
        return self.project_texts(features), tokens, inputs["attention_mask"].astype(bool)

    def words(self, ids: Sequence[int]) -> str:
        """What tokens say."""
        return str(self._tokens().decode(list(ids)))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, before any cut."""
        spec = self._manifest.text
        return len(self._tokens().encode(clean_text(text, spec.clean))) + (spec.last_id is not None)

    def uses_gpu_for(self, count: int) -> bool:
        """Whether a GPU encodes so many pictures, from here on; it is started now if it was not, which takes seconds.

        Then they are best given to `image_features` some 256 at a time. Raises ModelError.
        """
        return self._tower_on_gpu(count) is not None

    def encode_images(self, images: "Sequence[Image.Image]") -> FloatArray:
        """(n, dim) float32, rows of length 1. Pictures of any mode and size; EXIF orientation is heeded."""
        vectors = [np.empty((0, self.dim), dtype=np.float32)]
        at_once = FOR_A_GPU if self.uses_gpu_for(len(images)) else IMAGES_AT_ONCE
        for start in range(0, len(images), at_once):  # so that a long list never stands as pixels all at once
            batch = [fit(upright_rgb(image), self.pixels) for image in images[start : start + at_once]]
            vectors.append(self.project_images(self.image_features(np.stack(batch))))
        return np.concatenate(vectors)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(n, dim) float32, rows of length 1. A text that is too long is cut at `max_tokens`."""
        return self.project_texts(self.text_features(texts)) if texts else np.empty((0, self.dim), dtype=np.float32)

    def image_features(self, pixels: PixelArray) -> FloatArray:
        """(n, height, width, 3) uint8 -> (n, image features) float32, as they come out of the tower."""
        if not len(pixels):
            return np.empty((0, self._image_tower.width()), dtype=np.float32)
        if (gpu := self._tower_on_gpu(len(pixels))) is not None:
            return gpu.run({"pixels": pixels})
        calls = min(len(pixels), _cores(), MOST_CALLS)
        # In 8 bits one scale is chosen for all that is run together: alone, a picture does not depend on its neighbours
        most = 1 if self.precision == "int8" else IMAGES_A_CALL
        step = min(most, math.ceil(len(pixels) / calls))
        parts = [{"pixels": pixels[start : start + step]} for start in range(0, len(pixels), step)]
        if calls == 1:
            return np.concatenate([self._image_tower.run(part) for part in parts])
        self._image_tower.run_abreast()
        from concurrent.futures import ThreadPoolExecutor  # here: a search by words has no use for it

        with ThreadPoolExecutor(calls) as together:
            return np.concatenate(list(together.map(self._image_tower.run, parts)))

    def text_features(self, texts: Sequence[str]) -> FloatArray:
        """-> (n, text features) float32, as they come out of the tower."""
        if not texts:
            return np.empty((0, self._text_tower.width()), dtype=np.float32)
        rows = [self._token_row(text, alone=len(texts) == 1) for text in texts]
        by_length = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # little padding in a batch
        # In 8 bits one scale is chosen for all that is run together: alone, a text does not depend on its neighbours
        step = 1 if self.precision == "int8" else TEXTS_AT_ONCE
        batches = (by_length[start : start + step] for start in range(0, len(rows), step))
        parts = [self._text_tower.run(self._padded([rows[place] for place in batch])) for batch in batches]
        features = np.concatenate(parts)
        return features[np.argsort(by_length)]

    def project_images(self, features: FloatArray) -> FloatArray:
        """(n, image features) -> (n, dim) float32, rows of length 1."""
        return project(self._manifest.image_head, features, self._head_tensors("image"))

    def project_texts(self, features: FloatArray) -> FloatArray:
        """(n, text features) -> (n, dim) float32, rows of length 1."""
        return project(self._manifest.text_head, features, self._head_tensors("text"))

    def _tower_on_gpu(self, count: int) -> "GpuTower | None":
        """That encodes so many pictures, loaded by now; None where the processor does. Raises ModelError."""
        if self._device == "cpu":
            return None
        with self._lock:
            worth_it = self._device == "cuda" or count >= FOR_A_GPU
            if self._gpu_tower is None and worth_it and has_cuda():
                try:
                    self._gpu_tower = self._load_on_gpu()
                except ModelError as error:
                    if self._device == "cuda":
                        raise ModelError(f"{self.name} cannot use the GPU: {error}. Take --device cpu.") from error
                    _log.warning("%s is run on the processor: %s.", self.name, error)
                    self._device = "cpu"
            return self._gpu_tower if self._gpu_tower is not None and self._gpu_tower.usable else None

    def _load_on_gpu(self) -> "GpuTower":
        from mmsearch.encoders.gpu import GpuTower  # here: torch, which nothing else that encodes needs
        from mmsearch.encoders.quantise import sample_pictures

        sample = np.stack([fit(picture, self.pixels) for picture in sample_pictures(of_a_kind=1)])
        expected = np.concatenate([self._image_tower.run({"pixels": sample[n : n + 1]}) for n in range(len(sample))])
        return GpuTower(self.folder / "image.onnx", sample, expected)

    def _token_row(self, text: str, *, alone: bool = False) -> list[int]:
        spec = self._manifest.text
        text = clean_text(text, spec.clean)
        tokenizer = self._tokens_for(text) if alone else self._tokens()
        room = spec.max_tokens - (spec.last_id is not None)
        # One by one: `encode_batch` would start threads of its own, which do not survive a fork.
        encoding = tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(room - tokenizer.num_special_tokens_to_add(False))  # the closing token is added after the cut
        return [0 if token == spec.blank_id else token for token in tokenizer.post_process(encoding).ids]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, TokenArray]:
        spec = self._manifest.text
        length = spec.max_tokens if spec.fixed_length else max(1, max(map(len, rows)))
        ids = np.full((len(rows), length), spec.pad_id, dtype=np.int64)  # (n, t)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            span = slice(0, len(row)) if spec.padding == "right" else slice(length - len(row), length)
            ids[place, span] = row
            mask[place, span] = 1
        if spec.last_id is not None:
            ids[:, -1] = spec.last_id
            mask[:, -1] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _tokens(self) -> "Tokenizer":
        with self._lock:
            if self._tokenizer is None:
                with _tokenizer_json(self.folder) as written:
                    self._tokenizer = whole_tokenizer(written)
            return self._tokenizer

    def _tokens_for(self, text: str) -> "Tokenizer":
        """For the first text of a process, which may stay the only one, no more of the vocabulary than it needs."""
        with self._lock:
            if self._a_text_was_read:
                return self._tokens()
            self._a_text_was_read = True
            with _tokenizer_json(self.folder) as written:
                return tokenizer_for(text, written)

    def _head_tensors(self, tower: Tower) -> Mapping[str, FloatArray]:
        with self._lock:
            if tower not in self._heads:
                self._heads[tower] = _read_head(self.folder, tower)
            return self._heads[tower]


class TowerSession:
    """An ONNX Runtime session that is made at its first run, once in every process that runs it."""

    def __init__(self, folder: Path, tower: Graph) -> None:
        self._folder = folder
        self._tower = tower
        # By process id: the threads of a session do not survive a fork, and neither does a lock that was held then.
        self._sessions: dict[int, tuple[Way, InferenceSession]] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._runs = 0
        self._abreast = False

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], output: str = "features") -> FloatArray:
        """-> one output; inputs that the graph does not have are left out."""
        return self.run_for(inputs, (output,))[0]

    def run_for(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[FloatArray]:
        """-> several outputs of one run."""
        self._runs += 1
        session = self._session()
        wanted = {entry.name for entry in session.get_inputs()}
        found = session.run(list(outputs), {name: array for name, array in inputs.items() if name in wanted})
        return [np.asarray(each, dtype=np.float32) for each in found]

    def width(self) -> int:
        """How many features the tower gives."""
        return int(self._session().get_outputs()[0].shape[1])

    def run_abreast(self) -> None:
        """From now on several threads run it at the same time, each on a core of its own."""
        self._abreast = True

    def _way(self) -> Way:
        if self._tower == "image":
            return "abreast" if self._abreast else "alone"
        return "often" if self._runs > RUNS_BEFORE_PACKING else "rarely"

    def _session(self) -> "InferenceSession":
        process, way = os.getpid(), self._way()
        opened = self._sessions.get(process)
        if opened is None or opened[0] != way:
            with self._locks.setdefault(process, threading.Lock()):
                opened = self._sessions.get(process)
                if opened is None or opened[0] != way:
                    opened = self._sessions[process] = way, _open_session(self._folder, self._tower, way)
        return opened[1]


# To destroy a session, ONNX Runtime (1.32) waits for its threads: for ever in a forked process, since they stayed with
# the parent (github.com/microsoft/onnxruntime/pull/31961). So a forked process never destroys what it inherits.
_OPEN_SESSIONS: "weakref.WeakSet[InferenceSession]" = weakref.WeakSet()


def _spare_inherited_sessions() -> None:
    if not _OPEN_SESSIONS:
        return
    for session in _OPEN_SESSIONS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    # The library's own state goes the same way after Python has ended: leave without it, with the same status.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # Linux; not musl
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spare_inherited_sessions)


def clean_text(text: str, clean: Clean) -> str:
    """A text as the tokenizer of a model was trained to see it; open_clip's `get_clean_fn`, for the same results."""
    if clean == "none":
        return text
    text = " ".join(html.unescape(html.unescape(_mended(text))).split())
    if clean == "canonicalize":
        text = " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).split())
    return text if clean == "whitespace" else text.lower().strip()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NOTHING_TO_MEND = re.compile(r"[ -%'-~\t\r\n]*")  # printable ASCII without "&"


def _mended(text: str) -> str:
    if _NOTHING_TO_MEND.fullmatch(text):
        return text
    import ftfy  # only here: 0.1 s that plain English does not need

    return ftfy.fix_text(text)


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """RGB and upright from any mode; transparency over white, 16 bits to 8."""
    from PIL import Image, ImageOps  # here: a search by words has no use for them

    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray((np.clip(np.asarray(image.convert("I")), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# Writing


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


def optimise(model: Path, optimised: Path) -> None:
    """Writes `model` again, its graph optimised as far as that holds on any processor: fused, not laid out for one.

    Weights go to a file beside it, `<name>.data`, which is mapped when the bundle is loaded. Replaces `optimised`.
    """
    import onnxruntime as ort

    options = _quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(optimised)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
    )
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing will run; saves a copy of all weights
    ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])


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


# Reading


def _damaged(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"The model in {folder} is damaged: {reason}. Delete that folder; it is made again when it is next used."
    )


@contextmanager
def understood(folder: Path, what: str) -> Iterator[None]:
    """Read what the manifest says of something; raises ModelError where that is nonsense."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be understood in what it says of {what}") from error


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise ModelError(f"There is no model in {folder}: no such folder.")
    try:
        says = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if says["format"] > FORMAT:
            raise ModelError(
                f"The model in {folder} was made by a newer mmsearch. Upgrade mmsearch, or delete that folder."
            )
        for name, size_bytes in says["files"].items():
            if (folder / name).stat().st_size != size_bytes:
                raise _damaged(folder, f"{name} is not complete")
        heads = says["heads"]["image"]["kind"], says["heads"]["text"]["kind"]
        if not {*heads} <= {*HEADS}:
            raise _damaged(folder, f"{' or '.join(heads)} is not a kind of projection head")
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
        raise _damaged(folder, f"{Path(error.filename).name} is missing") from error
    except OSError as error:
        raise ModelError(f"The model in {folder} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be understood") from error


def _read_head(folder: Path, tower: Tower) -> dict[str, FloatArray]:
    """The tensors of one head; those of the other are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "heads.safetensors", framework="numpy") as heads:
            offered: list[str] = heads.keys()
            names = [name for name in offered if name.startswith(f"{tower}.")]
            return {name.removeprefix(f"{tower}."): heads.get_tensor(name).astype(np.float32) for name in names}
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, "heads.safetensors cannot be read") from error


@contextmanager
def _tokenizer_json(folder: Path) -> Iterator[str]:
    """The text of the file, to be understood in the block."""
    try:
        yield (folder / "tokenizer.json").read_text(encoding="utf-8")
    except OSError as error:
        raise _damaged(folder, "tokenizer.json cannot be read") from error
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise _damaged(folder, "tokenizer.json cannot be understood") from error


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Whether torch can use a CUDA GPU; where there is no NVIDIA driver it is not asked, which would take seconds."""
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def _open_session(folder: Path, tower: Graph, way: Way) -> "InferenceSession":
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = _quiet_options()
    # What is left to optimise is the layout for this very processor: it doubles the speed of convolutions
    # (MobileCLIP2-S0: 8.5 -> 16.3 pictures/s a core), does nothing for transformers, and takes time that searches lack.
    levels = ort.GraphOptimizationLevel
    if tower == "image":
        options.graph_optimization_level = levels.ORT_ENABLE_ALL
        if way == "abreast":
            options.intra_op_num_threads = 1
    elif way == "often":
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC  # what follows from weights alone is computed once
    else:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Its threads would wait for work in circles, on the cores that decode the next pictures or that search. A text that
    # comes alone takes as long without, and half of the processor's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = folder / f"{tower}.onnx"
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NoSuchFile,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as error:
        raise _damaged(folder, f"{path.name} cannot be loaded") from error
    _OPEN_SESSIONS.add(session)
    return session


def _quiet_options() -> "SessionOptions":
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    return options
