"""Indexing in the background: one run at a time, which can be watched and cancelled."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mmsearch.errors import Error, IndexLockedError
from mmsearch.index import Index
from mmsearch.ingest import Progress
from mmsearch.planning import Report
from mmsearch.serve.problems import log


@dataclass(frozen=True)
class Run:
    """A run as it is at a moment."""

    number: int
    folders: tuple[str, ...]
    started_at: float  # time.monotonic()
    state: Literal["running", "done", "cancelled", "failed"] = "running"
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))
    seconds: float = 0.0
    error: str | None = None
    report: Report | None = None


class _Cancelled(Exception):
    """Raised where progress is reported, which is between two writes: what was read so far is kept."""


class Runs:
    """The runs of one server."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()  # for all below
        self._run: Run | None = None
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def last(self) -> Run | None:
        """The run that goes on, or the one that was last."""
        run = self._run
        if run is None or run.state != "running":
            return run
        return replace(run, seconds=time.monotonic() - run.started_at)

    def start(self, folders: Sequence[str]) -> Run:
        """Begin a run. Raises IndexLockedError while one goes on."""
        with self._lock:
            if self._run is not None and self._run.state == "running":
                raise IndexLockedError("A run goes on already. Wait for its end, or cancel it.")
            self._cancelled.clear()
            number = 1 if self._run is None else self._run.number + 1
            self._run = run = Run(number, tuple(folders), time.monotonic())
            self._thread = threading.Thread(target=self._go, args=(run,), name="mmsearch indexing", daemon=True)
            self._thread.start()
        return run

    def cancel(self) -> None:
        """Have the run end at the next file; what it has read is kept."""
        self._cancelled.set()

    def close(self) -> None:
        """End the run, and wait a little for it."""
        self.cancel()
        if self._thread is not None:
            self._thread.join(5.0)

    def _go(self, run: Run) -> None:
        def take(progress: Progress) -> None:
            nonlocal run
            self._run = run = replace(run, progress=progress)
            if self._cancelled.is_set():
                raise _Cancelled

        try:
            report = self._index.add(*run.folders, progress=take)
            ended = replace(run, state="done", report=report)
        except _Cancelled:
            ended = replace(run, state="cancelled")
        except Error as error:
            ended = replace(run, state="failed", error=str(error))
        except Exception:
            log.exception("Indexing %s", ", ".join(run.folders))
            ended = replace(run, state="failed", error="A mistake in mmsearch; what the server printed says more.")
        self._run = replace(ended, seconds=time.monotonic() - run.started_at)
