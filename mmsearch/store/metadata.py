"""index.db: one SQLite database, read over connections that wait for nobody and written over one that waits its turn.

Reading goes in WAL mode, so that a search never waits for a writer and sees the index as of one moment; a connection
that a read has done with serves the next one, whatever thread that is in. Writing goes over a connection of its own,
under the index's write lock. What is asked stands in reader.py, what is changed in writer.py, the tables in schema.py.
"""

import contextlib
import os
import sqlite3
import threading
import urllib.parse
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mmsearch.errors import IndexTooNewError
from mmsearch.store import schema
from mmsearch.store.failures import disk_failures, sqlite_failures
from mmsearch.store.lock import write_lock
from mmsearch.store.reader import Reader
from mmsearch.store.writer import Writer

DATABASE = "index.db"
BUSY_S = 30.0  # how long a connection waits for another's short lock (a checkpoint, a schema change)
EARTH_KM = 6371.0  # mean radius
# SQLite's own 2 MB do not hold the inner pages of a table of a million vectors: 106 rows took 3.1 ms, and take 0.7. An
# answer of 10,000 hits reads the pages of 11,000 vectors twice, 45 MB; only who asks for so much has so much held.
CACHE_KIB = 64_000


class Store:
    """The SQLite side of an index: `read()` for a snapshot, `write()` for the one writer. Safe to use from threads."""

    def __init__(self, folder: Path) -> None:
        """The store in a folder, opened by the first read or write; `create` makes one."""
        self.folder = folder
        self._idle: list[sqlite3.Connection] = []  # to read with; taken and given back whole, so it needs no lock
        self._writing = threading.Lock()  # threads of this process wait for each other; the other lock is for processes
        _stores.add(self)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether there is an index in the folder; one whose making was cut short by a kill is none yet."""
        if not (folder / DATABASE).is_file():
            return False
        store = cls(folder)
        try:
            with store.read() as reader:
                made = reader.connection.execute("PRAGMA user_version").fetchone()[0] > 0
                return made and reader.setting("model") is not None
        finally:
            store.close()

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, str]) -> "Store":
        """Make the folder and the tables, or open what another process has just made."""
        with disk_failures(folder):
            folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder)
        with store.write(wait_s=None) as writer:
            writer.settle(settings)
        return store

    def close(self) -> None:
        """Close the connections; one that is being read with closes at the end of that. A later read opens anew."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A snapshot of the store: everything read in the block is as of one moment."""
        with sqlite_failures(self.folder):
            idle = self._idle
            connection = self._reader_connection(idle)
            try:
                connection.execute("BEGIN")
                yield Reader(connection, self.folder)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if idle is self._idle:
                    idle.append(connection)
                else:  # closed meanwhile
                    connection.close()

    @contextlib.contextmanager
    def write(self, *, wait_s: float | None = 0.0) -> Iterator[Writer]:
        """The writer, for as long as the block lasts. Raises IndexLockedError where another process has it."""
        with self._writing, write_lock(self.folder, wait_s=wait_s), sqlite_failures(self.folder):
            connection = _connect(self.folder, "rwc")
            try:
                version = _version(connection, self.folder)
                connection.execute("PRAGMA journal_mode = WAL")
                if version < schema.VERSION:
                    schema.migrate(connection)
                connection.execute("PRAGMA foreign_keys = ON")
                # In WAL mode a power cut may then cost the last batches, never the file
                connection.execute("PRAGMA synchronous = NORMAL")
                yield Writer(connection, self.folder)
            finally:
                connection.close()

    def _reader_connection(self, idle: list[sqlite3.Connection]) -> sqlite3.Connection:
        with contextlib.suppress(IndexError):
            return idle.pop()
        try:
            connection = _opened(self.folder, "ro")
        except sqlite3.OperationalError:
            if os.access(self.folder, os.W_OK):
                raise
            # On a read-only disk SQLite cannot keep its WAL index beside the database; nobody can write there either
            connection = _opened(self.folder, "ro&immutable=1")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.create_function("distance_km", 4, _distance_km, deterministic=True)
        return connection


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()


def _close_idle() -> None:
    """A connection must not cross a fork: the child would believe in locks that only its parent holds."""
    for store in list(_stores):
        store.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_idle)


def _opened(folder: Path, mode: str) -> sqlite3.Connection:
    """A connection to tables that this version can read."""
    connection = _connect(folder, mode)
    try:
        _version(connection, folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(folder: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(os.fsencode(folder.absolute() / DATABASE))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _version(connection: sqlite3.Connection, folder: Path) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > schema.VERSION:
        raise IndexTooNewError(
            f"{folder} was made by a newer mmsearch (its tables are version {version}, this one reads "
            f"{schema.VERSION}). Upgrade mmsearch to use it."
        )
    return version


def _distance_km(latitude_a: float, longitude_a: float, latitude_b: float, longitude_b: float) -> float:
    """Great-circle distance by the haversine formula, on a sphere."""
    a, b = np.radians((latitude_a, longitude_a)), np.radians((latitude_b, longitude_b))
    half = np.sin((b - a) / 2) ** 2
    return float(2 * EARTH_KM * np.arcsin(np.sqrt(min(1.0, half[0] + np.cos(a[0]) * np.cos(b[0]) * half[1]))))
