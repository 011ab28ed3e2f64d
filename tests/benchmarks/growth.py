"""What grows with an index, and how: building, opening, a warm query, memory and disk, as a table and a plot.

The made-up workload of 512 dimensions at every size. Each size is built in one process and answers in another. Nothing
may grow faster than its nature: building and disk as the number of vectors, a query about as its root.

    python -m tests.benchmarks.growth FOLDER 10000000  # one size, which stays there: 3 GB a million
    python -m tests.benchmarks.growth FOLDER search  # what is there, asked again
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmsearch.nearest import Neighbours
from mmsearch.store.metadata import Store
from mmsearch.store.records import FloatArray
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.filled import SETTINGS, fill
from tests.benchmarks.measure import ROOT, Row
from tests.benchmarks.peer import K, measured, resident_mb

QUERIES = 100  # of each kind
PLOT = "growth.png"


def rows(folder: Path, quick: bool, counts: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)) -> Iterator[Row]:
    """Measure in an empty folder, of some 3 GB for every million; the plot is written to the current folder."""
    told = []
    for count in counts[:3] if quick else counts:
        told.append(_told(folder / str(count), count))
        shutil.rmtree(folder / str(count))
        one = told[-1]
        yield Row(
            f"{count:,} x 512",
            f"built in {one['build_s']:.1f} s; opened with a first query in {one['open_s']:.2f} s; warm: words "
            f"{one['text_recall']:.3f} in {one['text_ms']:.2f} ms, pictures {one['image_recall']:.3f} in "
            f"{one['image_ms']:.2f} ms; {one['resident_mb']:,.0f} MB; on disk {one['disk_mb']:,.0f} MB",
            one,
        )
    plot(told, Path(PLOT))


def plot(told: Sequence[dict[str, float]], path: Path) -> None:
    """One panel for each thing that grows, both axes in powers of ten."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "build_s": "building, s",
        "open_s": "opening and a first query, s",
        "text_ms": "a warm query by words, ms",
        "resident_mb": "memory, MB",
        "disk_mb": "disk, MB",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3 * len(panels), 3), layout="constrained")
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        axis.loglog([one["count"] for one in told], [one[name] for one in told], marker="o", color="#2f6f5f")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("vectors", fontsize=9)
        axis.grid(True, alpha=0.3)
    figure.savefig(path, dpi=110)


def _told(folder: Path, count: int) -> dict[str, float]:
    workload = Workload(count)
    asked = {"text": workload.text_queries(QUERIES)[0], "image": workload.image_queries(QUERIES)}
    true = {name: Neighbours(queries, K) for name, queries in asked.items()}

    def watched() -> Iterator[FloatArray]:
        seen = 0
        for block in workload.images():
            for neighbours in true.values():
                neighbours.see(np.arange(seen, seen + len(block)), block)
            seen += len(block)
            yield block

    fill(folder / "index", watched(), {"dim": str(workload.dim), **SETTINGS})
    nothing = np.full(QUERIES, -1)
    np.savez(folder / "true.npz", **{name: each.but_for(nothing) for name, each in true.items()})
    np.savez(folder / "asked.npz", **asked)
    parts = [
        json.loads(
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.growth", str(folder), part],
                check=True,
                capture_output=True,
                text=True,
                cwd=ROOT,
            ).stdout
        )
        for part in ("build", "search")
    ]
    disk = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file())
    return {"count": count, **parts[0], **parts[1], "disk_mb": disk / 1e6}


def _build(folder: Path) -> dict[str, float]:
    texts = np.load(folder / "asked.npz")["text"]
    with contextlib.closing(Store(folder / "index")) as store, store.write() as writer:
        started = time.perf_counter()
        VectorIndex(store).build(writer, "image", lambda: texts)
        return {"build_s": time.perf_counter() - started, "build_mb": resident_mb()}


def _search(folder: Path) -> dict[str, float]:
    asked, true = np.load(folder / "asked.npz"), np.load(folder / "true.npz")
    queries = {name: asked[name] for name in ("text", "image")}
    started = time.perf_counter()
    with contextlib.closing(Store(folder / "index")) as store, store.read() as reader:
        vectors = VectorIndex(store)

        def ask(query: FloatArray) -> list[int]:
            return [number - 1 for number in vectors.search(reader, "image", query, K)[0].tolist()]

        ask(queries["text"][0])
        told = {"open_s": time.perf_counter() - started}
        for name, rows in queries.items():
            told |= {f"{name}_{figure}": value for figure, value in measured(ask, rows, true[name]).items()}
        return told | {"resident_mb": resident_mb()}


if __name__ == "__main__":
    where, what = Path(sys.argv[1]), sys.argv[2]
    parts = {"build": _build, "search": _search}
    print(json.dumps(parts[what](where) if what in parts else _told(where, int(what))))
