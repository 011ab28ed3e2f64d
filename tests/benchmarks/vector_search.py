"""The vector index beside hnswlib, usearch, LanceDB and sqlite-vec, on vectors made to be CLIP-like.

Every engine builds in one process and answers in another, one query at a time, from the same files; recall@10 is told
of words against pictures and of pictures against pictures, since one says nothing of the other. Each peer lives in a
virtual environment of its own under the user's cache; $MMSEARCH_BENCHMARKS says where else.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch.nearest import Neighbours
from mmsearch.store.records import FloatArray, IntArray
from tests.benchmarks.crossmodal import Workload, statistics
from tests.benchmarks.environments import environment
from tests.benchmarks.filled import fill_with
from tests.benchmarks.measure import ROOT, Row

PEERS = ("hnswlib", "usearch", "lancedb", "sqlite-vec")
QUERIES = 300  # of each kind
RECALL = 0.97


def rows(folder: Path, quick: bool, peers: Collection[str] = PEERS) -> Iterator[Row]:
    """Measure in an empty folder, of some 8 GB with a million rows."""
    workload = Workload(100_000 if quick else 1_000_000)
    told = statistics(workload)
    yield Row("mean cosines of the workload", ", ".join(f"{name} {value:.2f}" for name, value in told.items()), told)
    lay_out(folder, workload)
    fill_with(folder / "index", workload)
    yield from _rows("mmsearch", workload.count, *_measured([sys.executable, "-m", "tests.benchmarks.own"], folder))
    for peer in peers:
        if (python := environment(peer)) is None:
            print(f"{peer}: not to be had here", file=sys.stderr)
            continue
        yield from _rows(
            peer, workload.count, *_measured([python, str(Path(__file__).parent / "peer.py"), peer], folder)
        )


def lay_out(folder: Path, workload: Workload) -> None:
    """images.npy, texts.npy, image_queries.npy, and their true neighbours in true.npz."""
    queries = {"text": workload.text_queries(QUERIES)[0], "image": workload.image_queries(QUERIES)}
    shape = (workload.count, workload.dim)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for block in workload.images():
        images[start : start + len(block)] = block
        start += len(block)
    images.flush()
    np.save(folder / "texts.npy", queries["text"])
    np.save(folder / "image_queries.npy", queries["image"])
    np.savez(folder / "true.npz", **true_neighbours(workload, queries))


def true_neighbours(workload: Workload, queries: Mapping[str, FloatArray]) -> dict[str, IntArray]:
    """For each kind of query, the numbers (q, 10) of the rows that are nearest, told exactly."""
    near = {name: Neighbours(asked, 10) for name, asked in queries.items()}
    seen = 0
    for block in workload.images():
        for one in near.values():
            one.see(np.arange(seen, seen + len(block)), block)
        seen += len(block)
    return {name: one.but_for(np.full(len(queries[name]), -1)) for name, one in near.items()}


def _measured(command: list[str], folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """What building and searching told, each in a process of its own."""
    return _json([*command, str(folder)]), _json([*command, str(folder), "--search"])


def _json(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _rows(engine: str, count: int, built: dict[str, float], told: dict[str, Any]) -> Iterator[Row]:
    """The first setting that has the recall for words, or the best there is; and what was tried before it."""
    points = told["points"]
    chosen = next((point for point in points if point["text"]["recall"] >= RECALL), points[-1])
    figures = {f"{kind}_{name}": value for kind in ("text", "image") for name, value in chosen[kind].items()}
    texts, images = chosen["text"], chosen["image"]
    yield Row(
        f"{engine}, {count:,} x 512 ({chosen['setting']})",
        f"words: {texts['recall']:.3f} in {texts['ms']:.2f} ms ({texts['ms_low']:.2f}-{texts['ms_high']:.2f}); "
        f"pictures: {images['recall']:.3f} in {images['ms']:.2f} ms ({images['ms_low']:.2f}-{images['ms_high']:.2f}); "
        f"{told['resident_mb']:,.0f} MB; built in {built['seconds']:.0f} s ({built['cpu_seconds']:.0f} s of cores)",
        {
            **figures,
            "resident_mb": told["resident_mb"],
            "build_s": built["seconds"],
            "build_cpu_s": built["cpu_seconds"],
        },
    )
    for point in points:
        if point is not chosen:
            yield Row(
                f"{engine}, {point['setting']}",
                f"words: {point['text']['recall']:.3f} in {point['text']['ms']:.2f} ms; "
                f"pictures: {point['image']['recall']:.3f} in {point['image']['ms']:.2f} ms",
                {f"{kind}_{name}": point[kind][name] for kind in ("text", "image") for name in ("recall", "ms")},
            )
    if "also" in told:
        for what, value in told["also"].items():
            yield Row(f"{engine}, {what}", value["figure"], value["values"])
