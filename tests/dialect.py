"""A domain to be learned in a second: pictures in two colours, and a dialect that has its own words for them."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmsearch.encoders.base import FloatArray
from tests.colours import COLOURS, ColourEncoder

DIALECT = dict(zip(COLOURS, ("zorp", "blim", "quax", "fendle", "mupp", "tark"), strict=True))
LETTERS = 16  # numbers that tell one word from another


class DialectEncoder(ColourEncoder):
    """Knows colours by their names; of other words it only knows that they differ."""

    name = "dialect"
    dim = 13 + LETTERS

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        return self._beside(super().encode_images(images), np.zeros((len(images), LETTERS), np.float32))

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        known = [[word for word in text.lower().split() if word in COLOURS] for text in texts]
        letters = np.stack(
            [sum((_letters(word) for word in text.lower().split()), np.zeros(LETTERS)) for text in texts]
        )
        colours = super().encode_texts([" ".join(words) for words in known])
        return self._beside(colours, (letters * 0.5).astype(np.float32))

    def _rows(self, rows: Sequence[FloatArray]) -> FloatArray:
        array = np.array([[*(row / 127.5 - 1), 0.2] for row in rows], np.float32).reshape(len(rows), 13)
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    def _beside(self, rows: FloatArray, letters: FloatArray) -> FloatArray:
        both = np.concatenate((rows, letters), axis=1).astype(np.float32)
        return both / np.linalg.norm(both, axis=1, keepdims=True)


def _letters(word: str) -> FloatArray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
    return np.random.default_rng(seed).standard_normal(LETTERS).astype(np.float32) / 4


def draw(folder: Path, each: int = 8) -> Path:
    """`each` pictures of every two colours, with what the dialect says of them; gives the table."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for over, over_word in DIALECT.items():
        for under, under_word in DIALECT.items():
            for number in range(each):
                pixels = np.empty((8, 8, 3))
                pixels[:4], pixels[4:] = COLOURS[over], COLOURS[under]
                noisy = np.clip(pixels + random.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
                path = folder / f"{over}-{under}-{number}.png"
                Image.fromarray(noisy).resize((32, 32), Image.Resampling.NEAREST).save(path)
                # The words of the half that is seen first tell which is over
                rows.append((path.name, f"{over_word}ish {under_word}"))
    table = folder / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    return table
