"""A server in this process, on a free port, for tests that speak HTTP to it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2

from mmsearch import Index
from mmsearch.serve.server import prepare
from mmsearch.serve.settings import Settings


@dataclass
class Served:
    """A server that runs, and a client that talks to it."""

    url: str
    http: httpx2.Client
    index: Index
    settings: Settings


@contextlib.contextmanager
def serving(index: Index, settings: Settings | None = None, *, is_ready: bool = True) -> Iterator[Served]:
    """Run a server for as long as the block lasts."""
    server, listening, settings = prepare(index, settings or Settings(port=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{settings.port}"
    headers = {} if settings.token is None else {"authorization": f"Bearer {settings.token}"}
    try:
        with httpx2.Client(base_url=url, timeout=30, headers=headers) as http:
            while is_ready and http.get("/api/status").json()["model_state"] == "loading":
                time.sleep(0.02)
            yield Served(url, http, index, settings)
    finally:
        server.should_exit = True
        thread.join(15)
        listening.close()
        assert not thread.is_alive()
