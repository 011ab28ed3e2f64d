"""First and warm query at several sizes of an index, words against pictures, with the text tower of `lite`."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.queries import DATABASE
from mmsearch.store.records import KINDS
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.filled import fill
from tests.benchmarks.measure import Row, run

ROUNDS = 5


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder; sizes take turns, so that what else the machine does is shared by all of them.

    A first query finds nothing remembered; the same is asked again at once, and then its vector is.
    """
    counts = (1_000, 20_000) if quick else (1_000, 100_000, 1_000_000)
    indexes = {count: folder / f"index-{count}" for count in counts}
    for count, index in indexes.items():
        fill_lite(index, count)
        (index / "index.db").read_bytes()  # into the page cache
    taken: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(ROUNDS + 1):
        for count, index in indexes.items():
            (index / DATABASE).unlink(missing_ok=True)
            search = ["search", "a red bicycle in the snow", "-i", str(index)]
            taken[count].append((run(search).seconds, run(search).seconds))
    for count, index in indexes.items():
        first, again = (statistics.median(part) for part in zip(*taken[count][1:], strict=True))
        (index / DATABASE).unlink(missing_ok=True)
        peak = run(["search", "a red bicycle in the snow", "-i", str(index)], watch_memory=True).peak_mb
        yield Row(
            f"first query, {count:,} items, new process",
            f"{first:.2f} s, asked again {again:.2f} s; {peak:,.0f} MB",
            {"count": count, "seconds": first, "again_seconds": again, "peak_mb": peak},
        )
    for count, index in indexes.items():
        warm = _warm_ms(index)
        yield Row(f"warm query, {count:,} items", f"{warm:.1f} ms", {"count": count, "ms": warm})


def fill_lite(folder: Path, count: int) -> None:
    """An index of `lite` with pictures that have paths and made-up vectors, 384 dimensions wide."""
    with Index(folder, model="lite") as index:
        index.add_texts(["so that the index is made"])
    workload = Workload(count, 384)
    fill(folder, workload.images(), {})
    store = Store(folder)
    with store.write() as writer:
        for kind in KINDS:
            VectorIndex(store).build(writer, kind, lambda: workload.text_queries(200)[0])
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
