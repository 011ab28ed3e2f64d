"""Picture and text read together, token by token: what two towers alone cannot say.

A kind of fusion is a row of `FUSED`: it reads both towers' tokens and gives one vector for the pair. Slower than a
cosine by the length of the texts, so it judges a pair, or the first hits of a search, and never an index.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.train.design import EncoderDesign
from mmsearch.train.losses import FIRST_SCALE
from mmsearch.train.recurrent import Lstm
from mmsearch.train.towers import MASKED, both_ways, masked_mean

HEADS = 4


class Concatenation(nn.Module):
    """The means of both sides, and their product, through one hidden layer."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [3 * width] + [width] * layers
        steps = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.GELU())]
        self.layers = nn.Sequential(*steps, nn.Dropout(dropout))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        shown, said = image.mean(dim=1), masked_mean(text, mask)
        fused: Tensor = self.layers(torch.cat((shown, said, shown * said), dim=1))
        return fused


class Both(nn.Module):
    """A BiLSTM over the picture's tokens and then the text's; the largest of each feature."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.onward = nn.ModuleList(Lstm(width, width // 2) for _ in range(layers))
        self.back = nn.ModuleList(Lstm(width, width // 2) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.cat((image, text), dim=1)
        seen = torch.cat((torch.ones_like(image[..., 0], dtype=torch.bool), mask), dim=1)
        for onward, back in zip(self.onward, self.back, strict=True):
            tokens = self.dropout(both_ways(onward, back, tokens, seen))
        return tokens.masked_fill(~seen[..., None], MASKED).amax(dim=1)


class CrossAttention(nn.Module):
    """The text's tokens attend to each other and to the picture's (ALBEF, Li et al. 2021); the mean of them."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, dropout, crosses=True) for _ in range(layers))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.zeros_like(mask, dtype=text.dtype).masked_fill(~mask, MASKED)[:, None, None]  # (n, 1, 1, t)
        for block in self.blocks:
            text = block(text, hidden, image)
        return masked_mean(text, mask)


class Joined(nn.Module):
    """A transformer over the tokens of both sides at once, each marked with its side (UNITER, Chen et al. 2020)."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.sides = nn.Parameter(torch.randn(2, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, dropout, crosses=False) for _ in range(layers))

    def forward(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.cat((image + self.sides[0], text + self.sides[1]), dim=1)
        seen = torch.cat((torch.ones_like(image[..., 0], dtype=torch.bool), mask), dim=1)
        hidden = torch.zeros_like(seen, dtype=tokens.dtype).masked_fill(~seen, MASKED)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, hidden)
        return masked_mean(tokens, seen)


class Block(nn.Module):
    """Attention to itself, perhaps to something else, and two layers behind; normed before each (Xiong et al. 2020)."""

    def __init__(self, width: int, dropout: float, crosses: bool) -> None:
        super().__init__()
        self.own, self.other = Attention(width), Attention(width) if crosses else None
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if crosses else 2))
        self.behind = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, hidden: Tensor, other: Tensor | None = None) -> Tensor:
        """hidden: added to the scores; MASKED where a token may not be looked at."""
        first = self.norms[0](tokens)
        tokens = tokens + self.dropout(self.own(first, first, hidden))
        if self.other is not None and other is not None:
            tokens = tokens + self.dropout(self.other(self.norms[2](tokens), other, None))
        read: Tensor = tokens + self.dropout(self.behind(self.norms[1](tokens)))
        return read


class Attention(nn.Module):
    """(n, t, w) asks (n, s, w); Vaswani et al. 2017."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.asks, self.keys, self.values = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, asking: Tensor, asked: Tensor, hidden: Tensor | None) -> Tensor:
        width = asking.shape[2]
        size = (HEADS, width // HEADS)
        q = self.asks(asking).unflatten(2, size).transpose(1, 2)  # (n, heads, t, width / heads)
        k, v = (each(asked).unflatten(2, size).transpose(1, 2) for each in (self.keys, self.values))
        scores = q @ k.transpose(2, 3) / size[1] ** 0.5
        shares = functional.softmax(scores if hidden is None else scores + hidden, dim=3)
        out: Tensor = self.out((shares @ v).transpose(1, 2).flatten(2))
        return out


FUSED: dict[str, Callable[[int, int, float], nn.Module]] = {
    "concatenation": Concatenation,
    "bilstm": Both,
    "cross_attention": CrossAttention,
    "transformer": Joined,
}


class Fusion(nn.Module):
    """Tokens of both towers -> a logit that they belong together, and logits of classes where there are any.

    The logit begins as the cosine of the towers, scaled, and what the tokens say is added to it, which is nothing at
    first: a judge that has learned little is no worse than the towers. Tokens alone need thousands of steps to find
    out what the cosine knows.
    """

    def __init__(self, design: EncoderDesign, image_width: int, text_width: int, classes: int) -> None:
        super().__init__()
        width = design.fusion_width
        self.image = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.text = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))
        self.fused = FUSED[design.fusion](width, design.fusion_layers, design.dropout)
        self.log_slope = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.match = nn.Linear(width, 1)
        nn.init.zeros_(self.match.weight)
        self.classes = nn.Linear(width, max(1, classes))

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, mask: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """image_tokens (n, s, .), text_tokens (n, t, .), mask (n, t) bool, cosine (n,) -> (n,), (n, classes)."""
        fused = self.fused(self.image(image_tokens), self.text(text_tokens), mask)
        return self.log_slope.exp() * cosine + self.match(fused)[:, 0], self.classes(fused)


class Decoder(nn.Module):
    """Says a picture word by word: a causal transformer that looks at the picture's tokens (CoCa, Yu et al. 2022)."""

    def __init__(self, design: EncoderDesign, image_width: int, vocabulary: int) -> None:
        super().__init__()
        width = design.fusion_width
        self.image = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # it is the way out too: logits begin near 0
        self.positions = nn.Parameter(torch.randn(design.max_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, design.dropout, crosses=True) for _ in range(design.fusion_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
        """(n, s, .), (n, t) -> (n, t, vocabulary): what comes after each token."""
        length = input_ids.shape[1]
        tokens = self.embedding(input_ids) + self.positions[:length]
        ahead = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = torch.zeros(length, length, dtype=tokens.dtype, device=tokens.device).masked_fill(ahead, MASKED)
        image = self.image(image_tokens)
        for block in self.blocks:
            tokens = block(tokens, hidden, image)
        following: Tensor = self.norm(tokens) @ self.embedding.weight.T
        return following  # the embedding is also the way out (Press & Wolf 2017)
