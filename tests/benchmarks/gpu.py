"""Encoding on a CUDA GPU, beside open_clip's own model in half precision; nothing where there is no GPU.

The weights are random ones. Ready pictures: open_clip gets batches of float32 that stand in pinned memory and sends
them to the GPU as its users do; mmsearch gets the uint8 that its decoders give. From files: open_clip's transform in a
DataLoader with a worker per core, against a whole index, with everything that it writes. Models are loaded, and have
encoded a batch, before the clock starts; the two take turns.
"""

import functools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from mmsearch.encoders.bundle import has_cuda
from tests import pictures
from tests.benchmarks.bundle_memory import SAVE_RANDOM_WEIGHTS
from tests.benchmarks.measure import ROOT, Row

ARCHITECTURES = ("ViT-B-32-256", "ViT-L-14", "MobileCLIP2-S0", "convnext_base")
FROM_FILES = "ViT-B-32-256"
READY = 8192
FILES = (("photographs of 12 megapixels", 960, (4000, 3000)), ("pictures of 512 px", 8000, (512, 512)))
ROUNDS = 3
BATCH = 256
FROM_LOADER = 16  # open_clip's batch from files, so that each of its workers has some of them

TOGETHER = """
import sys, time
import numpy as np, open_clip, torch
from mmsearch import load_encoder
architecture, weights, count, batch, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
bundle = load_encoder(f"{architecture}@{weights}", device="cuda")
model = open_clip.create_model(architecture, weights, weights_only=True, precision="fp16", device="cuda").eval()
shape = (batch, bundle.pixels.height, bundle.pixels.width, 3)
ready = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
floats = torch.rand(batch, 3, *shape[1:3]).pin_memory()

def ours():
    for _ in range(count // batch):
        bundle.project_images(bundle.image_features(ready))

@torch.inference_mode()
def theirs():
    for _ in range(count // batch):
        rows = model.encode_image(floats.to("cuda", torch.float16, non_blocking=True), normalize=True)
        rows.float().cpu().numpy()

rates = {ours: [], theirs: []}
for round in range(rounds + 1):
    for run in rates:
        started = time.perf_counter()
        run()
        if round:
            rates[run].append(count // batch * batch / (time.perf_counter() - started))
print(*(float(np.median(each)) for each in rates.values()))
"""

MMSEARCH = """
import sys, time
import numpy as np
from mmsearch import Index
model, folder, index_folder = sys.argv[1:]
index = Index(index_folder, model=model, device="cuda")
pixels = index.encoder.pixels
index.encoder.image_features(np.zeros((256, pixels.height, pixels.width, 3), np.uint8))
started = time.perf_counter()
report = index.add(folder)
print(report.added / (time.perf_counter() - started))
"""


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Ready pictures. Measure in an empty folder."""
    if not _possible():
        return
    names = ARCHITECTURES[:1] if quick else ARCHITECTURES
    with ThreadPoolExecutor() as threads:
        weights = dict(zip(names, threads.map(functools.partial(_made, folder), names), strict=True))
    for name in names:
        ours, theirs = _told(folder, "-c", TOGETHER, name, weights[name], READY, BATCH, ROUNDS)
        yield _row(f"ready pictures on the GPU, {name}: mmsearch / open_clip in fp16", ours, theirs)


def rows_from_files(folder: Path, quick: bool) -> Iterator[Row]:
    """Pictures from files. Measure in an empty folder."""
    if not _possible():
        return
    weights = _made(folder, FROM_FILES)
    for name, count, side in FILES:
        files = folder / f"{side[0]}"
        files.mkdir()
        with ProcessPoolExecutor() as cores:
            for number in range(count // 8 if quick else count):
                cores.submit(pictures.photo, files / f"{number:05}.jpg", side, number)
        found: dict[str, list[float]] = {"mmsearch": [], "open_clip": []}
        for number in range(1 if quick else ROUNDS):
            index = folder / f"index-{side[0]}-{number}"
            found["mmsearch"] += _told(folder, "-c", MMSEARCH, f"{FROM_FILES}@{weights}", files, index)
            found["open_clip"] += _told(
                folder, "-m", "tests.benchmarks.open_clip_loop", FROM_FILES, weights, files, FROM_LOADER, "cuda"
            )
        yield _row(
            f"{name} from files on the GPU, {FROM_FILES}: an index / open_clip's loader and model in fp16",
            *(statistics.median(rates) for rates in found.values()),
        )


def _possible() -> bool:
    possible = has_cuda()
    if not possible:
        print("There is no CUDA GPU here.", file=sys.stderr)
    return possible


def _row(what: str, ours: float, theirs: float) -> Row:
    figure = f"{ours:,.0f} / {theirs:,.0f} pictures/s: {ours / theirs:.2f} times"
    return Row(what, figure, {"mmsearch": ours, "open_clip": theirs, "times": ours / theirs})


def _made(folder: Path, architecture: str) -> Path:
    """Random weights, of which mmsearch has made its bundle."""
    weights = folder / f"{architecture}.safetensors"
    _told(folder, "-c", SAVE_RANDOM_WEIGHTS, architecture, weights)
    _told(
        folder,
        "-c",
        "import sys, mmsearch; mmsearch.load_encoder(sys.argv[1], precision='fp32')",
        f"{architecture}@{weights}",
    )
    return weights


def _told(folder: Path, *arguments: object) -> list[float]:
    """The numbers in the last line of what Python prints."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"MMSEARCH_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [float(part) for line in done.stdout.splitlines()[-1:] for part in line.split()]
