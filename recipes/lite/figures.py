"""What the card and the ablation table say of an image head: recall on the held-out sets, and whether style decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from held_out import HeldOut

from mmsearch.encoders.heads import unit_rows
from mmsearch.evaluate import best_ranks, recall_at_k, recall_interval

FloatArray: TypeAlias = npt.NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[str]], FloatArray]
Encode: TypeAlias = Callable[[FloatArray], FloatArray]

HALVES = ("all", "first", "second")
AT = {"sentences": (1, 5, 10), "words": (1, 5, 10)}


@dataclass(frozen=True)
class Seen:
    """A held-out set with the features of its pictures."""

    held_out: HeldOut
    features: FloatArray


def rows(seen: Sequence[Seen], embed: Embed, encode: Encode, half: str = "all") -> dict[str, str]:
    """Name of a figure -> how it is printed, with its bootstrap interval."""
    told = {}
    for one in seen:
        held_out = one.held_out
        scores = _scores(one, embed, encode)
        chosen = {"all": np.ones_like(held_out.second), "first": ~held_out.second, "second": held_out.second}[half]
        ranks = best_ranks(scores, held_out.right)[chosen]
        for k in AT[held_out.name]:
            told[f"{held_out.name} @{k}"] = str(recall_interval(ranks, k))
        told[f"{held_out.name} median"] = f"{np.median(ranks):.0f}"
        if held_out.name == "sentences":
            pictures = held_out.right[chosen].any(axis=0)
            backwards = best_ranks(scores.T, held_out.right.T)[pictures]
            for k in (1, 10):
                told[f"picture finds sentence @{k}"] = str(recall_interval(backwards, k))
    return told


@dataclass(frozen=True)
class Style:
    """What style does to answers: shares from 0 to 1."""

    words: int  # queries that photographs and drawings answer
    photographs_first: float  # how often a right photograph is above a right drawing of such a query; 0.5 is fair
    shown: float  # photographs among the first ten pictures of every query
    there: float  # photographs among all pictures


def style(seen: Seen, embed: Embed, encode: Encode) -> Style:
    """Whether photographs are above drawings, of the same thing and at all."""
    held_out = seen.held_out
    scores = _scores(seen, embed, encode)
    shares = []
    for right, score in zip(held_out.right, scores, strict=True):
        photographs, drawn = score[right & held_out.photographs], score[right & ~held_out.photographs]
        if len(photographs) and len(drawn):
            shares.append(float((photographs[:, None] > drawn[None, :]).mean()))
    first = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return Style(
        words=len(shares),
        photographs_first=float(np.mean(shares)),
        shown=float(held_out.photographs[first].mean()),
        there=float(held_out.photographs.mean()),
    )


def of_size(
    seen: Seen, embed: Embed, encode: Encode, queries: int, pictures: int, draws: int = 500
) -> dict[int, float]:
    """Mean recall at 1, 5 and 10 of so many queries against so many pictures, drawn from the set again and again.

    The more pictures there are, the harder it is to be among the first: sets compare only at one size. Pictures are
    those that are right, and others up to the number; a few more where there are more right ones.
    """
    held_out, scores = seen.held_out, _scores(seen, embed, encode)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        chosen = random.permutation(len(held_out.queries))[:queries]
        right = held_out.right[chosen].any(axis=0)
        order = np.argsort(np.where(right, 0.0, 1.0 + random.random(len(right))), kind="stable")
        among = order[: max(pictures, int(right.sum()))]
        ranks = best_ranks(scores[chosen][:, among], held_out.right[chosen][:, among])
        drawn.append([recall_at_k(ranks, k) for k in AT[held_out.name]])
    return dict(zip(AT[held_out.name], np.mean(drawn, axis=0).tolist(), strict=True))


def _scores(seen: Seen, embed: Embed, encode: Encode) -> FloatArray:
    return unit_rows(embed(seen.held_out.queries)) @ encode(seen.features).T
