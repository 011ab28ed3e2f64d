"""Pairs as an encoder learns from them: pixels, decoded once, and batches that follow from the seed and the step alone.

A run decodes each picture once, in the workers that also read it for an index, to the size of the tower, and keeps the
pixels: in memory, or, where they are more, in a file that is mapped. What a batch is depends on the seed and on its
number, not on what was drawn before, so that a run that was cut off goes on as if it had not been.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from mmsearch.decoding import DecodePool, Skip
from mmsearch.encoders.base import PixelArray
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import TrainingError
from mmsearch.sources.pairs import Pair
from mmsearch.sources.splits import held_out
from mmsearch.sources.tables import BadRow
from mmsearch.train.design import EncoderDesign
from mmsearch.train.model import Shown

IntArray: TypeAlias = npt.NDArray[np.int64]

IN_MEMORY_BYTES = 1_000_000_000  # of pixels; more are mapped from a file
HELD_OUT_MOST = 4_000  # pairs that are measured on


class Tokenizing(Protocol):
    """What makes tokens of texts."""

    def rows(self, texts: Sequence[str]) -> IntArray:
        """(n, t) int64."""


@dataclass(frozen=True)
class Example:
    """One pair: the row of its picture, its text, what it shows, and its class where it has one."""

    picture: int
    text: str
    group: str
    label: str | None


@dataclass(frozen=True)
class Examples:
    """What is learned from, and what is held out. pixels: (pictures, h, w, 3) uint8."""

    pixels: PixelArray
    learned: tuple[Example, ...]
    held_out: tuple[Example, ...]
    classes: tuple[str, ...]
    skipped: tuple[BadRow, ...]


def gather(
    pairs: Iterable[Pair | BadRow],
    design: EncoderDesign,
    spec: PixelSpec,
    scratch: Path,
    tell: Callable[[str], None] = lambda line: None,
) -> Examples:
    """Decodes the pictures of pairs. Raises TrainingError where too little is left to learn from.

    Pairs that are said not to match are left out: every other pair of a batch is a wrong one already. scratch: a folder
    for pixels that memory does not hold.
    """
    skipped, sound = [], list[tuple[int, Pair]]()
    places: dict[str | bytes, int] = {}  # by path, or by the hash of what lies in a tar or a table
    inside: dict[int, str] = {}  # of these, where they are from

    def images_inside() -> Iterator[bytes]:
        for pair in pairs:
            if isinstance(pair, BadRow):
                skipped.append(pair)
            elif pair.match and pair.text.strip():
                image = pair.image if isinstance(pair.image, str) else _hash(pair.image)
                place = places.setdefault(image, len(places))
                sound.append((place, replace(pair, image=pair.where)))  # its bytes are done with
                if isinstance(pair.image, bytes) and place not in inside:
                    inside[place] = pair.where
                    yield pair.image

    with tempfile.TemporaryFile(dir=scratch, prefix=".pixels-") as spool, DecodePool(spec) as pool:
        reasons: dict[int, str] = {}
        kept: list[int] = []
        for data, decoded in pool.decode(images_inside()):  # as they come: a tar may be larger than the memory
            place = places[_hash(data)]
            if isinstance(decoded, Skip):
                reasons[place] = decoded.reason
            else:
                spool.write(decoded.pixels.tobytes())
                kept.append(place)
        tell(f"decoding {len(places):,} pictures to {spec.width} x {spec.height}")
        pixels = _room(len(places), spec, scratch)
        _unspool(spool, kept, pixels)
        for path, decoded in pool.decode([image for image in places if isinstance(image, str)]):
            if isinstance(decoded, Skip):
                reasons[places[path]] = decoded.reason
            else:
                pixels[places[path]] = decoded.pixels
    names = {place: image for image, place in places.items() if isinstance(image, str)} | inside
    skipped += [BadRow(names[place], 0, reasons[place]) for place in sorted(reasons)]
    examples = [
        Example(place, pair.text, pair.group or f"picture {place}", pair.label)
        for place, pair in sound
        if place not in reasons
    ]
    splits = [pair.split for place, pair in sound if place not in reasons]
    groups = [example.group for example in examples]
    outside = held_out(splits, groups, design.held_out, lambda group: _fraction(group, design.seed))
    learned = [example for example, out in zip(examples, outside, strict=True) if not out]
    measured = [example for example, out in zip(examples, outside, strict=True) if out][:HELD_OUT_MOST]
    if len({example.group for example in learned}) < 2:
        raise TrainingError(
            f"There {'is' if len(examples) == 1 else 'are'} {len(examples)} usable pair{'s' * (len(examples) != 1)}, "
            f"{len({e.group for e in learned})} of different things to learn from; two are the least, some hundreds "
            "begin to be of use." + (f" The first that was left out: {skipped[0].reason}." if skipped else "")
        )
    if len({example.text for example in learned}) < 2:
        raise TrainingError(f"All texts say the same ({learned[0].text[:60]!r}): there is nothing to tell apart.")
    classes = sorted({example.label for example in learned if example.label is not None})
    if "classification" in design.objective and len(classes) < 2:
        raise TrainingError(
            f"The objective 'classification' needs pairs with two classes or more; these have {len(classes)}. "
            "Name the column that has them: --label-column."
        )
    return Examples(pixels, tuple(learned), tuple(measured), tuple(classes), tuple(skipped))


def _hash(image: bytes) -> bytes:
    return hashlib.blake2b(image).digest()


def _unspool(spool: IO[bytes], places: Sequence[int], pixels: PixelArray) -> None:
    spool.seek(0)
    for place in places:
        spool.readinto(pixels[place].data)  # type: ignore[attr-defined]


def _room(count: int, spec: PixelSpec, scratch: Path) -> PixelArray:
    """(count, h, w, 3) uint8, of zeros."""
    shape = (count, spec.height, spec.width, 3)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY_BYTES:
        return np.zeros(shape, np.uint8)
    file = tempfile.NamedTemporaryFile(dir=scratch, prefix=".pixels-")  # noqa: SIM115  # gone when it is closed
    return np.memmap(file, np.uint8, "w+", shape=shape)


def _fraction(group: str, seed: int) -> float:
    digest = hashlib.blake2b(f"{seed} {group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Batches:
    """Batches of examples by their number. A batch holds each group once; an epoch holds each group once."""

    def __init__(
        self, examples: Examples, words: Tokenizing, design: EncoderDesign, share: tuple[int, int] = (0, 1)
    ) -> None:
        """share: which part of how many of each batch is wanted, for several processes."""
        self._pixels, self._words, self._design, self._share = examples.pixels, words, design, share
        groups: dict[str, list[Example]] = {}
        for example in examples.learned:
            groups.setdefault(example.group, []).append(example)
        self._groups = list(groups.values())
        self._texts = {text: number for number, text in enumerate(dict.fromkeys(e.text for e in examples.learned))}
        self._classes = {label: number for number, label in enumerate(examples.classes)}
        world = share[1]
        self.size = min(design.batch, len(self._groups)) // world * world
        if self.size < 2 * world:
            raise TrainingError(f"{len(self._groups)} groups are too few for {world} processes.")
        self.per_epoch = len(self._groups) // self.size

    def batch(self, number: int) -> Shown:
        """The batch of a 0-based number, with its pictures changed as it is theirs to be."""
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.default_rng([self._design.seed, 0, epoch]).permutation(len(self._groups))
        chosen = order[place * self.size : (place + 1) * self.size]
        random = np.random.default_rng([self._design.seed, 1, number])
        drawn = [self._groups[group][int(random.integers(len(self._groups[group])))] for group in chosen]
        changes = torch.Generator().manual_seed(self._design.seed * 1_000_003 + number)
        change = _changes(self.size, changes, self._design.augment)
        rank, world = self._share
        part = slice(rank * self.size // world, (rank + 1) * self.size // world)
        mine = drawn[part]
        pixels = torch.from_numpy(self._pixels[[example.picture for example in mine]])
        if self._design.augment:
            pixels = changed(pixels, change[part])
        return Shown(
            pixels,
            torch.from_numpy(self._words.rows([example.text for example in mine])),
            torch.tensor([self._texts[example.text] for example in mine]),
            torch.from_numpy(chosen[part]),
            torch.tensor([self._classes.get(example.label or "", -1) for example in mine]),
        )


def _changes(count: int, random: torch.Generator, strength: float) -> Tensor:
    """(count, 10) numbers of -1..1 times the strength: how each picture is changed."""
    return (torch.rand(count, 10, generator=random) * 2 - 1) * strength


def changed(pixels: Tensor, change: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 -> the same, each a little turned, moved, resized, and in other light and colours.

    Never mirrored: a text may say left. change: (n, 10) in -1..1.
    """
    angle, scale = change[:, 0] * 0.17, 1 + change[:, 1] * 0.18  # up to 10 degrees
    rows = torch.stack(
        (
            torch.stack((angle.cos() * scale, -angle.sin() * scale, change[:, 2] * 0.12), dim=1),
            torch.stack(
                (angle.sin() * scale, angle.cos() * scale * (1 + change[:, 3] * 0.08), change[:, 4] * 0.12), dim=1
            ),
        ),
        dim=1,
    )  # (n, 2, 3)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    mean = moved.mean(dim=(2, 3), keepdim=True)
    contrast = (1 + change[:, 5] * 0.25)[:, None, None, None]
    light = (change[:, 6] * 25)[:, None, None, None] + (change[:, 7:10] * 18)[:, :, None, None]
    lit = (moved - mean) * contrast + mean + light
    return lit.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
