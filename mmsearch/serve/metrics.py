"""What Prometheus reads at /metrics: how much is asked, how long it takes, how well queries are batched."""

import contextlib
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from mmsearch.index import Index

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one server."""

    def __init__(self, index: Index) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mmsearch_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "mmsearch_request_seconds",
            "Time to the whole answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._open = Gauge("mmsearch_requests_open", "Requests being answered.", registry=self._registry)
        texts = Gauge("mmsearch_texts_encoded", "Texts of queries encoded so far.", registry=self._registry)
        batches = Gauge("mmsearch_text_batches", "Batches that they were encoded in.", registry=self._registry)
        texts.set_function(lambda: index.texts_encoded[0])
        batches.set_function(lambda: index.texts_encoded[1])

    @contextlib.contextmanager
    def request(self, scope: Scope, status: Callable[[], int]) -> Iterator[None]:
        """Count and time one request."""
        started = time.perf_counter()
        self._open.inc()
        try:
            yield
        finally:
            self._open.dec()
            # By route, never by address: ids of items would make a series each
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(_method(scope["method"]), route, str(status())).inc()
            self._seconds.labels(route).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)


def _method(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH") else "other"
