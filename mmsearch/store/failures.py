"""SQLite's and the disk's errors, in the words of the error tree.

SQLite tells one trouble from another by a number, and the disk by an OSError; a person wants to know what is wrong with
which index, and what to do about it.
"""

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mmsearch.errors import IndexDamagedError, IndexLockedError, IndexWriteError


@contextlib.contextmanager
def sqlite_failures(folder: Path) -> Iterator[None]:
    """SQLite's errors in the block, as those under IndexError_."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise IndexDamagedError(
                f"{folder / 'index.db'} is damaged ({error}). Restore it from a backup, or delete the folder {folder} "
                "and index again; your pictures are not touched."
            ) from error
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
        raise IndexWriteError(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}.") from error


def _full(folder: Path) -> IndexWriteError:
    return IndexWriteError(
        f"The disk that holds {folder} is full. What was written before is kept; free some space and run it again."
    )
