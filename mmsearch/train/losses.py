"""What a batch is judged by. A loss is a row of a table: a function of scores or logits that gives a number.

`LOSSES` read the scores of all pictures of a batch with all its texts: (n, n), picture i with text j, pair i on the
diagonal. alike: (n, n) bool, true where text j may be said of picture i too, off the diagonal: such places count
neither as right nor as wrong. Those in `TEMPERED` read cosines times an inverse temperature, which may be learned; the
others read cosines as they are.

`LABEL_LOSSES` read the logits of pairs whose label is known: does this text belong to this picture, or which class is
it? weights: (n,) how much each counts, None where all count the same.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
LabelLoss: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]

MARGIN = 0.2  # in cosine; FaceNet's, for vectors of length 1 as these
FIRST_SCALE, LARGEST_SCALE = 14.3, 100.0  # inverse temperature, where it is learned; as CLIP begins and clips it


def info_nce(scores: Tensor, alike: Tensor) -> Tensor:
    """Each picture names its text among all texts, and each text its picture: the mean of the two cross-entropies.

    CLIP, Radford et al. 2021, figure 3, without the places that `alike` takes out.
    """
    left = scores.masked_fill(alike, -torch.inf)
    right = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(left, right) + functional.cross_entropy(left.T, right)) / 2


def sigmoid(scores: Tensor, alike: Tensor) -> Tensor:
    """Each pair of a picture and a text on its own: do they belong together? Summed over texts, mean over pictures.

    SigLIP, Zhai et al. 2023, equation 2; their bias starts at -10 and is learned, here it is what makes a batch's
    chance level: -log(n - 1), so that nothing needs to be learned from a short training.
    """
    n = len(scores)
    signs = 2 * torch.eye(n, device=scores.device) - 1  # 1 on the diagonal, -1 elsewhere
    chance = torch.log(torch.tensor(max(n - 1.0, 1.0), device=scores.device))
    each = -functional.logsigmoid(signs * (scores - chance))
    return each.masked_fill(alike, 0.0).sum() / n


def triplet(scores: Tensor, alike: Tensor) -> Tensor:
    """The right answer beats a wrong one by MARGIN, in both directions: the mean of what is missing to that.

    The wrong one is semi-hard: the best of those that are worse than the right one; where all are better, the worst of
    them, the least that has to be overcome. FaceNet, Schroff et al. 2015, section 3.2; in both directions as VSE++,
    Faghri et al. 2018.
    """
    return (_triplet_of_rows(scores, alike) + _triplet_of_rows(scores.T, alike.T)) / 2


def _triplet_of_rows(scores: Tensor, alike: Tensor) -> Tensor:
    right = scores.diagonal()[:, None]  # (n, 1)
    wrong = ~alike & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)  # (n, n)
    worse = wrong & (scores < right)
    semi_hard = scores.masked_fill(~worse, -torch.inf).amax(dim=1)  # (n,)
    least = scores.masked_fill(~wrong, torch.inf).amin(dim=1)
    chosen = torch.where(worse.any(dim=1), semi_hard, least)
    has_wrong = wrong.any(dim=1)
    shortfall = functional.relu(MARGIN + chosen.masked_fill(~has_wrong, 0.0) - right[:, 0])
    return shortfall.masked_fill(~has_wrong, 0.0).mean()


def matched(scores: Tensor, alike: Tensor) -> Tensor:
    """Binary cross-entropy of matched and unmatched pairs, each half of it: the diagonal, and all that is off it.

    As `sigmoid`, but the many unmatched pairs together weigh as much as the matched ones, so that a score above 0 says
    "more likely matched than not" whatever the batch size.
    """
    n = len(scores)
    wrong = ~alike & ~torch.eye(n, dtype=torch.bool, device=scores.device)
    of_matched = -functional.logsigmoid(scores.diagonal()).mean()
    of_unmatched = -functional.logsigmoid(-scores).masked_fill(~wrong, 0.0).sum() / wrong.sum().clamp(min=1)
    return (of_matched + of_unmatched) / 2


LOSSES: dict[str, Loss] = {"info_nce": info_nce, "sigmoid": sigmoid, "triplet": triplet, "matched": matched}
TEMPERED = frozenset({"info_nce", "sigmoid", "matched"})


def binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The log loss -(y log p + (1 - y) log(1 - p)) with p = 1 / (1 + exp(-logit)), as a mean over pairs.

    logits, labels: (n,), labels from 0 to 1. Computed from logits, so that a certain answer gives no infinity.
    """
    each = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return _mean(each, weights)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log of the share that the softmax gives to the right class, as a mean over pairs.

    logits: (n, classes). labels: (n,) int64, the place of the right class.
    """
    return _mean(functional.cross_entropy(logits, labels, reduction="none"), weights)


def _mean(each: Tensor, weights: Tensor | None) -> Tensor:
    return each.mean() if weights is None else (each * weights).sum() / weights.sum()


LABEL_LOSSES: dict[str, LabelLoss] = {"bce": binary_cross_entropy, "cross_entropy": cross_entropy}
