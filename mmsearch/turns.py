"""Turns for threads that search at once.

What a search does between two calls into FAISS and SQLite is Python, which one thread runs at a time. Many threads that
search only wait for one another then, and a call that gives up the interpreter waits to get it back: 32 that asked for
one remembered query got 58 answers a second, where one got 150 (two cores).
"""

import contextlib
import os
import threading
from collections.abc import Iterator


class Turns:
    """A turn each for some threads at once; the others wait for one."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free: dict[int, threading.Semaphore] = {}  # by process: a fork would inherit turns that never end
        self._held = threading.local()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a turn. Who holds one already just goes on."""
        if self._has_one:
            yield
            return
        with self._semaphore():
            self._has_one = True
            try:
                yield
            finally:
                self._has_one = False

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Let others have this thread's turn, if it holds one, while it waits for something else."""
        if not self._has_one:
            yield
            return
        free = self._semaphore()
        free.release()
        self._has_one = False
        try:
            yield
        finally:
            free.acquire()
            self._has_one = True

    def _semaphore(self) -> threading.Semaphore:
        return self._free.setdefault(os.getpid(), threading.Semaphore(self._at_once))

    @property
    def _has_one(self) -> bool:
        return getattr(self._held, "pid", None) == os.getpid()

    @_has_one.setter
    def _has_one(self, has: bool) -> None:
        self._held.pid = os.getpid() if has else None
