"""One writer at a time, and who it is.

The lock is the operating system's (through filelock), so that it goes when its holder does, even by kill -9; a small
file beside it says who holds it, for the error that the second writer shows.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mmsearch.errors import IndexLockedError, IndexWriteError


@contextlib.contextmanager
def write_lock(folder: Path, *, wait_s: float | None = 0.0) -> Iterator[None]:
    """Hold the index for writing; wait_s: how long to wait for another writer, None for ever.

    Raises IndexLockedError naming the holder, IndexWriteError where no lock file can be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "write.lock", thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait_s is None else wait_s, poll_interval=0.05)
    except Timeout:
        raise IndexLockedError(
            f"{folder} is being written by {_holder(folder)}. Wait for it with --wait, or try again later."
        ) from None
    except OSError as error:
        raise IndexWriteError(f"{folder} cannot be written: {error.strerror or error}.") from error
    holder = folder / "write.lock.json"
    try:
        with contextlib.suppress(OSError):  # the lock holds without it
            holder.write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / "write.lock.json").read_text(encoding="utf-8"))
        since = datetime.fromtimestamp(float(holder["since"]))
        return f"process {int(holder['pid'])} since {since:%Y-%m-%d %H:%M:%S}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
