"""Pictures read for `lite`, with the compiled part and by Pillow alone, in turn."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmsearch import compiled, media
from mmsearch.encoders.preprocess import PixelSpec
from tests import pictures
from tests.benchmarks.measure import Row

PHOTOGRAPH, SMALL = (4000, 3000), (512, 384)
SPEC = PixelSpec(260, 260)  # lite's
ROUNDS = 5


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    count = 2 if quick else 12
    for what, size, suffix, how in (
        ("a photograph of 12 megapixels", PHOTOGRAPH, "jpg", {}),
        ("a progressive one", PHOTOGRAPH, "jpg", {"progressive": True}),
        ("a JPEG of 512 px", SMALL, "jpg", {}),
        ("a PNG of 512 px", SMALL, "png", {}),
        ("a WebP of 512 px", SMALL, "webp", {}),
    ):
        files = [folder / f"{what}-{number}.{suffix}" for number in range(count)]
        for number, file in enumerate(files):
            pictures.scene(size, number).save(file, quality=88, **how)
        ours, pillows = both_ms(files)
        yield Row(
            f"read {what}: with the compiled part / by Pillow alone",
            f"{ours:.1f} / {pillows:.1f} ms of a core: {pillows / ours:.2f} times as fast",
            {"compiled_ms": ours, "pillow_ms": pillows, "times": pillows / ours},
        )


def both_ms(files: Sequence[Path]) -> tuple[float, float]:
    """Milliseconds of a core for one of the files: with the compiled part, and by Pillow alone."""
    module: Callable[[], Any] = compiled._module
    ways: dict[Callable[[], Any], list[float]] = {module: [], lambda: None: []}
    try:
        for _ in range(ROUNDS):
            for way, taken in ways.items():
                compiled._module = way  # type: ignore[assignment]
                started = time.process_time()
                for file in files:
                    media.read(str(file), SPEC)
                taken.append((time.process_time() - started) / len(files) * 1e3)
    finally:
        compiled._module = module  # type: ignore[assignment]
    ours, pillows = (statistics.median(taken) for taken in ways.values())
    return ours, pillows
