"""Virtual environments of the peers, one for each, under the user's cache; $MMSEARCH_BENCHMARKS says where else."""

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {  # what pip installs, pinned to what was measured
    "hnswlib": ("hnswlib==0.8.0",),
    "usearch": ("usearch==2.26.6",),
    "lancedb": ("lancedb==0.40.0",),
    "sqlite-vec": ("sqlite-vec==0.1.9", "apsw"),
    "clip-retrieval": ("clip-retrieval==2.45.0", "setuptools<80"),  # clip imports pkg_resources
    "rclip": ("rclip==3.3.0",),
}


def environment(peer: str) -> str | None:
    """The Python of a peer's own virtual environment, made the first time; None where it cannot be had."""
    cache = Path(os.environ.get("MMSEARCH_BENCHMARKS", "~/.cache/mmsearch-benchmarks")).expanduser()
    folder = cache / PACKAGES[peer][0]
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[peer], "numpy"], check=True)
        except subprocess.CalledProcessError:
            return None
        (folder / "made").touch()
    return str(python)
