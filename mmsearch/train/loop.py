"""The loop: batches of pairs, a loss, AdamW with warm-up and cosine decay, a head at its end.

Features are ready (they are what an index keeps), so that a step costs two small matrix products and not a picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mmsearch.train.heads import MlpHead
from mmsearch.train.losses import LOSSES
from mmsearch.train.optimizers import schedule
from mmsearch.train.pairs import Pairs

FloatArray: TypeAlias = npt.NDArray[np.float32]
Tell: TypeAlias = Callable[[int, float], None]

FIRST_SCALE = 20.0  # inverse temperature at the start; it is learned. CLIP starts at 14.3, and ends at 100
LARGEST_SCALE = 100.0  # as CLIP clips it
DEVIATION_FLOOR = 1e-3  # a feature that never changes is not blown up


@dataclass(frozen=True)
class TrainSettings:
    """How a head is trained. The defaults were chosen on held-out drawings and photographs (recipes/lite)."""

    loss: str = "info_nce"
    steps: int = 300
    batch: int = 1024  # groups
    hidden: int = 512
    dropout: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 50
    alike: float = 0.85  # two texts with a cosine above this say the same
    seed: int = 0


def fit_head(pairs: Pairs, known: FloatArray | None, settings: TrainSettings, tell: Tell | None = None) -> MlpHead:
    """A head that says of each picture what `known` does not say yet.

    known: (views, pictures, dim) unit rows of a model that stays as it is, and whose scores are added to the head's in
    the loss: what it knows need not be learned again. None: the head stands alone. tell: called with step and loss.
    The same pairs and settings give the same head on one machine. Raises KeyError for an unknown loss.
    """
    loss_of = LOSSES[settings.loss]
    torch.manual_seed(settings.seed)
    seen = np.asarray(pairs.views[0][pairs.pictures], dtype=np.float32)
    deviation = np.maximum(seen.std(axis=0), np.float32(DEVIATION_FLOOR))
    head = MlpHead(seen.mean(axis=0), deviation, settings.hidden, pairs.texts.shape[1], settings.dropout)
    scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
    optimizer = torch.optim.AdamW(
        [*head.parameters(), scale], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    rates = schedule("cosine", optimizer, settings.steps, settings.warmup_steps)
    head.train()
    for step, batch in enumerate(pairs.batches(settings.batch, settings.steps, settings.seed)):
        texts = torch.from_numpy(batch.texts)  # (n, dim)
        scores = head(torch.from_numpy(batch.features)) @ texts.T  # (n, n)
        if known is not None:
            scores = (scores + torch.from_numpy(known[batch.views, batch.pictures]) @ texts.T) / 2
        loss = loss_of(scores * scale.exp().clamp(max=LARGEST_SCALE), _alike(texts, settings.alike))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
        if tell is not None:
            tell(step, loss.item())
    return head.eval()


def _alike(texts: Tensor, least: float) -> Tensor:
    """(n, n) where two texts of a batch say the same; never on the diagonal."""
    return (texts @ texts.T > least) & ~torch.eye(len(texts), dtype=torch.bool)
