"""One vector engine on the made-up workload, in a process of its own: `python peer.py ENGINE FOLDER`.

Run by the Python of the engine's own virtual environment, so that it imports that engine and numpy, and nothing of
mmsearch. The folder holds images.npy, texts.npy, image_queries.npy and true.npz. It builds and saves an index, which a
second process (`--search`) loads and asks one query at a time, on one thread where the engine lets that be said.
Prints JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 10
Ask = Callable[[np.ndarray], list[int]]


def hnswlib_build(rows: np.ndarray, folder: Path) -> None:
    """M 16, ef_construction 200, all cores."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=16, ef_construction=200)
    for start in range(0, len(rows), 50_000):
        index.add_items(np.asarray(rows[start : start + 50_000]), np.arange(start, min(len(rows), start + 50_000)))
    index.save_index(str(folder / "hnswlib.bin"))


def hnswlib_asks(folder: Path, dim: int) -> Iterator[tuple[str, Ask]]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=dim)
    index.load_index(str(folder / "hnswlib.bin"))
    index.set_num_threads(1)
    for ef in (64, 128, 192, 256, 384, 512, 768):
        index.set_ef(ef)
        yield f"ef {ef}", lambda query: index.knn_query(query, k=K)[0][0].tolist()


def usearch_build(rows: np.ndarray, folder: Path) -> None:
    """Half precision, its own connectivity (16) and expansion (128), all cores."""
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f16")
    for start in range(0, len(rows), 50_000):
        index.add(np.arange(start, min(len(rows), start + 50_000)), np.asarray(rows[start : start + 50_000]))
    index.save(str(folder / "usearch.bin"))


def usearch_asks(folder: Path, dim: int) -> Iterator[tuple[str, Ask]]:
    from usearch.index import Index

    index = Index.restore(str(folder / "usearch.bin"))
    for expansion in (64, 128, 256, 384, 512, 768):
        index.expansion_search = expansion
        yield f"expansion {expansion}", lambda query: index.search(query, K, threads=1).keys.tolist()


def lancedb_build(rows: np.ndarray, folder: Path) -> None:
    """IVF_PQ with 1,024 lists and 64 sub-vectors of 8 bits, by the dot product."""
    import lancedb
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for start in range(0, len(rows), 10_000):
            part = np.asarray(rows[start : start + 10_000])
            vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.ravel()), rows.shape[1])
            yield pyarrow.record_batch([pyarrow.array(np.arange(start, start + len(part))), vectors], ["n", "vector"])

    schema = pyarrow.schema([("n", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), rows.shape[1]))])
    table = lancedb.connect(folder / "lancedb").create_table("rows", batches(), schema=schema)
    table.create_index(
        metric="dot", index_type="IVF_PQ", num_partitions=max(16, int(len(rows) ** 0.5)), num_sub_vectors=64
    )


def lancedb_asks(folder: Path, dim: int) -> Iterator[tuple[str, Ask]]:
    import lancedb

    table = lancedb.connect(folder / "lancedb").open_table("rows")
    for probes, refine in ((20, 10), (64, 20), (128, 50)):
        yield (
            f"nprobes {probes}, refine {refine}",
            lambda query, probes=probes, refine=refine: (
                table.search(query)
                .distance_type("dot")
                .nprobes(probes)
                .refine_factor(refine)
                .select(["n"])
                .limit(K)
                .to_arrow()["n"]
                .to_pylist()
            ),
        )


def sqlite_vec_build(rows: np.ndarray, folder: Path) -> None:
    """Every row is read, one bit a value; the best are scored again by their floats."""
    database = _sqlite_vec(folder)
    database.execute(f"CREATE VIRTUAL TABLE bits USING vec0 (bits bit[{rows.shape[1]}])")
    database.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY, vector BLOB)")
    for start in range(0, len(rows), 10_000):
        part = [(start + n, row.tobytes()) for n, row in enumerate(np.asarray(rows[start : start + 10_000]))]
        with database:
            database.executemany("INSERT INTO rows VALUES (?, ?)", part)
            database.executemany("INSERT INTO bits (rowid, bits) VALUES (?, vec_quantize_binary(?))", part)


def sqlite_vec_asks(folder: Path, dim: int) -> Iterator[tuple[str, Ask]]:
    database = _sqlite_vec(folder)
    sql = """SELECT n FROM rows WHERE n IN
             (SELECT rowid FROM bits WHERE bits MATCH vec_quantize_binary(?1) AND k = ?2)
             ORDER BY vec_distance_cosine(vector, ?1) LIMIT ?3"""

    def ask(query: np.ndarray, times: int) -> list[int]:
        return [row[0] for row in database.execute(sql, (query.astype(np.float32).tobytes(), K * times, K))]

    for times in (8, 100, 400):
        yield f"{times} x 10 of bits scored again", lambda query, times=times: ask(query, times)


def _sqlite_vec(folder: Path) -> Any:
    import apsw  # Python's own sqlite3 is often built without extensions
    import sqlite_vec

    database = apsw.Connection(str(folder / "sqlite-vec.db"))
    database.enable_load_extension(True)
    sqlite_vec.load(database)
    return database


ENGINES = {
    "hnswlib": (hnswlib_build, hnswlib_asks),
    "usearch": (usearch_build, usearch_asks),
    "lancedb": (lancedb_build, lancedb_asks),
    "sqlite-vec": (sqlite_vec_build, sqlite_vec_asks),
}


def measured(ask: Ask, queries: np.ndarray, true: np.ndarray, most_s: float = 20.0) -> dict[str, float]:
    """recall@10, and the median and quartiles of the milliseconds of single queries, the first five not counted."""
    taken, right, begun = [], 0, time.perf_counter()
    for place, query in enumerate(queries):
        started = time.perf_counter()
        found = ask(query)
        taken.append((time.perf_counter() - started) * 1000)
        right += len(set(found[:K]) & set(true[place].tolist()))
        if time.perf_counter() - begun > most_s:
            break
    low, median, high = statistics.quantiles(taken[5:] or taken * 2, n=4)
    return {"recall": right / K / len(taken), "ms": median, "ms_low": low, "ms_high": high}


def resident_mb() -> float:
    """Of this process; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1000


def main(engine: str, folder: Path, *, search: bool) -> None:
    """Build, or search and measure."""
    build, asks = ENGINES[engine]
    if not search:
        rows = np.load(folder / "images.npy", mmap_mode="r")
        started, worked = time.perf_counter(), time.process_time()
        build(rows, folder)
        print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}))
        return
    texts, images = np.load(folder / "texts.npy"), np.load(folder / "image_queries.npy")
    true = np.load(folder / "true.npz")
    points = []
    for setting, ask in asks(folder, texts.shape[1]):
        text = measured(ask, texts, true["text"])
        points.append({"setting": setting, "text": text, "image": measured(ask, images, true["image"])})
        if text["recall"] >= 0.98:
            break
    print(json.dumps({"points": points, "resident_mb": resident_mb()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), search="--search" in sys.argv)
