"""Peak memory and time of making the bundle of ViT-B-32-256: `python -m tests.benchmarks.bundle_memory`.

Random weights. The promise is less than 4 GB; another architecture may be given: `... bundle_memory ViT-L-14`.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmsearch.encoders.openclip import make_bundle

SAVE_RANDOM_WEIGHTS = """
import sys, open_clip, torch
from safetensors.torch import save_file
torch.manual_seed(0)
model = open_clip.create_model(sys.argv[1])
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, sys.argv[2])
"""


def main() -> None:
    """Prints one row; the conversion runs in a child process, whose memory is what counts."""
    architecture = sys.argv[1] if len(sys.argv) > 1 else "ViT-B-32-256"
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        # Its own peak is below that of the conversion, which loads the same model.
        subprocess.run(
            [sys.executable, "-c", SAVE_RANDOM_WEIGHTS, architecture, weights], check=True, capture_output=True
        )
        before = peak_gb()
        started = time.monotonic()
        bundle = make_bundle(f"{architecture}@{weights}", Path(folder) / "bundle")
        seconds = time.monotonic() - started
        size_mb = sum(path.stat().st_size for path in bundle.folder.iterdir()) / 1e6
    print(f"{'model':24} {'peak GB':>8} {'(to save it first)':>19} {'seconds':>8} {'bundle MB':>10}")
    print(f"{architecture:24} {peak_gb():8.2f} {before:19.2f} {seconds:8.0f} {size_mb:10.0f}")


def peak_gb() -> float:
    """The largest child process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


if __name__ == "__main__":
    main()
