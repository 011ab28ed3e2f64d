"""Two towers in one space, what reads both together, and the sum of objectives that teaches them."""

import math
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.train.design import EncoderDesign
from mmsearch.train.fusion import Decoder, Fusion
from mmsearch.train.losses import FIRST_SCALE, LARGEST_SCALE, LOSSES, TEMPERED, binary_cross_entropy, cross_entropy
from mmsearch.train.towers import ImageTower, Read, TextTower, image_tower, text_tower

HARD = 0.5  # share of the wrong answers of `matching` that the towers choose


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
        alike = alike_in(batch)
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
            parts["matching"] = self._matching(batch, shown, said, (images @ texts.T).detach(), alike)
        if "classification" in self.design.objective:
            parts["classification"] = self._classification(batch, shown, said, (images * texts).sum(dim=1).detach())
        if self.decoder is not None:
            parts["description"] = self._description(batch, shown)
        weighted = [self.design.objective[name] * part for name, part in parts.items()]
        return {**parts, "loss": torch.stack(weighted).sum()}

    def _matching(self, batch: Shown, shown: Read, said: Read, cosines: Tensor, alike: Tensor) -> Tensor:
        """Each right pair twice: against a wrong text for its picture, and against a wrong picture for its text.

        Half of the wrong ones are hard, drawn by the towers' scores (ALBEF, Li et al. 2021, 3.2), half are any. A judge
        that is told right from hard learns that a high cosine is suspicious; so what the drawing prefers, `_preferred`,
        is taken from the logits, and what is left says how likely a pair is among pairs of any kind. (That is the
        correction for sampling of Bengio & Senecal 2008.)
        """
        mask = batch.input_ids != self.text.pad_id
        scores = cosines * self.log_scale.detach().exp().clamp(max=LARGEST_SCALE)
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        wrong = ~(alike | own)
        rows = torch.nonzero(wrong.any(dim=1) & wrong.any(dim=0))[:, 0]
        if len(rows) == 0:
            rows = own.nonzero()[:, 0]
            matched = self._matched(shown, said, mask, cosines, rows, rows)
            return binary_cross_entropy(matched, torch.ones_like(matched))
        for_pictures, for_texts = _preferred(scores, wrong)[rows], _preferred(scores.T, wrong.T)[rows]  # (r, n)
        texts = _drawn(for_pictures, wrong[rows])
        images = _drawn(for_texts, wrong.T[rows])
        matched = self._matched(shown, said, mask, cosines, rows, rows)
        place = torch.arange(len(rows), device=rows.device)
        logits = torch.cat((
            matched - for_pictures[place, rows].log(),
            matched - for_texts[place, rows].log(),
            self._matched(shown, said, mask, cosines, rows, texts) - for_pictures[place, texts].log(),
            self._matched(shown, said, mask, cosines, images, rows) - for_texts[place, images].log(),
        ))  # fmt: skip
        return binary_cross_entropy(logits, (torch.arange(len(logits), device=rows.device) < 2 * len(rows)).float())

    def _matched(self, shown: Read, said: Read, mask: Tensor, cosines: Tensor, images: Tensor, texts: Tensor) -> Tensor:
        """(n,) logits that pictures and texts, by their places in the batch, belong together."""
        assert self.fusion is not None
        logits: Tensor = self.fusion(shown.tokens[images], said.tokens[texts], mask[texts], cosines[images, texts])[0]
        return logits.float()

    def _classification(self, batch: Shown, shown: Read, said: Read, cosine: Tensor) -> Tensor:
        assert self.fusion is not None
        _, logits = self.fusion(shown.tokens, said.tokens, batch.input_ids != self.text.pad_id, cosine)
        known = batch.classes >= 0
        return cross_entropy(logits, batch.classes.clamp(min=0), known.to(logits.dtype) + 1e-9)

    def _description(self, batch: Shown, shown: Read) -> Tensor:
        assert self.decoder is not None
        logits = self.decoder(shown.tokens, batch.input_ids[:, :-1]).flatten(0, 1)
        following = batch.input_ids[:, 1:].flatten()
        return functional.cross_entropy(logits.float(), following, ignore_index=self.text.pad_id)


def _preferred(scores: Tensor, wrong: Tensor) -> Tensor:
    """(n, m) how many times likelier than any wrong one an answer is drawn: one half, and one half by the softmax.

    For the right ones too, as if they could be drawn. scores, wrong: (n, m), a row for each that is asked.
    """
    usual = scores.masked_fill(~wrong, -torch.inf).logsumexp(dim=1) - wrong.sum(dim=1).clamp(min=1).log()
    preferred: Tensor = (1 - HARD) + HARD * (scores - usual[:, None]).exp()
    return preferred


def _drawn(preferred: Tensor, wrong: Tensor) -> Tensor:
    """(n,) the place of a wrong answer for each row."""
    return torch.multinomial(preferred * wrong, 1)[:, 0]


def alike_in(batch: Shown) -> Tensor:
    """(n, n) where text j may be said of picture i too; never on the diagonal."""
    return _alike_of(batch.says, batch.shows)


def _alike_of(says: Tensor, shows: Tensor) -> Tensor:
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
