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
from mmsearch.store.files import open_plain, refused

LOCK, HOLDER = "write.lock", "write.lock.json"
HOLDER_BYTES = 1_000  # read of it at most


@contextlib.contextmanager
def write_lock(folder: Path, *, wait_s: float | None = 0.0) -> Iterator[None]:
    """Hold the index for writing; wait_s: how long to wait for another writer, None for ever.

    Raises IndexLockedError naming the holder, IndexWriteError where no lock file can be made.
    """
    from filelock import FileLock, Timeout

    try:
        os.close(open_plain(folder / LOCK, os.O_RDWR | os.O_CREAT))  # filelock cuts to nothing what it opens
    except OSError as error:
        raise refused(folder / LOCK, error) from error
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=-1 if wait_s is None else wait_s, poll_interval=0.05)
    except Timeout:
        raise IndexLockedError(
            f"{folder} is being written by {_holder(folder)}. Wait for it with --wait, or try again later."
        ) from None
    except OSError as error:
        raise IndexWriteError(f"{folder} cannot be written: {error.strerror or error}.") from error
    holder = folder / HOLDER
    try:
        with contextlib.suppress(OSError):  # the lock holds without it
            holder.unlink(missing_ok=True)  # left by a writer that was killed, or put there by a stranger
            with os.fdopen(open_plain(holder, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(json.dumps({"pid": os.getpid(), "since": time.time()}).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _holder(folder: Path) -> str:
    try:
        with os.fdopen(open_plain(folder / HOLDER, os.O_RDONLY), "rb") as file:
            holder = json.loads(file.read(HOLDER_BYTES))
        since = datetime.fromtimestamp(float(holder["since"]))
        return f"process {int(holder['pid'])} since {since:%Y-%m-%d %H:%M:%S}"
    except (OSError, OverflowError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
