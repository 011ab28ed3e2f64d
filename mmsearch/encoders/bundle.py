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
import html
import importlib.util
import logging
import math
import os
import re
import string
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.arguments import array, checked, each_image, one_of, text, texts, whole
from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.heads import project
from mmsearch.encoders.manifest import Clean, Manifest, Tower, read_head, read_manifest, tokenizer_json, understood
from mmsearch.encoders.preprocess import PixelSpec, fit
from mmsearch.encoders.sessions import TowerSession
from mmsearch.encoders.tokens import tokenizer_for, whole_tokenizer
from mmsearch.errors import ModelError, UsageError
from mmsearch.machine import usable_cores

if TYPE_CHECKING:
    from PIL import Image
    from tokenizers import Tokenizer

    from mmsearch.encoders.gpu import GpuTower

Precision: TypeAlias = Literal["auto", "fp32", "int8"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
TokenArray: TypeAlias = npt.NDArray[np.int64]
INT8 = "#int8"  # ends the name of a bundle in 8 bits, so that an index remembers which of the two it was made with
IMAGES_AT_ONCE = 4  # of a list, whose pixels stand in memory together
# A core has pictures of its own, where there are so many: no core waits for another within a picture, and decoders find
# room between them. Pictures/s on two cores of a Xeon, calls that share both cores -> one core a call -> and four
# pictures a call: ViT-B-32-256 18.9 -> 20.7 -> 23.3, MobileCLIP2-S0 44.6 -> 49.3 -> 50.6, lite 115 -> 127 -> 124.
MOST_CALLS = 8
IMAGES_A_CALL = 4
FOR_A_GPU = 256  # pictures; for fewer it does not pay to start one, which takes some seconds
TEXTS_AT_ONCE = 16

_log = logging.getLogger(__name__)


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
        return cls(path, read_manifest(path))

    @checked(device=one_of("auto", "cpu", "cuda"))
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

    @checked(text=text)
    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, before any cut."""
        spec = self._manifest.text
        return len(self._tokens().encode(clean_text(text, spec.clean))) + (spec.last_id is not None)

    @checked(count=whole)
    def uses_gpu_for(self, count: int) -> bool:
        """Whether a GPU encodes so many pictures, from here on; it is started now if it was not, which takes seconds.

        Then they are best given to `image_features` some 256 at a time. Raises ModelError.
        """
        return self._tower_on_gpu(count) is not None

    @checked(count=whole)
    def get_ready(self, count: int) -> None:
        """Load what encodes so many pictures on the processor, while the first are decoded. Raises ModelError."""
        self._calls_for(count)
        self._image_tower.width()
        self._head_tensors("image")

    @checked(images=each_image)
    def encode_images(self, images: "Sequence[Image.Image]") -> FloatArray:
        """(n, dim) float32, rows of length 1, as an index computes them. Images of any mode and size.

        Raises MediaError for an image whose file is damaged, if Pillow has not loaded it yet.
        """
        from mmsearch.media import load_rgb  # here: a search by words has no use for it

        vectors = [np.empty((0, self.dim), dtype=np.float32)]
        at_once = FOR_A_GPU if self.uses_gpu_for(len(images)) else IMAGES_AT_ONCE
        for start in range(0, len(images), at_once):  # so that a long list never stands as pixels all at once
            batch = [fit(load_rgb(image, self.pixels), self.pixels) for image in images[start : start + at_once]]
            vectors.append(self.project_images(self.image_features(np.stack(batch))))
        return np.concatenate(vectors)

    @checked(texts=texts)
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(n, dim) float32, rows of length 1. A text that is too long is cut at `max_tokens`."""
        return self.project_texts(self.text_features(texts)) if texts else np.empty((0, self.dim), dtype=np.float32)

    @checked(pixels=partial(array, dtype=np.uint8, dimensions=4))
    def image_features(self, pixels: PixelArray) -> FloatArray:
        """(n, height, width, 3) uint8 -> (n, image features) float32, as they come out of the tower."""
        if len(pixels) and pixels.shape[1:] != (self.pixels.height, self.pixels.width, 3):
            raise UsageError(
                f"'{self.name}' reads pixels of the shape (n, {self.pixels.height}, {self.pixels.width}, 3), not of "
                f"{str(pixels.shape)[:60]}."
            )
        if not len(pixels):
            return np.empty((0, self._image_tower.width()), dtype=np.float32)
        if (gpu := self._tower_on_gpu(len(pixels))) is not None:
            return gpu.features(pixels)
        calls = self._calls_for(len(pixels))
        # In 8 bits one scale is chosen for all that is run together: alone, a picture does not depend on its neighbours
        most = 1 if self.precision == "int8" else IMAGES_A_CALL
        step = min(most, math.ceil(len(pixels) / calls))
        parts = [{"pixels": pixels[start : start + step]} for start in range(0, len(pixels), step)]
        if calls == 1:
            return np.concatenate([self._image_tower.run(part) for part in parts])
        from concurrent.futures import ThreadPoolExecutor  # here: a search by words has no use for it

        with ThreadPoolExecutor(calls) as together:
            return np.concatenate(list(together.map(self._image_tower.run, parts)))

    @checked(texts=texts)
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

    @checked(features=partial(array, dtype=np.floating, dimensions=2))
    def project_images(self, features: FloatArray) -> FloatArray:
        """(n, image features) -> (n, dim) float32, rows of length 1."""
        return self._projected("image", self._manifest.image_head, features)

    @checked(features=partial(array, dtype=np.floating, dimensions=2))
    def project_texts(self, features: FloatArray) -> FloatArray:
        """(n, text features) -> (n, dim) float32, rows of length 1."""
        return self._projected("text", self._manifest.text_head, features)

    def _projected(self, tower: Tower, head: str, features: FloatArray) -> FloatArray:
        try:
            return project(head, features, self._head_tensors(tower))
        except ValueError as error:  # of numpy, that the shapes do not go together
            raise UsageError(
                f"features of {features.shape[1]} numbers are none of the {tower} tower of '{self.name}'."
            ) from error

    def _calls_for(self, count: int) -> int:
        """How many calls of the image tower encode so many pictures at once; it is run in that way from here on."""
        calls = min(count, usable_cores(), MOST_CALLS)
        if calls > 1:
            self._image_tower.run_abreast()
        return calls

    def _tower_on_gpu(self, count: int) -> "GpuTower | None":
        """That encodes so many pictures, loaded by now; None where the processor does. Raises ModelError."""
        if self._device == "cpu":
            return None
        with self._lock:
            worth_it = self._device == "cuda" or count >= FOR_A_GPU
            if self._gpu_tower is None and worth_it:
                if not has_cuda():
                    self._device = "cpu"  # it is not looked for again
                    return None
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
                with tokenizer_json(self.folder) as written:
                    self._tokenizer = whole_tokenizer(written)
            return self._tokenizer

    def _tokens_for(self, text: str) -> "Tokenizer":
        """For the first text of a process, which may stay the only one, no more of the vocabulary than it needs."""
        with self._lock:
            if self._a_text_was_read:
                return self._tokens()
            self._a_text_was_read = True
            with tokenizer_json(self.folder) as written:
                return tokenizer_for(text, written)

    def _head_tensors(self, tower: Tower) -> Mapping[str, FloatArray]:
        with self._lock:
            if tower not in self._heads:
                self._heads[tower] = read_head(self.folder, tower)
            return self._heads[tower]


def clean_text(text: str, clean: Clean) -> str:
    """A text as the tokenizer of a model was trained to see it; open_clip's `get_clean_fn`, for the same results."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs, which no tokenizer takes
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
