"""Vectors of past queries, kept beside the store, so that a repeated query loads no model.

A database of its own, `queries.db`: whoever searches may write to it without the index's lock, and whoever cannot write
there, or finds another at it, does without. What was asked is kept as a hash. It may be deleted at any time.
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
_Row: TypeAlias = tuple[str, bytes, FloatArray]  # space, hash of the text, vector (dim,)

DATABASE = "queries.db"
MOST = 2_000  # queries; 4 MB at 512 dimensions
BUSY_S = 0.05  # encoding a text takes about as long
MOST_WAITING = 256  # texts that other threads bring while one writes

TABLES = """CREATE TABLE IF NOT EXISTS queries (
    id INTEGER PRIMARY KEY,
    space TEXT NOT NULL,
    text_hash BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (space, text_hash))"""


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

    def get(self, space: str, texts: Sequence[str]) -> dict[str, FloatArray]:
        """text -> (dim,) float32, for those that are known."""
        hashes = {text: _hash(text) for text in texts}
        known = {text: row for text in texts if (row := self._recent.get((space, hashes[text]))) is not None}
        by_hash = {hashes[text]: text for text in texts if text not in known}

        def read(database: sqlite3.Connection) -> dict[str, FloatArray]:
            return {
                by_hash[text_hash]: np.frombuffer(vector, np.float32)
                for part in parts(list(by_hash))
                for text_hash, vector in database.execute(
                    f"SELECT text_hash, vector FROM queries WHERE space = ? AND text_hash IN ({marks(part)})",
                    (space, *part),
                )
            }

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
        self._unwritten.extend(new)
        while self._unwritten and self._writing.acquire(blocking=False):  # else who writes, writes this too
            try:
                waiting = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
                with self._using:
                    self._with_database("rwc", partial(_write, waiting))
            finally:
                self._writing.release()

    def latest(self, space: str, count: int) -> list[FloatArray]:
        """(dim,) float32 each, the newest first."""

        def read(database: sqlite3.Connection) -> list[FloatArray]:
            rows = database.execute(
                "SELECT vector FROM queries WHERE space = ? ORDER BY id DESC LIMIT ?", (space, count)
            )
            return [np.frombuffer(row[0], np.float32) for row in rows]

        with self._using:
            return self._with_database("rw", read) or []

    def _with_database(self, mode: str, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """What is done with the database, None where that cannot be done; one that is damaged is deleted."""
        try:
            if self._connection is None:
                self._connection = self._connect(mode)
            return act(self._connection)
        except IndexWriteError:  # a link, say
            return None
        except sqlite3.DatabaseError as error:
            self._disconnect()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                with contextlib.suppress(OSError):
                    self._path.unlink()
            return None

    def _connect(self, mode: str) -> sqlite3.Connection:
        check_database(self._path, is_written=True)
        address = f"file:{urllib.parse.quote(os.fsencode(self._path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = OFF")  # at worst it is damaged by a power cut, and made anew
        return connection

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


def _write(waiting: Sequence[_Row], database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    database.execute(TABLES)
    database.executemany(
        "INSERT OR IGNORE INTO queries (space, text_hash, vector) VALUES (?, ?, ?)",
        [(space, text_hash, vector.tobytes()) for space, text_hash, vector in waiting],
    )
    database.execute("DELETE FROM queries WHERE id <= (SELECT max(id) FROM queries) - ?", (MOST,))
    database.execute("COMMIT")


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
