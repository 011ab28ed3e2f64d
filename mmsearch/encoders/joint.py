"""What a bundle has beside its two towers: a fusion encoder that reads picture and text together, and a decoder.

Both read the towers' tokens. `joint_of` gives what there is; most bundles have neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.manifest import understood
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.sessions import TowerSession


@dataclass(frozen=True)
class Worth:
    """What a fusion encoder is worth beside the calibrated cosine, on pairs that nothing was learned from.

    pairs: that match, and as many that do not. auc_*: how often the matched of two pairs has the higher score.
    queries: texts that were asked of the pictures. mrr_*: mean reciprocal rank of the answers. ms: for each picture
    that is reranked, decoding apart.
    """

    pairs: int
    auc_fusion: float
    auc_cosine: float
    queries: int
    mrr_reranked: float
    mrr_cosine: float
    ms: float

    def said(self) -> str:
        """For a person, in a sentence or two."""
        used = "takes it" if self.judges else "takes the cosine, which is better"
        reranks = "" if self.reranks else "; the search is no worse without, so it is refused"
        return (
            f"AUC {self.auc_fusion:.3f} on {self.pairs:,} matched and as many unmatched pairs, the calibrated cosine "
            f"{self.auc_cosine:.3f}: `match` {used}. `--rerank`: mean reciprocal rank {self.mrr_reranked:.3f}, without "
            f"{self.mrr_cosine:.3f}, {self.ms:.1f} ms a picture beside its decoding{reranks}"
        )

    @property
    def judges(self) -> bool:
        """Whether it tells matched from unmatched pairs better than the cosine."""
        return self.auc_fusion > self.auc_cosine

    @property
    def reranks(self) -> bool:
        """Whether it orders the first hits better than the cosine."""
        return self.mrr_reranked > self.mrr_cosine


class Fused:
    """Judges pairs: do they belong together, and of which class are they.

    worth: None where it was not trained to match, or there were too few held-out pairs to say.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._session = TowerSession(bundle.folder, "fusion")
        extras = bundle.extras["fusion"]
        with understood(bundle.folder, "the fusion encoder"):
            self.matches: bool = bool(extras["matches"])
            self.classes: tuple[str, ...] = tuple(extras["classes"])
            self.worth: Worth | None = Worth(**extras["worth"]) if extras.get("worth") else None
            says = extras.get("calibration")
            self._calibration = Calibration(**says) if says else Calibration(1.0, 0.0)

    @property
    def pixels(self) -> PixelSpec:
        """The pixels that it reads."""
        return self._bundle.pixels

    def match(self, pixels: PixelArray, texts: Sequence[str]) -> FloatArray:
        """(n, h, w, 3) uint8 and n texts -> (n,) probabilities, where half of all pairs belong together."""
        return self._calibration.probability(self.logits(pixels, texts))

    def logits(self, pixels: PixelArray, texts: Sequence[str]) -> FloatArray:
        """(n, h, w, 3) uint8 and n texts -> (n,), the larger the likelier; read among hard wrong answers."""
        return self._run(pixels, texts, "match")

    def classify(self, pixels: PixelArray, texts: Sequence[str]) -> FloatArray:
        """-> (n, classes) shares that sum to 1."""
        logits = self._run(pixels, texts, "classes")
        shares: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return shares

    def _run(self, pixels: PixelArray, texts: Sequence[str], output: str) -> FloatArray:
        images, image_tokens = self._bundle.read_images(pixels)
        rows, text_tokens, mask = self._bundle.read_texts(texts)
        cosine = (images * rows).sum(axis=1)  # (n,)
        inputs = {"image_tokens": image_tokens, "text_tokens": text_tokens, "mask": mask, "cosine": cosine}
        return self._session.run(inputs, output)


class Describing:
    """Says what a picture shows, token by token, the likeliest each time."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._session = TowerSession(bundle.folder, "decoder")
        with understood(bundle.folder, "the decoder"):
            self._begin, self._end = (int(bundle.extras["decoder"][name]) for name in ("begin", "end"))

    def describe(self, pixels: PixelArray) -> str:
        """(h, w, 3) uint8 -> a text."""
        _, image_tokens = self._bundle.read_images(pixels[None])
        ids = [self._begin]
        while len(ids) < self._bundle.max_tokens:
            logits = self._session.run({"image_tokens": image_tokens, "input_ids": np.array([ids], np.int64)}, "next")
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == self._end:
                break
        return self._bundle.words([token for token in ids if token not in (self._begin, self._end)])


def fused_of(encoder: object) -> Fused | None:
    """The fusion encoder of a bundle that has one. Raises ModelError where the bundle is damaged."""
    return Fused(encoder) if isinstance(encoder, Bundle) and "fusion" in encoder.extras else None


def describing_of(encoder: object) -> Describing | None:
    """The decoder of a bundle that has one. Raises ModelError where the bundle is damaged."""
    return Describing(encoder) if isinstance(encoder, Bundle) and "decoder" in encoder.extras else None
