"""How parameters are moved: an optimizer by name, and the share of its learning rate at each step.

Weight decay is for matrices and filters; what has one dimension (biases, scales of norms, a temperature) is left alone,
as in CLIP and timm.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Groups: TypeAlias = list[dict[str, Any]]
Make: TypeAlias = Callable[[Groups, float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda groups, rate: torch.optim.AdamW(groups, lr=rate),  # Loshchilov & Hutter 2019
    "adam": lambda groups, rate: torch.optim.Adam(groups, lr=rate),  # Kingma & Ba 2015; decay is in the gradient
    "rmsprop": lambda groups, rate: torch.optim.RMSprop(groups, lr=rate),  # Tieleman & Hinton 2012
    "sgd": lambda groups, rate: torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True),  # Sutskever et al. 2013
}


def optimizer(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """An optimizer of OPTIMIZERS over the parameters that learn. Raises KeyError for an unknown name."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name]([group for group in groups if group["params"]], learning_rate)


def warm_up_and_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the learning rate at a 0-based step: a straight way up, times half a cosine down.

    Loshchilov & Hutter 2017 (SGDR), without restarts.
    """
    rising = (step + 1) / warmup_steps if warmup_steps else 1.0
    return min(1.0, rising) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def warm_up(step: int, steps: int, warmup_steps: int) -> float:
    """A straight way up, and level from there."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"cosine": warm_up_and_cosine, "constant": warm_up}


def schedule(name: str, moved: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LambdaLR:
    """A schedule of SCHEDULES for an optimizer; call its `step()` after each of the optimizer's."""
    share = SCHEDULES[name]
    return LambdaLR(moved, lambda step: share(step, steps, warmup_steps))
