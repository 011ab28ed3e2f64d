"""What a fusion encoder is worth: on held-out pairs, beside the cosine of the two towers that it is to replace.

It costs a reading of picture and text for each pair, and after few steps it may be worse than the cosine. So nothing
uses it unasked: the bundle keeps these figures, `match` takes the better of the two, and `--rerank` refuses the worse.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmsearch.encoders.base import FloatArray, PixelArray
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.joint import Worth
from mmsearch.evaluate import auc, best_ranks, reciprocal_rank
from mmsearch.reranking import RERANKED
from mmsearch.train.model import Model
from mmsearch.train.words import Words

PICTURES_MOST = 512  # that are read token by token; 200 MB of a ResNet-50
ASKED_MOST = 100  # texts, each of up to RERANKED pictures
AT_ONCE = 64


@dataclass(frozen=True)
class HeldOut:
    """Pairs that nothing was learned from, by their different pictures and texts.

    images: (p, dim), texts: (t, dim), of length 1. right: (p, t) bool, which belong together; every row and every
    column has a right place. pixels: (., h, w, 3) uint8, of which `shown`, (p,), are these pictures. said: (t,).
    """

    images: FloatArray
    texts: FloatArray
    right: "npt.NDArray[np.bool_]"
    pixels: PixelArray
    shown: "npt.NDArray[np.int64]"
    said: Sequence[str]


def read_held_out(
    pixels: PixelArray,
    pairs: Sequence[tuple[int, str]],
    images: Callable[[Tensor], Tensor],
    texts: Callable[[Sequence[str]], Tensor],
) -> HeldOut:
    """Pairs of a row of pixels and a text, with their vectors.

    images: (n, h, w, 3) uint8 -> (n, dim) of length 1; texts: the same of n texts. Both are called without gradients.
    """
    shown = list(dict.fromkeys(picture for picture, _ in pairs))
    said = list(dict.fromkeys(text for _, text in pairs))
    rows = {picture: place for place, picture in enumerate(shown)}
    columns = {text: place for place, text in enumerate(said)}
    right = np.zeros((len(shown), len(said)), bool)
    for picture, text in pairs:
        right[rows[picture], columns[text]] = True
    with torch.inference_mode():
        seen = [
            images(torch.from_numpy(pixels[shown[start : start + AT_ONCE]])).cpu().numpy()
            for start in range(0, len(shown), AT_ONCE)
        ]
        asked = [texts(said[start : start + AT_ONCE]).cpu().numpy() for start in range(0, len(said), AT_ONCE)]
    return HeldOut(np.concatenate(seen), np.concatenate(asked), right, pixels, np.array(shown), said)


class Compared:
    """Pictures and texts of held-out pairs, read token by token once, and the scores of both judges."""

    def __init__(self, model: Model, words: Words, held_out: HeldOut, stands_out: FloatArray) -> None:
        """stands_out: (p, t), what the calibrated cosine reads."""
        random = np.random.default_rng(0)
        some = np.sort(random.permutation(len(held_out.shown))[:PICTURES_MOST])
        theirs = np.flatnonzero(held_out.right[some].any(axis=0))
        self._right = held_out.right[np.ix_(some, theirs)]
        self._stands_out = stands_out[np.ix_(some, theirs)]
        self._model = model
        self._ids = torch.from_numpy(words.rows([held_out.said[int(text)] for text in theirs]))
        shown, said = [], []
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(some), AT_ONCE):
                pixels = held_out.pixels[held_out.shown[some[start : start + AT_ONCE]]]
                read = model.image(torch.from_numpy(pixels))
                shown.append((model.image_vectors(read), read.tokens))
            self._seconds = (time.perf_counter() - started) / len(some)  # for a picture
            for start in range(0, len(theirs), AT_ONCE):
                read = model.text(self._ids[start : start + AT_ONCE])
                said.append((model.text_vectors(read), read.tokens))
        self._images, self._image_tokens = (torch.cat(parts) for parts in zip(*shown, strict=True))
        self._texts, self._text_tokens = (torch.cat(parts) for parts in zip(*said, strict=True))
        pictures, texts = np.nonzero(self._right)
        # Each picture's other text is drawn from those that do not belong to it
        chances = random.random(self._right.shape, dtype=np.float32)[pictures]
        wrong = np.where(self._right[pictures], -1, chances).argmax(axis=1)
        asked = ~self._right[pictures].all(axis=1)
        self._matched = pictures[asked], texts[asked]
        self._unmatched = pictures[asked], wrong[asked]

    def logits(self, pictures: "npt.NDArray[np.int64]", texts: "npt.NDArray[np.int64]") -> FloatArray:
        """(n,) what the fusion encoder gives for pairs."""
        assert self._model.fusion is not None
        found = []
        with torch.inference_mode():
            for start in range(0, len(pictures), AT_ONCE):
                shown = torch.from_numpy(pictures[start : start + AT_ONCE])
                said = torch.from_numpy(texts[start : start + AT_ONCE])
                cosine = (self._images[shown] * self._texts[said]).sum(dim=1)
                mask = self._ids[said] != self._model.text.pad_id
                tokens = self._image_tokens[shown], self._text_tokens[said]
                found.append(self._model.fusion(*tokens, mask, cosine)[0].float().numpy())
        return np.concatenate(found)

    def judged(self) -> tuple[Worth, Calibration]:
        """What the fusion encoder is worth, and the curve that makes its logits probabilities."""
        matched, unmatched = self.logits(*self._matched), self.logits(*self._unmatched)
        pictures, ranks, reranked = 0, list[int](), list[int]()
        count = self._right.shape[1]
        started = time.perf_counter()
        for text in np.linspace(0, count - 1, min(ASKED_MOST, count)).astype(int):
            right, scores = self._right[:, text], (self._images @ self._texts[text]).numpy()
            first = np.argsort(-scores, kind="stable")[:RERANKED]
            ranks.append(int(best_ranks(scores[None], right[None])[0]))
            pictures += len(first)
            again = self.logits(first, np.full(len(first), text))
            # What is behind the first stays there; a right one that is not among them keeps its rank
            among = right[first]
            reranked.append(int(best_ranks(again[None], among[None])[0]) if among.any() else ranks[-1])
        seconds = self._seconds + (time.perf_counter() - started) / pictures
        worth = Worth(
            pairs=len(matched),
            auc_fusion=round(auc(matched, unmatched), 4),
            auc_cosine=round(auc(self._stands_out[self._matched], self._stands_out[self._unmatched]), 4),
            queries=len(ranks),
            mrr_reranked=round(reciprocal_rank(np.array(reranked)), 4),
            mrr_cosine=round(reciprocal_rank(np.array(ranks)), 4),
            ms=round(seconds * 1000, 2),
        )
        return worth, Calibration.fitted(matched, unmatched)
