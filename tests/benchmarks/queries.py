"""First and warm query at several sizes of an index, words against pictures, with the text tower of `lite`."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.records import NewFile, NewItem
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.measure import Row, median_seconds, run


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    for count in (1_000, 20_000) if quick else (1_000, 100_000):
        index = folder / f"index-{count}"
        fill(index, count)
        cold = median_seconds(["search", "a red bicycle in the snow", "-i", str(index)])
        peak = run(["search", "a red bicycle in the snow", "-i", str(index)], watch_memory=True).peak_mb
        yield Row(
            f"first query, {count:,} items, new process",
            f"{cold:.2f} s, {peak:,.0f} MB",
            {"count": count, "seconds": cold, "peak_mb": peak},
        )
        warm = _warm_ms(index)
        yield Row(f"warm query, {count:,} items", f"{warm:.1f} ms", {"count": count, "ms": warm})


def fill(folder: Path, count: int) -> None:
    """An index of `lite` with pictures that have paths and random vectors, 384 dimensions wide."""
    with Index(folder, model="lite") as index:
        index.add_texts(["so that the index is made"])
    rng = np.random.default_rng(0)
    store = Store(folder)
    with store.write() as writer:
        for start in range(0, count, 1_000):
            block = rng.standard_normal((min(1_000, count - start), 384)).astype(np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            with writer.transaction():
                for number, vector in enumerate(block, start):
                    path = f"/photos/{number % 97:02}/{number:07}.jpg"
                    file_id = writer.put_file(NewFile(path, "image", 4_000_000 + number, number, f"{number:040x}"))
                    writer.put_items([NewItem("image", vector, width=4000, height=3000, format="JPEG")], file_id)
        vectors = VectorIndex(store)
        vectors.build(writer, "image")
        vectors.build(writer, "text")
    store.close()


def _warm_ms(folder: Path) -> float:
    """Median over thirty different queries, the encoder's part included."""
    with Index(folder) as index:
        index.search("warm up")
        taken = []
        for number in range(30):
            started = time.perf_counter()
            index.search(f"a dog and {number} red balloons on a lawn")
            taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000
