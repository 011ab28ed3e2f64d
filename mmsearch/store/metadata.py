"""index.db: one SQLite database, read over connections that wait for nobody and written over one that waits its turn.

Reading goes in WAL mode, so that a search never waits for a writer and sees the index as of one moment; a connection
that a read has done with serves the next one, whatever thread that is in. Writing goes over a connection of its own,
under the index's write lock. What is asked stands in reader.py, what is changed in writer.py, the tables in schema.py.

A write ends with a checkpoint: nothing of it is left in the log, `index.db-wal`, so that a copy of index.db alone is a
copy of the index. Where a reader stands in the way, the checkpoint is made when that reader has done, when the last
connection closes, or by the next write. Of many small writes, one after the other, only some have a checkpoint of their
own, and the last one has it soon after (`_Checkpoints`).
"""

import atexit
import contextlib
import os
import sqlite3
import threading
import time
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from mmsearch.errors import IndexLockedError, IndexTooNewError, IndexWriteError
from mmsearch.store import schema
from mmsearch.store.failures import disk_failures, sqlite_failures
from mmsearch.store.files import check_database, has_second_name
from mmsearch.store.lock import HOLDER, write_lock
from mmsearch.store.reader import Reader
from mmsearch.store.writer import Writer

DATABASE = "index.db"
LOG = "index.db-wal"
LOG_INDEX = "index.db-shm"
CHECKPOINT_S = 0.2  # how long a writer waits for readers at its end; a search takes less
CHECKPOINTS_S = 1.0  # that checkpoints may take in a burst of writes
CHECKPOINTS_SHARE = 0.05  # of the time, which they may take beyond that
LATE_CHECKPOINT_S = 0.25
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
        self._checkpoints = _Checkpoints(self)
        self._place: tuple[int, int] | None = None  # device and number of the index.db that was opened first
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
        self.close_idle()
        if self.has_log():
            # SQLite makes the checkpoint as the last connection closes, if that one may write
            self.with_log(lambda last: last.execute("PRAGMA schema_version").fetchone())
        self._place = None

    def close_idle(self) -> None:
        """Close the connections that nothing is read with."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """A snapshot of the store: everything read in the block is as of one moment.

        Raises IndexWriteError where the folder was moved or deleted since the store was opened.
        """
        with sqlite_failures(self.folder):
            self._check_place()
            idle, started = self._idle, time.monotonic()
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
                # A writer may have gone without its checkpoint; one at work makes its own
                long = time.monotonic() - started > CHECKPOINT_S
                if long and self.has_log() and not os.path.lexists(self.folder / HOLDER):
                    self.with_log(partial(_checkpoint, wait_s=0.0))
                if isinstance(connection, _Still) and connection.facts != _facts(self.folder):
                    raise IndexLockedError(
                        f"{self.folder} was written while it was read, and you may not write there to hold it still. "
                        "Try again."
                    )

    @contextlib.contextmanager
    def write(self, *, wait_s: float | None = 0.0) -> Iterator[Writer]:
        """The writer, for as long as the block lasts. Raises IndexLockedError where another process has it.

        Raises IndexWriteError where the folder was moved or deleted since the store was opened, be it in the block.
        """
        self._check_place()  # first: a lock file would be put into the folder that took the old one's place
        with self._writing, write_lock(self.folder, wait_s=wait_s), sqlite_failures(self.folder):
            self._check_place()
            check_database(self.folder / DATABASE, is_written=True)
            connection = _connect(self.folder, "rwc" if self._place is None else "rw")
            try:
                version = _version(connection, self.folder)
                connection.execute("PRAGMA journal_mode = WAL")
                if version < schema.VERSION:
                    schema.migrate(connection)
                connection.execute("PRAGMA foreign_keys = ON")
                # In WAL mode a power cut may then cost the last batches, never the file
                connection.execute("PRAGMA synchronous = NORMAL")
                self._check_place()
                yield Writer(connection, self.folder)
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._checkpoints.after_write(connection)
                if isinstance(error, sqlite3.Error | IndexWriteError):
                    self._check_place()  # which would be the reason
                raise
            else:
                self._checkpoints.after_write(connection)
            finally:
                connection.close()
            self._check_place()

    def _check_place(self) -> None:
        """Raises IndexWriteError where index.db is another file than the one that was opened first, or none."""
        try:
            facts = os.stat(self.folder / DATABASE)
        except FileNotFoundError:
            place = None
        except OSError as error:
            raise IndexWriteError(
                f"{self.folder} cannot be opened: {(error.strerror or str(error)).lower()}."
            ) from error
        else:
            place = (facts.st_dev, facts.st_ino)
        if self._place is None:
            self._place = place
        elif place is None:
            raise IndexWriteError(
                f"{self.folder} was moved or deleted while it was open. Put it back, or open the index where it is now."
            )
        elif place != self._place:
            raise IndexWriteError(f"{self.folder} was replaced while it was open. Open the index anew.")

    def has_log(self) -> bool:
        """Whether something is in the log that this user could move into index.db."""
        try:
            return os.stat(self.folder / LOG).st_size > 0 and os.access(self.folder, os.W_OK)
        except OSError:
            return False

    def with_log(self, act: Callable[[sqlite3.Connection], None]) -> None:
        """Act over a connection that may move the log into index.db and waits for nobody; it may fail."""
        with contextlib.suppress(sqlite3.Error, IndexWriteError):
            check_database(self.folder / DATABASE, is_written=True)
            with contextlib.closing(_connect(self.folder, "rw", busy_s=0.0)) as connection:
                act(connection)

    def _reader_connection(self, idle: list[sqlite3.Connection]) -> sqlite3.Connection:
        with contextlib.suppress(IndexError):
            connection = idle.pop()
            if not isinstance(connection, _Still) or connection.facts == _facts(self.folder):
                return connection
            connection.close()
        check_database(self.folder / DATABASE, is_written=False)
        # Readers write to the index of the log too; where a hard link of it is in a backup, there is no writer either
        is_linked = has_second_name(self.folder / LOG_INDEX)
        try:
            connection = _opened_still(self.folder) if is_linked else _opened(self.folder, "ro")
        except sqlite3.OperationalError:
            if is_linked or os.access(self.folder, os.W_OK):
                raise
            connection = _opened_still(self.folder)
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.create_function("distance_km", 4, _distance_km, deterministic=True)
        return connection


class _Checkpoints:
    """When a store's checkpoints are made.

    A checkpoint waits for the disk twice (fsync), a small write not at all: a thousand calls of `add_texts`, one text
    each, would take five times as long. So a burst of writes has a budget for them, and what is over it waits a moment.
    """

    def __init__(self, store: "Store") -> None:
        self._store = weakref.ref(store)
        self._left_s, self._told_at = CHECKPOINTS_S, time.monotonic()
        self._late: threading.Thread | None = None

    def after_write(self, connection: sqlite3.Connection) -> None:
        """Make one now, or soon."""
        started = time.monotonic()
        self._left_s = min(CHECKPOINTS_S, self._left_s + CHECKPOINTS_SHARE * (started - self._told_at))
        self._told_at = started
        if self._left_s > 0:
            _checkpoint(connection)
            self._left_s -= time.monotonic() - started
        elif self._late is None or not self._late.is_alive():
            self._late = threading.Thread(target=self._make_late, name="mmsearch checkpoint", daemon=True)
            self._late.start()  # at the end of the process all stores are closed

    def _make_late(self) -> None:
        """Once no write has ended for a moment."""
        while (left_s := self._told_at + LATE_CHECKPOINT_S - time.monotonic()) > 0:
            time.sleep(left_s)
        self._late = None
        store = self._store()
        if store is not None and store.has_log():
            store.with_log(_checkpoint)


class _Still(sqlite3.Connection):
    """A connection without locks, which holds for as long as the files are what they were."""

    facts: tuple[object, ...] = ()


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()


def _close_idle() -> None:
    """A connection must not cross a fork: the child would believe in locks that only its parent holds."""
    for store in list(_stores):
        store.close_idle()


@atexit.register
def _close_all() -> None:
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


def _opened_still(folder: Path) -> sqlite3.Connection:
    """A connection for a read-only disk or folder, where SQLite can keep no index of the log beside the database.

    `immutable` leaves the log unread. Where there is something in it, SQLite keeps the index of it in memory for a
    connection that is the only one (https://sqlite.org/wal.html#use_of_wal_without_shared_memory); the locks that this
    takes cannot be had without the right to write, and go to a file system layer that has none.
    """
    facts = _facts(folder)
    try:
        has_log = os.stat(folder / LOG).st_size > 0
    except FileNotFoundError:
        has_log = False
    layer = "win32-none" if os.name == "nt" else "unix-none"
    connection = _connect(folder, f"ro&vfs={layer}" if has_log else "ro&immutable=1", factory=_Still)
    try:
        assert isinstance(connection, _Still)
        connection.facts = facts
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _version(connection, folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _facts(folder: Path) -> tuple[object, ...]:
    """What changes when an index is written."""
    facts: list[object] = []
    for name in (DATABASE, LOG):
        try:
            told = os.stat(folder / name)
            facts += (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
        except OSError:
            facts.append(None)
    return tuple(facts)


def _connect(
    folder: Path, mode: str, *, busy_s: float | None = None, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(os.fsencode(folder.absolute() / DATABASE))}?mode={mode}"
    return sqlite3.connect(
        address,
        uri=True,
        timeout=BUSY_S if busy_s is None else busy_s,
        isolation_level=None,
        check_same_thread=False,
        factory=factory,
    )


def _checkpoint(connection: sqlite3.Connection, wait_s: float = CHECKPOINT_S) -> None:
    """Move the log into index.db and empty it; not where readers need it for longer than so many seconds."""
    connection.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise


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
