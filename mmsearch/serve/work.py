"""Work in threads, as much at once as was set, with an end to waiting.

Each kind of work has threads of its own (searches, uploaded pictures, thumbnails), so that many or slow ones of a kind
cost only those who ask for it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from mmsearch.serve.problems import ProblemError

T = TypeVar("T")


class Work:
    """Threads for one kind of work."""

    def __init__(
        self, name: str, *, at_once: int, waiting: int, seconds: float, prepare: Callable[[], None] | None = None
    ) -> None:
        """prepare: called in each thread before its first work."""
        self._threads = ThreadPoolExecutor(at_once, f"mmsearch {name}", initializer=prepare)
        self._most_open = at_once + waiting
        self._seconds = seconds
        self._open = 0

    async def run(self, do: Callable[[], T]) -> T:
        """What `do` gives. Raises ProblemError where too many wait already, or where it takes too long."""
        if self._open >= self._most_open:
            raise ProblemError("busy", "Too many requests wait already. Try again.", headers={"retry-after": "1"})
        loop = asyncio.get_running_loop()

        def is_free(_: "Future[Any]") -> None:  # called when the thread is, however long ago its client had to give up
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._one_less)

        self._open += 1
        future = self._threads.submit(do)
        future.add_done_callback(is_free)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            raise ProblemError(
                "busy", f"There is no answer after {self._seconds:g} s. Try again.", headers={"retry-after": "5"}
            ) from None

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _one_less(self) -> None:
        self._open -= 1
