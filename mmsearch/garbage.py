"""Python's collector of cycles, put off while one large answer is made.

An answer of ten thousand hits is some hundred thousand objects that all stay: the collector looks at them again and
again, finds nothing to collect, and takes a third of the time. (The same is done around large loads of pickle and
msgpack.) Nothing in an answer refers to itself, so that putting it off costs no memory.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_putting_off = 0  # threads
_was_enabled = False


@contextlib.contextmanager
def put_off(applies: bool = True) -> Iterator[None]:
    """Collect no cycles in the block, nor in others that run meanwhile; who had that turned off, has it off after."""
    global _putting_off, _was_enabled
    if not applies:
        yield
        return
    with _lock:
        if _putting_off == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _putting_off += 1
    try:
        yield
    finally:
        with _lock:
            _putting_off -= 1
            if _putting_off == 0 and _was_enabled:
                gc.enable()


def _forget_threads() -> None:
    """In a forked process: those that put it off stayed with the parent."""
    global _lock, _putting_off
    _lock = threading.Lock()
    if _putting_off and _was_enabled:
        gc.enable()
    _putting_off = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
