"""ViT-B-32-256 with random weights, in full precision and in 8 bits: rates of its towers, size, and agreement."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.openclip import make_bundle
from mmsearch.encoders.preprocess import fit
from mmsearch.encoders.quantise import make_int8, sample_pictures
from mmsearch.everyday import QUERIES
from tests.benchmarks.bundle_memory import SAVE_RANDOM_WEIGHTS
from tests.benchmarks.measure import Row

AT_ONCE = (1, 4, 8)
PASSES = 5


def rows(folder: Path, quick: bool, architecture: str = "ViT-B-32-256") -> Iterator[Row]:
    """Measure in an empty folder; the two take turns."""
    weights = folder / "weights.safetensors"
    subprocess.run([sys.executable, "-c", SAVE_RANDOM_WEIGHTS, architecture, weights], check=True, capture_output=True)
    full = make_bundle(f"{architecture}@{weights}", folder / "fp32")
    started = time.monotonic()
    small = make_int8(full, folder / "int8")
    figures = dict(small.agreement)
    yield Row(
        f"make {architecture} in 8 bits, and compare",
        f"{time.monotonic() - started:.0f} s; {', '.join(f'{name} {value:.4f}' for name, value in figures.items())}",
        {"seconds": time.monotonic() - started, **figures},
    )
    yield from rates({"fp32": full, "int8": small}, architecture, PASSES if not quick else 2)


def rates(bundles: dict[str, Bundle], architecture: str, passes: int) -> Iterator[Row]:
    """Pictures and texts a second, and megabytes on disk, of bundles by name; the first one is what others beat."""
    pixels = np.stack([fit(picture, next(iter(bundles.values())).pixels) for picture in sample_pictures()[::6]])
    texts = list(QUERIES[:64])

    def pictures_in(count: int) -> Callable[[Bundle], float]:
        def run(bundle: Bundle) -> float:
            started = time.perf_counter()
            for start in range(0, len(pixels), count):
                bundle.image_features(pixels[start : start + count])
            return len(pixels) / (time.perf_counter() - started)

        return run

    def texts_together(bundle: Bundle) -> float:
        started = time.perf_counter()
        bundle.text_features(texts)
        return len(texts) / (time.perf_counter() - started)

    measured = {f"pictures a second, {count} at once": pictures_in(count) for count in AT_ONCE}
    for what, run in {**measured, "texts a second": texts_together}.items():
        each: dict[str, list[float]] = {name: [] for name in bundles}
        for number in range(passes + 1):
            for name, bundle in bundles.items():
                rate = run(bundle)
                if number:  # the first loads the tower
                    each[name].append(rate)
        medians = {name: statistics.median(rates) for name, rates in each.items()}
        base, *_ = medians.values()
        told = ", ".join(f"{name} {rate:.1f} ({rate / base:.2f}x)" for name, rate in medians.items())
        yield Row(f"{architecture}: {what}", told, medians)
    sizes = {
        name: sum(file.stat().st_size for file in bundle.folder.iterdir()) / 1e6 for name, bundle in bundles.items()
    }
    yield Row(f"{architecture}: on disk", ", ".join(f"{name} {size:,.0f} MB" for name, size in sizes.items()), sizes)
