"""Drawings and held-out pictures as the image tower's features, computed once and kept.

Every drawing is seen twice: as it is on white, and changed at random (mirrored, turned, cropped or with room around it,
on a coloured ground, paler or greyer), so that a head does not learn how icons are usually cut.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image, ImageEnhance

FloatArray: TypeAlias = npt.NDArray[np.float32]
Pixels: TypeAlias = npt.NDArray[np.uint8]

BATCH = 16
VIEWS = 2
SEED = 1_000_003
BICUBIC = Image.Resampling.BICUBIC


def features(tower: Path, pictures: Sequence[Callable[[], Image.Image]], side: int, view: int) -> FloatArray:
    """(n, features) of RGBA pictures, squashed to `side` pixels. view 0 is the picture as it is."""
    session = ort.InferenceSession(str(tower), providers=["CPUExecutionProvider"])

    def pixels(place: int) -> Pixels:
        seen = plain(pictures[place]()) if view == 0 else changed(pictures[place](), random.Random(view * SEED + place))
        return np.asarray(seen.resize((side, side), BICUBIC))

    with ThreadPoolExecutor(2) as threads:
        batches = _ahead(threads, pixels, len(pictures))
        return np.concatenate([session.run(None, {"pixels": np.stack(batch)})[0] for batch in batches])


def _ahead(threads: ThreadPoolExecutor, pixels: Callable[[int], Pixels], count: int) -> Iterator[list[Pixels]]:
    """Batches, one of them being drawn while the one before it is looked at."""
    waiting: list[list[Future[Pixels]]] = []
    for start in range(0, count, BATCH):
        waiting.append([threads.submit(pixels, place) for place in range(start, min(start + BATCH, count))])
        if len(waiting) > 1:
            yield [one.result() for one in waiting.pop(0)]
    for batch in waiting:
        yield [one.result() for one in batch]


def plain(image: Image.Image) -> Image.Image:
    """On white, as mmsearch shows what is transparent."""
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def changed(image: Image.Image, chance: random.Random) -> Image.Image:
    """The same thing, as somebody else would have cut and printed it."""
    if chance.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if chance.random() < 0.5:
        image = image.rotate(chance.uniform(-20, 20), BICUBIC, expand=True)
    zoom = chance.uniform(0.65, 1.35)  # of the frame: below 1 cuts off, above 1 leaves room
    width, height = (max(8, int(size * zoom * chance.uniform(0.9, 1.1))) for size in image.size)
    left, top = (_between(0, frame - size, chance) for frame, size in ((width, image.width), (height, image.height)))
    white = chance.random() < 0.6
    colour = (255, 255, 255) if white else tuple(chance.randrange(256) for _ in range(3))
    ground = Image.new("RGBA", (width, height), (*colour, 255))
    ground.alpha_composite(image, (max(left, 0), max(top, 0)), (max(-left, 0), max(-top, 0)))
    seen = ground.convert("RGB")
    if chance.random() < 0.15:
        seen = seen.convert("L").convert("RGB")
    seen = ImageEnhance.Brightness(seen).enhance(chance.uniform(0.75, 1.2))
    return ImageEnhance.Color(seen).enhance(chance.uniform(0.5, 1.4))


def _between(one: int, other: int, chance: random.Random) -> int:
    return chance.randint(min(one, other), max(one, other))
