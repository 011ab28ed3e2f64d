"""A small encoder of a user's own: it knows colours, and where in the picture they are. Four members, no more."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmsearch.encoders.base import FloatArray

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 180, 20),
    "blue": (20, 20, 220),
    "yellow": (220, 210, 20),
    "white": (245, 245, 245),
    "black": (10, 10, 10),
}


class ColourEncoder:
    """Pictures as their mean colour on a 2 x 2 grid; words as the mean of the colours that they name."""

    name = "colours"
    dim = 13

    def __init__(self) -> None:
        self.images_encoded = 0

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        self.images_encoded += len(images)
        grids = [np.asarray(image.convert("RGB").resize((2, 2), Image.Resampling.BOX), np.float32) for image in images]
        return self._rows([grid.reshape(-1) for grid in grids])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        rows = []
        for text in texts:
            named = [colour for name, colour in COLOURS.items() if name in text.lower()] or [(128, 128, 128)]
            rows.append(np.tile(np.mean(named, axis=0), 4).astype(np.float32))
        return self._rows(rows)

    def _rows(self, rows: Sequence[FloatArray]) -> FloatArray:
        array = np.array([[*(row / 127.5 - 1), 0.2] for row in rows], np.float32).reshape(len(rows), self.dim)
        return array / np.linalg.norm(array, axis=1, keepdims=True)


def plain(colour: str, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, COLOURS[colour])


def swatch(colour: str, seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of about one colour, its own for each seed."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 25, (size[1] // 8, size[0] // 8, 3)), 0, 255).astype(
        np.uint8
    )
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
