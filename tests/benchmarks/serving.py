"""The server under load: start, one client, many clients with and without batching, while it writes, and its memory.

Server and load are processes of their own on one machine, so that each figure has the ratio to an endpoint that does
nothing beside it: what HTTP and the load itself cost here.
"""

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import indexing
from tests.benchmarks.measure import ROOT, Row, _family, _memory_mb
from tests.benchmarks.queries import fill_lite

CLIENTS = 32
_numbers = itertools.count()
WORDS = ("dog", "red balloon", "house by the sea", "old man", "bicycle", "birthday cake", "snowy mountain", "two cats")


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    count, asked = (20_000, 300) if quick else (100_000, 2_000)
    index = folder / "index"
    fill_lite(index, count)
    pictures = folder / "pictures"
    pictures.mkdir()
    indexing.draw(pictures, (512, 512), 200 if quick else 600)
    yield _start(index, count)
    with server_of(index, "--allow", str(pictures)) as server:
        nothing = _load(server, 1, asked, lambda number: "/healthz")
        one = _load(server, 1, asked // 2, _search)
        yield Row(
            f"warm text query over HTTP, {count:,} items, one client, p95 (p50; a request that does nothing, p95)",
            f"{one.p(95):.0f} ms ({one.p(50):.0f} ms; {nothing.p(95):.1f} ms)",
            {"p95_ms": one.p(95), "p50_ms": one.p(50), "nothing_p95_ms": nothing.p(95)},
        )
        many_nothing = _load(server, CLIENTS, 4 * asked, lambda number: "/healthz")
        many = _load(server, CLIENTS, asked, _search)
    with server_of(index, batch=1) as server:
        _load(server, 1, 50, _search)
        unbatched = _load(server, CLIENTS, asked, _search)
    yield Row(
        f"{CLIENTS} clients, {count:,} items: requests/s, p99 (one by one; doing nothing)",
        f"{many.rate:.0f}/s, {many.p(99):.0f} ms ({unbatched.rate:.0f}/s, {unbatched.p(99):.0f} ms; "
        f"{many_nothing.rate:.0f}/s), {many.errors} errors",
        {
            "rate": many.rate,
            "p99_ms": many.p(99),
            "errors": many.errors,
            "unbatched_rate": unbatched.rate,
            "unbatched_p99_ms": unbatched.p(99),
            "nothing_rate": many_nothing.rate,
        },
    )
    with server_of(index, "--allow", str(pictures)) as server:
        _load(server, 1, 50, _search)
        idle = _load(server, 1, asked // 4, _search)
        server.post("/api/index", {"folders": [str(pictures)]})
        writing = _load(server, 1, 10**9, _search, until=lambda: server.get("/api/index")["run"]["state"] != "running")
    yield Row(
        "text query while a run indexes in the same server, p95 (idle)",
        f"{writing.p(95):.0f} ms ({idle.p(95):.0f} ms), {writing.p(95) / idle.p(95):.1f} times",
        {"p95_ms": writing.p(95), "idle_p95_ms": idle.p(95)},
    )
    yield _memory(index, 10_000 if quick else 100_000)


def _start(index: Path, count: int) -> Row:
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        with server_of(index) as server:
            server.get(_search(0))
            taken.append(time.perf_counter() - started)
    seconds = statistics.median(taken[1:])  # the first reads files that are in the page cache afterwards
    return Row(f"start to first answered query, {count:,} items", f"{seconds:.2f} s", {"seconds": seconds})


def _memory(index: Path, requests: int) -> Row:
    with server_of(index) as server:
        _load(server, 8, requests // 10, _search)
        before = server.memory_mb()
        _load(server, 8, requests, _search)
        after = server.memory_mb()
    return Row(
        f"memory after {requests:,} requests (before)",
        f"{after:.0f} MB ({before:.0f} MB), {100 * (after / before - 1):+.1f} %",
        {"after_mb": after, "before_mb": before},
    )


def _search(_: int) -> str:
    """A query that was not asked before: the vectors of those that were are remembered."""
    number = next(_numbers)
    words = f"a {WORDS[number % len(WORDS)]} and {number} {WORDS[number // len(WORDS) % len(WORDS)]}"
    return f"/api/search?k=30&q={urllib.parse.quote(words)}"


@dataclass
class _Server:
    port: int
    pid: int

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: object) -> Any:
        return self._ask("POST", path, json.dumps(body))

    def memory_mb(self) -> float:
        return sum(_memory_mb(pid) for pid in _family(self.pid))

    def _ask(self, method: str, path: str, body: str | None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        said = json.loads(answer.read())
        connection.close()
        assert answer.status < 300, said
        return said


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until a process listens at a port."""
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert process.poll() is None, "the server has ended"
        time.sleep(0.01)


@contextlib.contextmanager
def server_of(index: Path, *options: str, batch: int | None = None) -> Iterator[_Server]:
    """`mmsearch serve` in a process of its own, from when it listens."""
    port = free_port()
    script = "from mmsearch import cli, batching\n"  # cli first, as ever: it sets what BLAS reads when it is loaded
    script += f"batching.MOST_AT_ONCE = {batch}\n" if batch else ""
    arguments = [sys.executable, "-c", script + "cli.main()", "serve", "-i", str(index), "--port", str(port), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield _Server(port, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@dataclass
class _Load:
    milliseconds: list[float]
    seconds: float
    errors: int

    @property
    def rate(self) -> float:
        return len(self.milliseconds) / self.seconds

    def p(self, percent: int) -> float:
        return statistics.quantiles(self.milliseconds, n=100, method="inclusive")[percent - 1]


def _load(
    server: _Server,
    clients: int,
    requests: int,
    path: Callable[[int], str],
    until: Callable[[], bool] | None = None,
) -> _Load:
    """Ask as fast as the answers come, over as many connections as there are clients."""
    results: list[float] = []
    errors = 0
    numbers = iter(range(requests))
    lock = threading.Lock()
    ended = threading.Event()

    def ask() -> None:
        nonlocal errors
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not ended.is_set():
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            started = time.perf_counter()
            connection.request("GET", path(number))
            answer = connection.getresponse()
            answer.read()
            taken = (time.perf_counter() - started) * 1000
            with lock:
                results.append(taken)
                errors += answer.status != 200

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    while until is not None and not until():
        time.sleep(0.5)
    if until is not None:
        ended.set()
    for thread in threads:
        thread.join()
    return _Load(results, time.perf_counter() - started, errors)
