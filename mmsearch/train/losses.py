"""What a batch of pairs is judged by. A loss is a row of `LOSSES`: scores of all pictures with all texts, and a number.

scores: (n, n), picture i with text j, times the (learned) inverse temperature; pair i is on the diagonal. alike: (n, n)
bool, true where text j may be said of picture i too, off the diagonal: such places count neither as right nor as wrong.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


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


LOSSES: dict[str, Loss] = {"info_nce": info_nce, "sigmoid": sigmoid}
