"""What the card and the ablation table say of an image head: recall on the held-out sets, and whether style decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from held_out import HeldOut

from mmsearch.encoders.heads import unit_rows
from mmsearch.evaluate import best_ranks, recall_interval

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
        scores = unit_rows(embed(held_out.queries)) @ encode(one.features).T
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


def photographs_first(seen: Seen, embed: Embed, encode: Encode) -> tuple[float, int]:
    """(how often a right photograph is above a right drawing of the same word, number of such words); 0.5 is fair."""
    held_out = seen.held_out
    scores = unit_rows(embed(held_out.queries)) @ encode(seen.features).T
    shares = []
    for right, score in zip(held_out.right, scores, strict=True):
        photographs, drawn = score[right & held_out.photographs], score[right & ~held_out.photographs]
        if len(photographs) and len(drawn):
            shares.append(float((photographs[:, None] > drawn[None, :]).mean()))
    return float(np.mean(shares)), len(shares)
