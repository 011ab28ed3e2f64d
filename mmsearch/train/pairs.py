"""Pairs as the loop reads them: features of pictures, vectors of texts, and which belong together.

Pictures of one thing (the same emoji in six styles, a product from four sides) are one group. A batch holds a group
once, by one of its pictures, in one of its views, with one of its texts: the rest of a batch is then wrong for it, as
far as a loss can take that for granted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mmsearch.errors import Error

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]


class PairsError(Error):
    """Pairs that nothing can be learned from."""


@dataclass(frozen=True)
class Captioned:
    """One picture and what may be said of it.

    picture: its row in the features. texts: rows of the texts, each with the weight that it is drawn with (> 0).
    group: what is shown, the same for every picture of the same thing.
    """

    picture: int
    texts: tuple[tuple[int, float], ...]
    group: str


@dataclass(frozen=True)
class Batch:
    """features (n, features) and texts (n, dim), both float32; row i of the one belongs to row i of the other."""

    views: IntArray  # (n,) which view of each picture
    pictures: IntArray  # (n,) and its row there
    features: FloatArray
    texts: FloatArray


class Pairs:
    """What a head is trained on.

    views: each (pictures, features): the tower's output for every picture, once as it is and once for each way that it
    was changed (cropped, turned, on another ground). texts: (m, dim) unit rows. Raises PairsError where fewer than two
    groups are left, or a picture has no text.
    """

    def __init__(self, views: Sequence[npt.NDArray[np.floating]], texts: FloatArray, captioned: Sequence[Captioned]):
        self.views = views
        self.texts = texts
        groups: dict[str, list[Captioned]] = {}
        for one in captioned:
            if not one.texts:
                raise PairsError(f"picture {one.picture} has no text: leave it out, or say what it shows")
            groups.setdefault(one.group, []).append(one)
        if len(groups) < 2:
            raise PairsError(f"pairs of {len(groups)} thing teach nothing: two different ones are the least")
        self._groups = list(groups.values())

    def __len__(self) -> int:
        """How many groups there are; a batch is never larger."""
        return len(self._groups)

    @property
    def pictures(self) -> IntArray:
        """(n,) rows of the features that have a text."""
        return np.array([one.picture for group in self._groups for one in group], dtype=np.int64)

    def batches(self, size: int, steps: int, seed: int) -> Iterator[Batch]:
        """`steps` batches of `size` groups; the same for the same seed."""
        random = np.random.default_rng(seed)
        size = min(size, len(self))
        for _ in range(steps):
            chosen = [self._groups[place] for place in random.choice(len(self), size, replace=False)]
            shown = [group[random.integers(len(group))] for group in chosen]
            said = [_drawn(one.texts, random.random()) for one in shown]
            views = random.integers(len(self.views), size=size)
            pictures = np.array([one.picture for one in shown], dtype=np.int64)
            features = np.stack([self.views[view][row] for view, row in zip(views, pictures, strict=True)])
            yield Batch(views, pictures, features.astype(np.float32), self.texts[said])


def _drawn(texts: Sequence[tuple[int, float]], point: float) -> int:
    """The text at `point` (0..1) of all weights laid end to end."""
    left = point * sum(weight for _, weight in texts)
    for text, weight in texts:
        left -= weight
        if left < 0:
            return text
    return texts[-1][0]
