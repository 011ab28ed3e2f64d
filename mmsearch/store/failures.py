"""SQLite's and the disk's errors, in the words of the error tree.

SQLite tells one trouble from another by a number, and the disk by an OSError; a person wants to know what is wrong with
which index, and what to do about it.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mmsearch.errors import IndexDamagedError, IndexLockedError, IndexWriteError, in_a_line
from mmsearch.store.files import refused

# Errors without a number of their own, for tables and texts that mmsearch did not write
OF_DAMAGE = ("no such table", "no such column", "Could not decode to UTF-8")


@contextlib.contextmanager
def sqlite_failures(folder: Path) -> Iterator[None]:
    """SQLite's errors in the block, as those under IndexError_."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or str(error).startswith(OF_DAMAGE):
            raise damaged(folder, in_a_line(error)) from error
        if code == sqlite3.SQLITE_FULL:
            raise _full(folder) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise IndexLockedError(
                f"{folder / 'index.db'} is held by another program ({error}). Close what has it open, and try again."
            ) from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
            raise IndexWriteError(
                f"{folder} cannot be opened or written ({error}). Check that the disk is there, not full, and yours "
                "to write."
            ) from error
        raise


@contextlib.contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """OSErrors in the block, which writes to the index's folder, as IndexWriteError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _full(folder) from error
        if error.errno in (errno.ELOOP, errno.EMLINK) and error.filename is not None:
            raise refused(Path(os.fsdecode(error.filename)), error) from error
        raise IndexWriteError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}.") from error


def damaged(folder: Path, reason: str) -> IndexDamagedError:
    """What to say of an index.db that holds what nobody wrote."""
    return IndexDamagedError(
        f"{folder / 'index.db'} is damaged ({reason}). To restore it from a backup, first delete index.db-wal and "
        f"index.db-shm beside it, which belong to the damaged one; without a backup, delete the folder {folder} and "
        "index again. Your images are not touched."
    )


def _full(folder: Path) -> IndexWriteError:
    return IndexWriteError(
        f"The disk that holds {folder} is full. What was written before is kept; free some space and run it again."
    )
