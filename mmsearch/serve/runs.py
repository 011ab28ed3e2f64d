"""Indexing in the background: one run at a time, which can be watched and cancelled."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mmsearch.errors import IndexLockedError, UsageError
from mmsearch.index import Index
from mmsearch.ingest import Progress
from mmsearch.planning import Report
from mmsearch.serve.background import Background, Broken


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


class Runs:
    """The runs of one server."""

    def __init__(self, index: Index, may_index: Callable[[str], bool]) -> None:
        self._index = index
        self._may_index = may_index
        self._lock = threading.Lock()  # for all below
        self._run: Run | None = None
        self._background = Background("Indexing", self._go, self._broken)

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
            number = 1 if self._run is None else self._run.number + 1
            self._run = run = Run(number, tuple(folders), time.monotonic())
            self._background.start()
        return run

    def cancel(self) -> None:
        """Have the run end at the next file; what it has read is kept."""
        self._background.cancel()

    def close(self) -> None:
        """End the run, and wait a little for it."""
        self._background.close()

    def _go(self) -> None:
        def take(progress: Progress) -> None:  # between two writes
            self._run = replace(run, progress=progress)
            self._background.go_on()

        run = self._begun()
        for folder in run.folders:
            if not self._may_index(folder):  # by now: a link may have been put in its place
                raise UsageError(f"{folder} may not be indexed from here.")
        report = self._index.add(*run.folders, progress=take)
        self._end(replace(self._begun(), state="done", report=report))

    def _broken(self, how: Broken, error: str | None) -> None:
        self._end(replace(self._begun(), state=how, error=error))

    def _begun(self) -> Run:
        assert self._run is not None
        return self._run

    def _end(self, run: Run) -> None:
        self._run = replace(run, seconds=time.monotonic() - run.started_at)
