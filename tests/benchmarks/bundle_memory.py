"""Peak memory and time of making the bundle of ViT-B-32-256, with random weights; the promise is less than 4 GB."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mmsearch.encoders.openclip import make_bundle
from tests.benchmarks.measure import Row

SAVE_RANDOM_WEIGHTS = """
import sys, open_clip, torch
from safetensors.torch import save_file
torch.manual_seed(0)
model = open_clip.create_model(sys.argv[1])
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, sys.argv[2])
"""


def rows(folder: Path, quick: bool, architecture: str = "ViT-B-32-256") -> Iterator[Row]:
    """Measure in an empty folder; the conversion runs in a child process, whose memory is what counts."""
    weights = folder / "weights.safetensors"
    # Its own peak is below that of the conversion, which loads the same model
    subprocess.run([sys.executable, "-c", SAVE_RANDOM_WEIGHTS, architecture, weights], check=True, capture_output=True)
    started = time.monotonic()
    bundle = make_bundle(f"{architecture}@{weights}", folder / "bundle")
    seconds = time.monotonic() - started
    size_mb = sum(path.stat().st_size for path in bundle.folder.iterdir()) / 1e6
    yield Row(
        f"make the bundle of {architecture}",
        f"{seconds:.0f} s, peak {peak_mb():,.0f} MB, {size_mb:,.0f} MB on disk",
        {"seconds": seconds, "peak_mb": peak_mb(), "size_mb": size_mb},
    )


def peak_mb() -> float:
    """The largest child process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
