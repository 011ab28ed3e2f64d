"""From how many vectors on cells are worth it: one index, all of it read, and by cells; 512 dimensions, one core."""

from collections.abc import Iterator
from pathlib import Path

from mmsearch.store import vectors
from mmsearch.store.metadata import Store
from mmsearch.store.records import FloatArray
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.filled import fill_with
from tests.benchmarks.measure import Row
from tests.benchmarks.peer import K, measured
from tests.benchmarks.vector_search import true_neighbours

QUERIES = 200


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    import faiss

    for count in (5_000, 20_000, 50_000) if quick else (5_000, 10_000, 20_000, 50_000, 100_000, 200_000):
        workload = Workload(count)
        texts, _ = workload.text_queries(QUERIES)
        true = true_neighbours(workload, {"text": texts})["text"]
        store = Store(folder / f"{count}")
        fill_with(store.folder, workload)
        told = {}
        for way, cells_from in (("all read", count + 1), ("by cells", 0)):
            faiss.omp_set_num_threads(2)
            _build(store, cells_from, workload.text_queries(400)[0][1::2])
            faiss.omp_set_num_threads(1)
            with store.read() as reader:
                index = VectorIndex(store)

                def ask(query: FloatArray) -> list[int]:
                    return [number - 1 for number in index.search(reader, "image", query, K)[0].tolist()]  # noqa: B023

                told[way] = measured(ask, texts, true)
        store.close()
        yield Row(
            f"{count:,} vectors, all read / by cells",
            " / ".join(f"{point['ms']:.2f} ms (recall {point['recall']:.3f})" for point in told.values()),
            {f"{way}_{name}": value for way, point in told.items() for name, value in point.items()},
        )


def _build(store: Store, cells_from: int, texts: FloatArray) -> None:
    usual = vectors.CELLS_FROM
    try:
        vectors.CELLS_FROM = cells_from
        with store.write() as writer:
            with writer.transaction():
                writer.put_segments("image", (), (), 0)  # as if nothing had been built
            VectorIndex(store).build(writer, "image", lambda: texts)
    finally:
        vectors.CELLS_FROM = usual
