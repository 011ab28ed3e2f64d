"""The vector index of mmsearch on the made-up workload, as peer.py does it: `python -m tests.benchmarks.own FOLDER`.

It builds from the vectors in the store up to the first query, or (`--search`) answers, in a process of its own: first
the vector index alone, as the peers do; then whole searches, with filters, many hits, and items added meanwhile.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.records import FloatArray, IntArray
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.filled import FILTERS, Known
from tests.benchmarks.peer import K, measured, resident_mb

ADDED = 1_000
MANY = 10_000
EXACT = 30  # queries whose filtered neighbours are also told exactly


def main(folder: Path, *, search: bool) -> None:
    """Build, or search and measure."""
    if not search:
        print(json.dumps(_build(folder)))
        return
    import faiss

    faiss.omp_set_num_threads(1)
    texts, images = np.load(folder / "texts.npy"), np.load(folder / "image_queries.npy")
    true = np.load(folder / "true.npz")
    store = Store(folder / "index")
    vectors = VectorIndex(store)
    with store.read() as reader:

        def ask(query: FloatArray) -> list[int]:
            return [number - 1 for number in vectors.search(reader, "image", query, K)[0].tolist()]

        point = {
            "setting": "its own choice",
            "text": measured(ask, texts, true["text"]),
            "image": measured(ask, images, true["image"]),
        }
    store.close()
    told: dict[str, Any] = {"points": [point], "resident_mb": resident_mb()}
    told["also"] = dict(_whole_searches(folder, texts, images))
    print(json.dumps(told))


def _build(folder: Path) -> dict[str, float]:
    """Seconds, of the clock and of all cores, from vectors in the store to the answer of a first query."""
    texts = np.load(folder / "texts.npy")
    store = Store(folder / "index")
    vectors = VectorIndex(store)
    # Other texts than are asked later, as the everyday queries would be
    others = Workload(50_000, texts.shape[1]).text_queries(200)[0]
    started, worked = time.perf_counter(), time.process_time()
    with store.write() as writer:
        vectors.build(writer, "image", lambda: others)
    with store.read() as reader:
        vectors.search(reader, "image", texts[0], K)
    told = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    store.close()
    return told


def _whole_searches(folder: Path, texts: FloatArray, images: FloatArray) -> Any:
    rows = np.load(folder / "images.npy", mmap_mode="r")
    with Index(folder / "index", encoder=Known(texts, images)) as index:
        index.search("text 0")
        yield _row("whole search, k 10", _milliseconds(lambda n: index.search(f"text {n}"), 50), resident_mb())
        yield _row(f"whole search, k {MANY:,}", _milliseconds(lambda n: index.search(f"text {n}", k=MANY), 7))
        for share, filters in FILTERS.items():
            for name, filter_ in filters.items():
                first = _milliseconds(lambda n: index.search("text 1", **filter_), 1)  # noqa: B023
                again = _milliseconds(lambda n: index.search(f"text {n}", **filter_), 20)  # noqa: B023
                found = len(index.search("text 2", **filter_))
                recall = _filtered_recall(index, rows, texts, share, name)
                yield (
                    f"{name} that leaves {share}",
                    {
                        "figure": f"{again[1]:.1f} ms, the first time {first[1]:.1f} ms, {found} hits, "
                        f"recall {recall:.3f}",
                        "values": {"ms": again[1], "first_ms": first[1], "hits": found, "recall": recall},
                    },
                )
        yield "added", _added(index, rows)


def _milliseconds(ask: Callable[[int], object], times: int) -> tuple[float, float, float]:
    """Quartiles of single calls."""
    taken = []
    for number in range(times):
        started = time.perf_counter()
        ask(number)
        taken.append((time.perf_counter() - started) * 1000)
    low, median, high = statistics.quantiles(taken if len(taken) > 1 else taken * 2, n=4)
    return low, median, high


def _row(what: str, taken: tuple[float, float, float], memory_mb: float | None = None) -> tuple[str, Any]:
    low, median, high = taken
    memory = "" if memory_mb is None else f", {memory_mb:,.0f} MB"
    values = {"ms": median, "ms_low": low, "ms_high": high}
    return what, {"figure": f"{median:.1f} ms ({low:.1f}-{high:.1f}){memory}", "values": values}


def _filtered_recall(index: Index, rows: FloatArray, texts: FloatArray, share: str, name: str) -> float:
    """recall@10 among what passes, by the vectors that the workload was made of."""
    numbers = np.arange(len(rows))
    passing: IntArray
    if name == "date":
        import sqlite3
        from contextlib import closing

        bounds = FILTERS[share]["date"]
        with closing(sqlite3.connect(f"file:{index.folder / 'index.db'}?mode=ro", uri=True)) as database:
            found = database.execute(
                "SELECT id - 1 FROM items WHERE taken_at >= ? AND taken_at < ?",
                (bounds["after"], bounds.get("before", "9999")),
            )
            passing = np.array([row[0] for row in found], np.int64)
    else:
        step = {"half": 2, "1 %": 100, "0.01 %": 10_000}[share]
        wanted = FILTERS[share][name]
        if "kind" in wanted:
            passing = numbers
        elif "under" in wanted:
            passing = numbers[numbers % step == {2: 0, 100: 14, 10_000: 3_314}[step]]
        else:
            passing = numbers[numbers % step == {2: 1}.get(step, 7)]
    import faiss

    some = rows[passing]
    true = passing[faiss.knn(texts[:EXACT], np.ascontiguousarray(some), K, faiss.METRIC_INNER_PRODUCT)[1]]
    right = 0
    for number in range(EXACT):
        hits = index.search(f"text {number}", **FILTERS[share][name])
        right += len({int(hit.id[3:]) - 1 for hit in hits} & set(true[number].tolist()))
    return right / (K * EXACT)


def _added(index: Index, rows: FloatArray) -> dict[str, Any]:
    """Texts of which each is found as soon as `add_texts` is back."""
    started = time.perf_counter()
    ids = index.add_texts([f"text {number % 300}" for number in range(ADDED)])
    hit = index.search("text 7", kind="text", k=1)[0]
    seconds = time.perf_counter() - started
    assert hit.id == ids[7] and hit.score > 0.99
    index.remove(ids=ids)
    figure = f"{ADDED:,} items added to {len(rows):,} and the first of them found: {seconds:.2f} s"
    return {"figure": figure, "values": {"seconds": seconds}}


if __name__ == "__main__":
    main(Path(sys.argv[1]), search="--search" in sys.argv)
