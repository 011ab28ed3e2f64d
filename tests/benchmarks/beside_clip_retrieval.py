"""Beside clip-retrieval's back end: the same vectors, the same query vectors, thirty hits over HTTP.

Its cores' time for a request is told beside the rate, since that hardly depends on what else a machine does.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.crossmodal import Workload
from tests.benchmarks.environments import environment
from tests.benchmarks.measure import Row
from tests.benchmarks.queries import fill_lite
from tests.benchmarks.serving import free_port, server_of, wait_for

PEER = str(Path(__file__).with_name("peer_clip_retrieval.py"))
ROUNDS = 2
K = 30


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder; the two servers take turns."""
    if (python := environment("clip-retrieval")) is None:
        print("clip-retrieval: not to be had here", file=sys.stderr)
        return
    count, asked = (20_000, 100) if quick else (100_000, 150)
    workload = Workload(count, 384)
    np.save(folder / "vectors.npy", np.concatenate([_unit(block) for block in workload.images()]))
    subprocess.run([python, PEER, "build", folder / "vectors.npy", folder / "peer"], check=True, capture_output=True)
    fill_lite(folder / "index", count)
    queries = _unit(workload.text_queries(200)[0])
    ours = [json.dumps({"terms": [{"vector": query.tolist()}], "k": K}) for query in queries]
    wanted = {"indice_name": "photos", "modality": "image", "num_images": K, "num_result_ids": K, "deduplicate": False}
    theirs = [json.dumps({"embedding_input": query.tolist(), **wanted}) for query in queries]
    with _peer(python, folder / "peer") as (peer_pid, peer_port), server_of(folder / "index") as server:
        for clients in (1, 8):
            taken: dict[str, list[tuple[float, float]]] = {"mmsearch": [], "clip-retrieval": []}
            for _ in range(ROUNDS):
                for name, pid, port, path, bodies in (
                    ("clip-retrieval", peer_pid, peer_port, "/knn-service", theirs),
                    ("mmsearch", server.pid, server.port, "/api/search", ours),
                ):
                    _rate(port, path, bodies[:10], 10, clients)  # warm
                    before = _cores_s(pid)
                    rate = _rate(port, path, bodies, asked, clients)
                    taken[name].append((rate, 1000 * (_cores_s(pid) - before) / asked))
            for name, measured in taken.items():
                rate, cores_ms = (float(np.median(part)) for part in zip(*measured, strict=True))
                yield Row(
                    f"{name}: {K} hits for a vector over HTTP, {count:,} items, {clients} clients",
                    f"{rate:.0f}/s, {cores_ms:.1f} ms of a core each",
                    {"clients": clients, "rate": rate, "cores_ms": cores_ms},
                )


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@contextlib.contextmanager
def _peer(python: str, folder: Path) -> Iterator[tuple[int, int]]:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [python, PEER, "serve", str(folder), str(port)]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(30)


def _rate(port: int, path: str, bodies: Sequence[str], requests: int, clients: int) -> float:
    """Requests a second, each client asking as fast as answers come."""
    numbers = iter(range(requests))
    lock = threading.Lock()
    refused: list[bytes] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            connection.request("POST", path, bodies[number % len(bodies)], {"content-type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                refused.append(said)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused, refused[0]
    return requests / (time.perf_counter() - started)


def _cores_s(pid: int) -> float:
    """Seconds of processor that a process has taken; Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
