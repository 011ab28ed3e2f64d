"""Texts of many threads, encoded together.

A text tower takes eight short texts in hardly more time than one. So whoever comes while others are being encoded waits
for them, and the first of those who waited then encodes for all of them. Nobody waits for company: a text that comes
alone is encoded at once, by the thread that brought it, and there is neither a thread nor a delay to choose.
"""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmsearch.encoders.base import FloatArray

MOST_AT_ONCE = 32  # texts; a larger batch gains nothing more, and keeps the first in it waiting


@dataclass(eq=False)
class _Call:
    texts: Sequence[str]
    rows: FloatArray | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class TextBatcher:
    """`encode`, which makes (n, dim) float32 of n texts, for the threads that call this together."""

    def __init__(self, encode: Callable[[Sequence[str]], FloatArray]) -> None:
        self._encode = encode
        self.texts = 0  # encoded so far
        self.batches = 0  # that they came in
        self.start_anew()
        _batchers.add(self)

    def start_anew(self) -> None:
        """With nobody waiting."""
        self._encoding = threading.Lock()  # held by the thread that encodes for all
        self._lock = threading.Lock()  # for what follows
        self._waiting: list[_Call] = []

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """(n, dim) float32; raises what `encode` raises for these texts."""
        call = _Call(texts)
        with self._lock:
            self._waiting.append(call)
        with self._encoding:
            while not call.done.is_set():  # unless another thread has done it meanwhile
                self._run(self._next())
        if call.error is not None:
            raise call.error
        assert call.rows is not None
        return call.rows

    def _next(self) -> list[_Call]:
        """Those who waited longest, as many as are encoded at once."""
        with self._lock:
            count, room = 0, MOST_AT_ONCE
            for call in self._waiting:
                room -= len(call.texts)
                if count and room < 0:
                    break
                count += 1
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            return taken

    def _run(self, calls: Sequence[_Call]) -> None:
        try:
            rows = self._encode([text for call in calls for text in call.texts])
            ends = np.cumsum([len(call.texts) for call in calls])
            for call, part in zip(calls, np.split(rows, ends[:-1]), strict=True):
                call.rows = part
            self.texts, self.batches = self.texts + len(rows), self.batches + 1
        except BaseException as error:
            if len(calls) > 1 and isinstance(error, Exception):
                for call in calls:  # a text that cannot be encoded costs only whoever asked for it
                    self._run([call])
            else:
                for call in calls:
                    call.error = error
        finally:
            for call in calls:
                call.done.set()


_batchers: "weakref.WeakSet[TextBatcher]" = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked process: the threads that encode and wait stayed with the parent, and what they held is held here."""
    for batcher in list(_batchers):
        batcher.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
