"""Features of pictures for a training, beside open_clip's own loader and model on the same files with the same weights.

The weights are random ones of ViT-B-32-256. open_clip's side is `open_clip_loop`, mmsearch's is `training.gather`,
which `train heads` calls. Each in a process of its own, its model loaded before the clock starts; they take turns.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import pictures
from tests.benchmarks.bundle_memory import SAVE_RANDOM_WEIGHTS
from tests.benchmarks.measure import ROOT, Row

ARCHITECTURE = "ViT-B-32-256"
PHOTOGRAPHS, SMALL = 60, 240
ROUNDS = 3
BATCH = 32

MMSEARCH = """
import os, sys, time
import numpy as np
from mmsearch import load_encoder
from mmsearch.sources.pairs import Pair
from mmsearch.training import gather
model, precision, folder = sys.argv[1:]
encoder = load_encoder(model, precision=precision)
encoder.encode_texts(["what it is"])
encoder.image_features(np.zeros((2, encoder.pixels.height, encoder.pixels.width, 3), np.uint8))
pairs = [Pair(os.path.join(folder, name), "what it is", name) for name in sorted(os.listdir(folder))]
started = time.perf_counter()
gathered = gather(None, lambda: encoder, pairs)
print(len(gathered.pictures) / (time.perf_counter() - started))
"""


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    weights = folder / "weights.safetensors"
    subprocess.run([sys.executable, "-c", SAVE_RANDOM_WEIGHTS, ARCHITECTURE, weights], check=True, capture_output=True)
    photographs, small = folder / "photographs", folder / "small"
    photographs.mkdir()
    small.mkdir()
    for number in range(PHOTOGRAPHS // 4 if quick else PHOTOGRAPHS):
        pictures.photo(photographs / f"{number:05}.jpg", (4000, 3000), number)
    for number in range(SMALL // 4 if quick else SMALL):
        pictures.photo(small / f"{number:05}.jpg", (512, 512), number)
    environment = os.environ | {"MMSEARCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    def rate(*arguments: object) -> float:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])

    model = f"{ARCHITECTURE}@{weights}"
    for name, files in (("photographs of 12 megapixels", photographs), ("pictures of 512 px", small)):
        found: dict[str, list[float]] = {"open_clip": [], "fp32": [], "int8": []}
        for _ in range(1 if quick else ROUNDS):
            found["open_clip"].append(
                rate("-m", "tests.benchmarks.open_clip_loop", ARCHITECTURE, weights, files, BATCH, "cpu")
            )
            for precision in ("fp32", "int8"):
                found[precision].append(rate("-c", MMSEARCH, model, precision, files))
        medians = {name: statistics.median(rates) for name, rates in found.items()}
        times = {name: medians[name] / medians["open_clip"] for name in ("fp32", "int8")}
        yield Row(
            f"features of {name} for a training: float32 / int8 / open_clip's loader and model",
            f"{medians['fp32']:.1f} / {medians['int8']:.1f} / {medians['open_clip']:.1f} pictures/s: "
            f"{times['fp32']:.2f} and {times['int8']:.2f} times",
            {**medians, "times_fp32": times["fp32"], "times_int8": times["int8"]},
        )
