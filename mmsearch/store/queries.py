"""Vectors of past queries, kept beside the store, so that a repeated query loads no model.

A database of its own, `queries.db`: whoever searches may write to it without the index's lock, and whoever cannot write
there, or finds another at it, does without. What was asked is kept as a hash. It may be deleted at any time.

Nothing in it is believed unseen. A vector counts that is finite, of length 1 and of the right number of numbers, and
with which a checksum over it and its query agrees. A file in which something else is found, or other tables than these,
or that SQLite finds damaged, is deleted, and its queries are encoded again.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import urllib.parse
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from mmsearch.errors import IndexWriteError
from mmsearch.store.files import check_database
from mmsearch.store.reader import marks, parts
from mmsearch.store.records import FloatArray

T = TypeVar("T")
_Row: TypeAlias = tuple[str, bytes, bytes]  # space, hash of the text, vector (dim,) float32

DATABASE = "queries.db"
MOST = 2_000  # queries; 4 MB at 512 dimensions
BUSY_S = 0.05  # encoding a text takes about as long
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)  # says no damage
MOST_WAITING = 256  # texts that other threads bring while one writes

OFF = 1e-3  # a vector's length from 1, at most
HIGHEST = 2**53  # id, that no cache gets to

TABLE = """CREATE TABLE asked (
    id INTEGER PRIMARY KEY,
    space TEXT NOT NULL,
    text_hash BLOB NOT NULL,
    vector BLOB NOT NULL,
    checksum BLOB NOT NULL,
    UNIQUE (space, text_hash))"""


class _DamageError(Exception):
    """The database is none of ours."""


def space(fingerprint: str | None, heads: str | None) -> str | None:
    """What vectors lie in: the fingerprint of a model and the hash of trained heads; None where a model has none."""
    return f"{fingerprint} {heads or ''}".strip() if fingerprint else None


class QueryCache:
    """Text -> vector, within one space; the oldest go first. Safe to use from several threads and processes.

    Threads share one, not one each: what they bring while one of them writes is written together, in one transaction,
    and nobody waits for that. A process remembers what it asked itself, and keeps the database open until `close`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / DATABASE
        self._using = threading.Lock()  # held while the database is used, and while the process forks
        self._writing = threading.Lock()  # held by the thread that writes for all
        self._connection: sqlite3.Connection | None = None
        self._unwritten: deque[_Row] = deque(maxlen=MOST_WAITING)
        self._recent: OrderedDict[tuple[str, bytes], FloatArray] = OrderedDict()  # MOST of them, by space and hash
        _caches.add(self)

    def close(self) -> None:
        """Close the database; it is opened again where it is next needed."""
        with self._using:
            self._disconnect()

    def get(self, space: str, texts: Sequence[str], dim: int) -> dict[str, FloatArray]:
        """text -> (dim,) float32 of length 1, for those that are known."""
        hashes = {text: _hash(text) for text in texts}
        known = {text: row for text in texts if (row := self._recent.get((space, hashes[text]))) is not None}
        by_hash = {hashes[text]: text for text in texts if text not in known}

        def read(database: sqlite3.Connection) -> dict[str, FloatArray]:
            found = {
                text_hash: _row(space, text_hash, vector, checksum, dim)
                for part in parts(list(by_hash))
                for text_hash, vector, checksum in database.execute(
                    f"SELECT text_hash, vector, checksum FROM asked WHERE space = ? AND text_hash IN ({marks(part)})",
                    (space, *part),
                )
            }
            if not found.keys() <= by_hash.keys():  # a damaged index leads to other rows
                raise _DamageError
            return {by_hash[text_hash]: row for text_hash, row in found.items()}

        if by_hash:
            with self._using:
                known |= self._with_database("rw", read) or {}
        return known

    def put(self, space: str, vectors: Mapping[str, FloatArray]) -> None:
        """Keep (dim,) float32 of texts; where that cannot be done at once, it is not done."""
        if not os.access(self._path.parent, os.W_OK):
            return
        new = [(space, _hash(text), np.asarray(vector, np.float32)) for text, vector in vectors.items()]
        self._recent.update(((space, text_hash), vector) for space, text_hash, vector in new)
        while len(self._recent) > MOST:
            with contextlib.suppress(KeyError):  # another thread took it
                self._recent.popitem(last=False)
        self._unwritten.extend((space, text_hash, vector.tobytes()) for space, text_hash, vector in new)
        while self._unwritten and self._writing.acquire(blocking=False):  # else who writes, writes this too
            try:
                waiting = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
                with self._using:
                    self._with_database("rwc", partial(_write, waiting))
            finally:
                self._writing.release()

    def latest(self, space: str, count: int, dim: int) -> list[FloatArray]:
        """(dim,) float32 of length 1 each, the newest first."""

        def read(database: sqlite3.Connection) -> list[FloatArray]:
            rows = database.execute(
                "SELECT text_hash, vector, checksum FROM asked WHERE space = ? ORDER BY id DESC LIMIT ?", (space, count)
            )
            return [_row(space, text_hash, vector, checksum, dim) for text_hash, vector, checksum in rows]

        with self._using:
            return self._with_database("rw", read) or []

    def _with_database(self, mode: str, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """What is done with the database, None where that cannot be done; one that is damaged is deleted."""
        try:
            if self._connection is None:
                self._connection = self._connect(mode)
                _get_ready(self._connection)
            return act(self._connection)
        except IndexWriteError:  # a link, say
            return None
        except (sqlite3.Error, UnicodeDecodeError, _DamageError, MemoryError) as error:
            self._disconnect()
            code = _code(error)
            locked_in = code == sqlite3.SQLITE_READONLY and os.access(self._path, os.W_OK)  # by a byte of its header
            # UnicodeDecodeError: SQLite quotes a damaged name in its message
            if isinstance(error, _DamageError | UnicodeDecodeError) or code in DAMAGE or locked_in:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            return None

    def _connect(self, mode: str) -> sqlite3.Connection:
        check_database(self._path, is_written=True)
        address = f"file:{urllib.parse.quote(os.fsencode(self._path.absolute()))}?mode={mode}"
        return sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def before_fork(self) -> None:
        """Let nobody use the database, and close it: a child would believe in locks that only its parent holds."""
        self._using.acquire()
        self._disconnect()

    def after_fork(self, *, is_child: bool) -> None:
        """Let it be used again; the child has none of the threads that wrote."""
        if is_child:
            self._writing = threading.Lock()
        self._using.release()


def _get_ready(database: sqlite3.Connection) -> None:
    """Raises _DamageError for a database that cannot be read, or with other tables than ours."""
    try:
        database.execute("PRAGMA synchronous = OFF")  # at worst it is damaged by a power cut, and made anew
        told = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchmany(2)
    except sqlite3.DatabaseError as error:
        if _code(error) in PASSING:
            raise
        raise _DamageError from error
    if told and told != [(TABLE,)]:
        raise _DamageError


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _write(waiting: Sequence[_Row], database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute(TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))
    database.executemany(
        "INSERT OR REPLACE INTO asked (space, text_hash, vector, checksum) VALUES (?, ?, ?, ?)",
        [(*row, _checksum(*row)) for row in waiting],
    )
    (highest,) = database.execute("SELECT max(id) FROM asked").fetchone()
    found = "SELECT vector FROM asked WHERE space = ? AND text_hash = ?"
    if highest > HIGHEST or any(
        database.execute(found, (space, text_hash)).fetchone() != (vector,) for space, text_hash, vector in waiting
    ):
        raise _DamageError
    database.execute("DELETE FROM asked WHERE id <= ?", (highest - MOST,))
    database.execute("COMMIT")


def _row(space: str, text_hash: object, vector: object, checksum: object, dim: int) -> FloatArray:
    """The vector (dim,) as it was kept. Raises _DamageError for anything else."""
    if isinstance(text_hash, bytes) and isinstance(vector, bytes) and len(vector) == 4 * dim:
        row = np.frombuffer(vector, np.float32)
        with np.errstate(all="ignore"):
            length = float(np.linalg.norm(row))  # not a number, or infinite, where one of them is
        if abs(length - 1) < OFF and checksum == _checksum(space, text_hash, vector):
            return row
    raise _DamageError


def _checksum(space: str, text_hash: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(b"%s\0%s%s" % (space.encode(), text_hash, vector)).digest()[:8]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


_caches: "weakref.WeakSet[QueryCache]" = weakref.WeakSet()
_held: list[QueryCache] = []  # while the process forks


def _before_fork() -> None:
    _held[:] = list(_caches)
    for cache in _held:
        cache.before_fork()


def _after_fork(is_child: bool) -> None:
    for cache in _held:
        cache.after_fork(is_child=is_child)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, False),
        after_in_child=partial(_after_fork, True),
    )
