"""The map of the collection, made in the background, and its points as they travel."""

import threading
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from mmsearch.index import Index
from mmsearch.map import Map
from mmsearch.serve.background import Background, Broken
from mmsearch.serve.problems import ProblemError


@dataclass(frozen=True)
class _Work:
    """What goes on, or how it ended."""

    state: str = "idle"
    progress: float = 0.0
    error: str | None = None


class Maps:
    """The map of one server's index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()  # for all below
        self._work = _Work()
        self._background = Background("Making the map", self._make, self._broken)
        self._unkept: Map | None = None  # where the index's folder cannot be written

    def state(self) -> dict[str, Any]:
        """The fields of shapes.MapOut."""
        map_, work = self._last(), self._work
        return {
            "state": work.state,
            "progress": round(work.progress, 3),
            "error": work.error,
            "points": None if map_ is None else len(map_),
            "is_current": map_ is not None and map_.is_current,
        }

    def start(self) -> None:
        """Make the map, or bring it up to date, if that is not going on already."""
        with self._lock:
            if self._work.state == "running" or not self._index.exists:
                return
            map_ = self._last()
            if map_ is not None and map_.is_current:
                return
            self._work = _Work("running")
            self._background.start()

    def points(self) -> tuple[bytes, str]:
        """The points of the map that was made last, and a tag that changes with them.

        Raises ProblemError where there is none yet, SourceError where there is no index.
        """
        map_ = self._index.kept_map()  # which says so where nothing is indexed yet
        map_ = self._unkept if map_ is None else map_
        if map_ is None:
            raise ProblemError("not-found", "There is no map yet. Make it with: POST /api/map")
        content = packed(map_)
        return content, blake2b(content, digest_size=12).hexdigest()

    def close(self) -> None:
        """End what goes on, and wait a little for it."""
        self._background.close()

    def _last(self) -> Map | None:
        kept = self._index.kept_map() if self._index.exists else None
        return self._unkept if kept is None else kept

    def _make(self) -> None:
        def take(share: float) -> None:
            self._work = _Work("running", share)
            self._background.go_on()

        made = self._index.map(progress=take)
        self._unkept = None if self._index.kept_map() is not None else made
        self._work = _Work()

    def _broken(self, how: Broken, error: str | None) -> None:
        self._work = _Work("failed", error=error) if how == "failed" else _Work()


def packed(map_: Map) -> bytes:
    """Of n items, little-endian: n uint32 numbers, n uint16 x, n uint16 y, n uint8 that are 1 for a text."""
    x, y = np.rint(map_.points.T * 65535).astype("<u2")
    return b"".join(part.tobytes() for part in (map_.items.astype("<u4"), x, y, map_.is_text.astype("u1")))
