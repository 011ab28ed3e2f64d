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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmsearch.store.reader import marks, parts
from mmsearch.store.records import FloatArray

T = TypeVar("T")

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

    Threads share one, not one each: what they bring while one of them writes is written together, in one transaction.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / DATABASE
        self._writing = threading.Lock()  # SQLite locks out processes; threads here would only meet as strangers
        self._unwritten: deque[tuple[str, str, FloatArray]] = deque(maxlen=MOST_WAITING)  # space, text, vector

    def get(self, space: str, texts: Sequence[str]) -> dict[str, FloatArray]:
        """text -> (dim,) float32, for those that are known."""
        by_hash = {_hash(text): text for text in texts}

        def read(database: sqlite3.Connection) -> dict[str, FloatArray]:
            return {
                by_hash[text_hash]: np.frombuffer(vector, np.float32)
                for part in parts(list(by_hash))
                for text_hash, vector in database.execute(
                    f"SELECT text_hash, vector FROM queries WHERE space = ? AND text_hash IN ({marks(part)})",
                    (space, *part),
                )
            }

        return self._with_database("ro", read) or {}

    def put(self, space: str, vectors: Mapping[str, FloatArray]) -> None:
        """Keep (dim,) float32 of texts; where that cannot be done at once, it is not done."""

        def write(database: sqlite3.Connection) -> None:
            database.execute("PRAGMA synchronous = OFF")  # at worst it is damaged by a power cut, and made anew
            database.execute("BEGIN IMMEDIATE")
            database.execute(TABLES)
            database.executemany(
                "INSERT OR IGNORE INTO queries (space, text_hash, vector) VALUES (?, ?, ?)",
                [(space, _hash(text), vector.astype(np.float32).tobytes()) for space, text, vector in waiting],
            )
            database.execute("DELETE FROM queries WHERE id <= (SELECT max(id) FROM queries) - ?", (MOST,))
            database.execute("COMMIT")

        if not os.access(self._path.parent, os.W_OK):
            return
        self._unwritten.extend((space, text, vector) for text, vector in vectors.items())
        if self._writing.acquire(timeout=BUSY_S):  # a forked process may never get it
            try:
                waiting = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
                if waiting:
                    self._with_database("rwc", write)
            finally:
                self._writing.release()

    def latest(self, space: str, count: int) -> list[FloatArray]:
        """(dim,) float32 each, the newest first."""

        def read(database: sqlite3.Connection) -> list[FloatArray]:
            rows = database.execute(
                "SELECT vector FROM queries WHERE space = ? ORDER BY id DESC LIMIT ?", (space, count)
            )
            return [np.frombuffer(row[0], np.float32) for row in rows]

        return self._with_database("ro", read) or []

    def _with_database(self, mode: str, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """What is done with the database, None where that cannot be done; one that is damaged is deleted."""
        address = f"file:{urllib.parse.quote(os.fsencode(self._path.absolute()))}?mode={mode}"
        try:
            connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
            with contextlib.closing(connection):
                return act(connection)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                with contextlib.suppress(OSError):
                    self._path.unlink()
            return None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
