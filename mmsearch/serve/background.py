"""Long work beside searches (an index run, the map, duplicates): one piece of a kind at a time; it can be cancelled."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Literal

from mmsearch.errors import Error
from mmsearch.serve.problems import log

NICE = 10  # on Linux, where a thread has a priority of its own: who searches goes first
CLOSE_S = 5.0

Broken = Literal["cancelled", "failed"]


class Cancelled(Exception):
    """Raised where work reports how far it is, which is where it may end."""


class Background:
    """The thread of one kind of work."""

    def __init__(self, name: str, work: Callable[[], None], broken: Callable[[Broken, str | None], None]) -> None:
        """name: what the work does, as the log says it: "Making the map".

        work: calls `go_on` now and then. broken: gets how it ended, and a sentence, where it did not come to its end.
        """
        self._name = name
        self._work = work
        self._broken = broken
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the last work has ended."""
        self._cancelled.clear()
        self._thread = threading.Thread(target=self._go, name=f"mmsearch: {self._name}", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Raises Cancelled where the work is to end."""
        if self._cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Have the work end the next time it calls `go_on`."""
        self._cancelled.set()

    def close(self) -> None:
        """End the work, and wait a little for it."""
        self.cancel()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _go(self) -> None:
        try:
            _give_way()
            self._work()
        except Cancelled:
            self._broken("cancelled", None)
        except Error as error:
            self._broken("failed", str(error))
        except Exception:
            log.exception(self._name)
            self._broken("failed", "A mistake in mmsearch; what the server printed says more.")


def _give_way() -> None:
    """Compute on one core, and only when nobody else wants it; threads and processes begun from here do the same."""
    import faiss

    faiss.omp_set_num_threads(1)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
