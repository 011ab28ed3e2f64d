"""The map of the collection, made in the background, and its points as they travel."""

import os
import sys
import threading
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from mmsearch.errors import Error
from mmsearch.index import Index
from mmsearch.map import Map
from mmsearch.serve.problems import ProblemError, log

NICE = 10  # on Linux, where a thread has a priority of its own: who searches goes first


@dataclass(frozen=True)
class _Work:
    """What goes on, or how it ended."""

    state: str = "idle"
    progress: float = 0.0
    error: str | None = None


class _Ended(Exception):
    """Raised where progress is told, once the server ends."""


class Maps:
    """The map of one server's index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()  # for all below
        self._work = _Work()
        self._thread: threading.Thread | None = None
        self._is_ending = False
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
            self._thread = threading.Thread(target=self._make, name="mmsearch map", daemon=True)
            self._thread.start()

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
        self._is_ending = True
        if self._thread is not None:
            self._thread.join(5.0)

    def _last(self) -> Map | None:
        kept = self._index.kept_map() if self._index.exists else None
        return self._unkept if kept is None else kept

    def _make(self) -> None:
        def take(share: float) -> None:
            self._work = _Work("running", share)
            if self._is_ending:
                raise _Ended

        try:
            give_way()
            made = self._index.map(progress=take)
            self._unkept = None if self._index.kept_map() is not None else made
            self._work = _Work()
        except _Ended:
            self._work = _Work()
        except Error as error:
            self._work = _Work("failed", error=str(error))
        except Exception:
            log.exception("Making the map")
            self._work = _Work("failed", error="A mistake in mmsearch; what the server printed says more.")


def packed(map_: Map) -> bytes:
    """Of n items, little-endian: n uint32 numbers, n uint16 x, n uint16 y, n uint8 that are 1 for a text."""
    x, y = np.rint(map_.points.T * 65535).astype("<u2")
    return b"".join(part.tobytes() for part in (map_.items.astype("<u4"), x, y, map_.is_text.astype("u1")))


def give_way() -> None:
    """For a thread that computes for long beside searches: one core, and that only when nobody else wants it."""
    import faiss

    faiss.omp_set_num_threads(1)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
