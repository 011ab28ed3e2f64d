"""Two towers in one space, what reads both together, and the sum of objectives that teaches them."""

import math
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.train.design import EncoderDesign
from mmsearch.train.fusion import Decoder, Fusion
from mmsearch.train.losses import LOSSES, TEMPERED, binary_cross_entropy, cross_entropy
from mmsearch.train.towers import ImageTower, Read, TextTower, image_tower, text_tower

FIRST_SCALE, LARGEST_SCALE = 14.3, 100.0  # inverse temperature, learned; as CLIP begins and clips it


@dataclass(frozen=True)
class Shown:
    """A batch: picture i and text i belong together.

    pixels: (n, h, w, 3) uint8. input_ids: (n, t) int64. says: (n,) int64, texts of one number say the same. shows:
    (n,), pictures of one number show the same. classes: (n,) int64, -1 where the pair has none.
    """

    pixels: Tensor
    input_ids: Tensor
    says: Tensor
    shows: Tensor
    classes: Tensor


class Model(nn.Module):
    """An encoder to be trained. A call gives the loss, so that DistributedDataParallel sees all of it."""

    def __init__(self, design: EncoderDesign, vocabulary: int, classes: int = 0) -> None:
        """Raises UsageError and ModelError, as the towers do."""
        super().__init__()
        self.design = design
        self.image: ImageTower = image_tower(design)
        self.text: TextTower = text_tower(design, vocabulary)
        self.image_head = nn.Linear(self.image.width, design.dim, bias=False)
        self.text_head = nn.Linear(self.text.width, design.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        widths = self.image.token_width, self.text.token_width
        self.fusion = Fusion(design, *widths, classes) if design.fusion != "none" else None
        self.decoder = Decoder(design, widths[0], vocabulary) if "description" in design.objective else None

    def image_vectors(self, read: Read) -> Tensor:
        """(n, dim) of length 1."""
        return functional.normalize(self.image_head(read.features.float()), dim=1)

    def text_vectors(self, read: Read) -> Tensor:
        """(n, dim) of length 1."""
        return functional.normalize(self.text_head(read.features.float()), dim=1)

    def forward(self, batch: Shown) -> dict[str, Tensor]:
        """Each objective's loss, and under "loss" their sum by weights.

        Pictures and texts of all processes are each other's wrong answers; matching and description stay in their own.
        """
        shown, said = self.image(batch.pixels), self.text(batch.input_ids)
        images, texts = self.image_vectors(shown), self.text_vectors(said)
        alike = _alike(batch)
        parts: dict[str, Tensor] = {}
        all_images, all_texts, all_alike = images, texts, alike
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            all_images, all_texts = _from_all(images), _from_all(texts)
            all_alike = _alike_of(_gathered(batch.says), _gathered(batch.shows))
        scores = all_images @ all_texts.T
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        for name in self.design.contrastive:
            parts[name] = LOSSES[name](scores * scale if name in TEMPERED else scores, all_alike)
        if "matching" in self.design.objective:
            parts["matching"] = self._matching(batch, shown, said, (images @ texts.T * scale).detach(), alike)
        if "classification" in self.design.objective:
            parts["classification"] = self._classification(batch, shown, said)
        if self.decoder is not None:
            parts["description"] = self._description(batch, shown)
        weighted = [self.design.objective[name] * part for name, part in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}

    def _matching(self, batch: Shown, shown: Read, said: Read, scores: Tensor, alike: Tensor) -> Tensor:
        """Each right pair, each picture with a hard wrong text, each text with a hard wrong picture (ALBEF, 3.2)."""
        assert self.fusion is not None
        mask = batch.input_ids != self.text.pad_id
        matched, _ = self.fusion(shown.tokens, said.tokens, mask)
        wrong = scores.masked_fill(alike | torch.eye(len(scores), dtype=torch.bool, device=scores.device), -torch.inf)
        usable = torch.isfinite(wrong).any(dim=1) & torch.isfinite(wrong).any(dim=0)
        rows = torch.nonzero(usable)[:, 0]
        if len(rows) == 0:
            return binary_cross_entropy(matched, torch.ones_like(matched))
        texts = torch.multinomial(functional.softmax(wrong[rows], dim=1), 1)[:, 0]
        images = torch.multinomial(functional.softmax(wrong.T[rows], dim=1), 1)[:, 0]
        wrong_text, _ = self.fusion(shown.tokens[rows], said.tokens[texts], mask[texts])
        wrong_image, _ = self.fusion(shown.tokens[images], said.tokens[rows], mask[rows])
        logits = torch.cat((matched, wrong_text, wrong_image))
        labels = torch.cat((torch.ones_like(matched), torch.zeros_like(wrong_text), torch.zeros_like(wrong_image)))
        # Half of the pairs that it is asked about later belong together: both kinds weigh the same
        weights = torch.where(labels > 0, (len(wrong_text) + len(wrong_image)) / len(matched), 1.0)
        return binary_cross_entropy(logits, labels, weights)

    def _classification(self, batch: Shown, shown: Read, said: Read) -> Tensor:
        assert self.fusion is not None
        _, logits = self.fusion(shown.tokens, said.tokens, batch.input_ids != self.text.pad_id)
        known = batch.classes >= 0
        return cross_entropy(logits, batch.classes.clamp(min=0), known.to(logits.dtype) + 1e-9)

    def _description(self, batch: Shown, shown: Read) -> Tensor:
        assert self.decoder is not None
        logits = self.decoder(shown.tokens, batch.input_ids[:, :-1]).flatten(0, 1)
        following = batch.input_ids[:, 1:].flatten()
        return functional.cross_entropy(logits.float(), following, ignore_index=self.text.pad_id)


def _alike(batch: Shown) -> Tensor:
    return _alike_of(batch.says, batch.shows)


def _alike_of(says: Tensor, shows: Tensor) -> Tensor:
    """(n, n) where text j may be said of picture i too; never on the diagonal."""
    same = (says[:, None] == says[None]) | (shows[:, None] == shows[None])
    return same & ~torch.eye(len(says), dtype=torch.bool, device=says.device)


def _from_all(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients find their way back."""
    from torch.distributed.nn.functional import all_gather

    gathered: Tensor = torch.cat(all_gather(rows))  # type: ignore[no-untyped-call]
    return gathered


def _gathered(numbers: Tensor) -> Tensor:
    parts = [torch.empty_like(numbers) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, numbers)
    return torch.cat(parts)
