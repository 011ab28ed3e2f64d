"""Duplicates, looked for in the background: one search at a time, whose groups are kept until the next is asked for."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mmsearch.duplicates import Group
from mmsearch.index import Index
from mmsearch.ingest import Progress
from mmsearch.present import group_object
from mmsearch.serve.background import Background, Broken
from mmsearch.serve.problems import ProblemError


@dataclass(frozen=True)
class _Search:
    """A search as it is at a moment."""

    number: int = 0
    threshold: float = 0.0
    under: tuple[str, ...] = ()
    state: Literal["idle", "running", "done", "failed"] = "idle"
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))
    error: str | None = None
    groups: Sequence[Group] = ()


class Duplicates:
    """The searches for duplicates of one server."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()  # for all below
        self._search = _Search()
        self._background = Background("Looking for duplicates", self._go, self._broken)

    def start(self, threshold: float, under: Sequence[str]) -> None:
        """Begin to look; nothing happens where the same is being looked for. Raises ProblemError, SourceError."""
        self._index.status()  # which says so where nothing is indexed yet
        with self._lock:
            last, wanted = self._search, (threshold, tuple(under))
            if last.state == "running":
                if (last.threshold, last.under) == wanted:
                    return
                raise ProblemError("goes-on", "Other duplicates are being looked for. Ask again when that has ended.")
            self._search = _Search(last.number + 1, *wanted, state="running")
            self._background.start()

    def page(self, k: int, cursor: str | None) -> dict[str, Any]:
        """The fields of shapes.DuplicatesOut. Raises ProblemError for a cursor of a search before the last."""
        search = self._search
        number, _, start = (cursor or f"{search.number}.0").partition(".")
        if int(number) != search.number:
            raise ProblemError("gone", "The groups that the cursor belongs to are not kept any more. Begin anew.")
        end = int(start) + k
        return {
            "number": search.number,
            "state": search.state,
            "threshold": search.threshold or None,
            "done": search.progress.done,
            "total": search.progress.total,
            "skipped": search.progress.skipped,
            "error": search.error,
            "groups_total": len(search.groups),
            "spare_total": sum(len(group.copies) - 1 for group in search.groups),
            "spare_bytes": sum(group.spare_bytes for group in search.groups),
            "groups": [group_object(now) for group in search.groups[int(start) : end] if (now := group.as_now())],
            "cursor": f"{number}.{end}" if end < len(search.groups) else None,
        }

    def close(self) -> None:
        """End what goes on, and wait a little for it."""
        self._background.close()

    def _go(self) -> None:
        def take(progress: Progress) -> None:
            self._search = replace(search, progress=progress)
            self._background.go_on()

        search = self._search
        groups = self._index.duplicates(threshold=search.threshold, under=search.under, progress=take)
        self._search = replace(self._search, state="done", groups=groups)

    def _broken(self, how: Broken, error: str | None) -> None:
        self._search = replace(self._search, state="failed" if how == "failed" else "idle", error=error)
