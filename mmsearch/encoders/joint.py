"""What a bundle has beside its two towers: a fusion encoder that reads picture and text together, and a decoder.

Both read the towers' tokens. `joint_of` gives what there is; most bundles have neither.
"""

import numpy as np

from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.bundle import Bundle, TowerSession
from mmsearch.encoders.preprocess import PixelSpec


class Fused:
    """Judges pairs: do they belong together, and of which class are they."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._session = TowerSession(bundle.folder, "fusion")
        self.matches: bool = bundle.extras["fusion"]["matches"]
        self.classes: tuple[str, ...] = tuple(bundle.extras["fusion"]["classes"])

    @property
    def pixels(self) -> PixelSpec:
        """The pixels that it reads."""
        return self._bundle.pixels

    def match(self, pixels: PixelArray, texts: list[str]) -> FloatArray:
        """(n, h, w, 3) uint8 and n texts -> (n,) probabilities, where half of all pairs belong together."""
        likely: FloatArray = np.float32(1) / (1 + np.exp(-self._run(pixels, texts, "match").clip(-30, 30)))
        return likely

    def classify(self, pixels: PixelArray, texts: list[str]) -> FloatArray:
        """-> (n, classes) shares that sum to 1."""
        logits = self._run(pixels, texts, "classes")
        shares: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def _run(self, pixels: PixelArray, texts: list[str], output: str) -> FloatArray:
        text_tokens, mask = self._bundle.text_tokens(texts)
        inputs = {"image_tokens": self._bundle.image_tokens(pixels), "text_tokens": text_tokens, "mask": mask}
        return self._session.run(inputs, output)


class Describing:
    """Says what a picture shows, token by token, the likeliest each time."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._session = TowerSession(bundle.folder, "decoder")
        self._begin: int = bundle.extras["decoder"]["begin"]
        self._end: int = bundle.extras["decoder"]["end"]

    def describe(self, pixels: PixelArray) -> str:
        """(h, w, 3) uint8 -> a text."""
        image_tokens = self._bundle.image_tokens(pixels[None])
        ids = [self._begin]
        while len(ids) < self._bundle.max_tokens:
            logits = self._session.run({"image_tokens": image_tokens, "input_ids": np.array([ids], np.int64)}, "next")
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == self._end:
                break
        return self._bundle.words([token for token in ids if token not in (self._begin, self._end)])


def fused_of(encoder: object) -> Fused | None:
    """The fusion encoder of a bundle that has one."""
    return Fused(encoder) if isinstance(encoder, Bundle) and "fusion" in encoder.extras else None


def describing_of(encoder: object) -> Describing | None:
    """The decoder of a bundle that has one."""
    return Describing(encoder) if isinstance(encoder, Bundle) and "decoder" in encoder.extras else None
