"""Indexing rate and peak memory: photographs of twelve megapixels, and small pictures, with `lite`.

The rate of small pictures is also given as a share of what the encoder alone does on ready arrays in the same run.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmsearch import load_encoder
from mmsearch.embedding import PICTURES_AT_ONCE, embed_batches
from mmsearch.encoders.base import FeatureEncoder
from tests import pictures
from tests.benchmarks.measure import Row, run

DISTINCT = 24  # pictures that are drawn; the others are links to them, decoded and encoded each on its own


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    for what, size, count, formats in (
        ("12-megapixel photographs", (4000, 3000), 120 if quick else 10_000, ("jpg",)),
        ("small pictures (512 px; JPEG, PNG, WebP)", (512, 384), 600 if quick else 10_000, ("jpg", "png", "webp")),
    ):
        photos = folder / f"{size[0]}"
        photos.mkdir()
        draw(photos, size, count, formats)
        ran = run(
            ["index", str(photos), "--model", "lite", "-i", str(folder / f"index-{size[0]}"), "--quiet"],
            watch_memory=True,
        )
        alone = encoder_rate()
        rate = count / ran.seconds
        yield Row(
            f"index {count:,} {what}",
            f"{rate:.1f} pictures/s, {rate / alone:.2f} of the encoder alone, peak {ran.peak_mb:,.0f} MB",
            {"count": count, "pictures_per_s": rate, "of_encoder_alone": rate / alone, "peak_mb": ran.peak_mb},
        )


def draw(folder: Path, size: tuple[int, int], count: int, formats: Sequence[str] = ("jpg",)) -> None:
    """So many photographs, in turn of each format; only the first few are drawn."""
    for number in range(count):
        suffix = formats[number % len(formats)]
        path = folder / f"{number:05}.{suffix}"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:05}.{suffix}", path)  # DISTINCT is a multiple of how many formats
        elif suffix == "jpg":
            pictures.photo(path, size, number)
        else:
            pictures.scene(size, number).save(path, quality=88)


def encoder_rate() -> float:
    """Pictures a second that the encoder does on ready arrays, one batch in the tower while the last is projected."""
    encoder = load_encoder("lite")
    assert isinstance(encoder, FeatureEncoder)
    shape = (PICTURES_AT_ONCE, encoder.pixels.height, encoder.pixels.width, 3)
    batch = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    list(embed_batches(encoder, [batch], lambda pixels: pixels))
    started = time.perf_counter()
    encoded = sum(len(rows) for _, rows in embed_batches(encoder, [batch] * 20, lambda pixels: pixels))
    return encoded / (time.perf_counter() - started)
