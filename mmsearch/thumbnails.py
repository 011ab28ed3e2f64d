"""Small pictures of the indexed files, made once and kept beside the index.

They are in `thumbnails.db`, a SQLite database of its own: one file instead of a hundred thousand, and one that may be
deleted at any time, as all that is derived. What was not looked at for longest makes room for what is new. Where the
folder cannot be written, they are kept in memory for as long as the program runs.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from mmsearch.decoding import DecodePool, Skip
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import IndexWriteError
from mmsearch.store.files import check_database

FILE = "thumbnails.db"
MAX_BYTES = 500_000_000  # of all together; 480 px photographs take about 30 kB
MEMORY_BYTES = 50_000_000
KEPT_SHARE = 0.9  # what is left after making room, so that it is not made for each new one
SEEN_EVERY_S = 3600  # how exactly it is known when one was last looked at; a write for each look would be waste
DECODE_S = 20.0


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG whose longer side is at most what was asked for; the tag changes with the file."""

    jpeg: bytes
    tag: str


class Thumbnails:
    """The thumbnails of one index. Safe to use from several threads; close it."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """folder: of the index; it need not be there yet."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._pool = DecodePool(PixelSpec(1, 1), timeout_s=DECODE_S)  # the spec is of no matter to thumbnails
        self._lock = threading.Lock()  # for all below
        self._connection: sqlite3.Connection | None = None
        self._total_bytes = 0

    def close(self) -> None:
        """Give back files and worker processes."""
        self._pool.close()
        with self._lock:
            self._forget_connection()

    def tag(self, path: str, size_px: int, facts: os.stat_result | None = None) -> str | None:
        """What `get` would give for the file as it is now, for a client that may have it; None where it is gone.

        facts: of the file, where it is open.
        """
        try:
            facts = facts or os.stat(path)
        except (OSError, ValueError):
            return None
        key = f"{size_px} {facts.st_mtime_ns} {facts.st_size} ".encode() + os.fsencode(path)
        return blake2b(key, digest_size=16).hexdigest()

    def get(self, path: str, size_px: int) -> Thumbnail | Skip:
        """From the store, or made now; or why there is none."""
        tag = self.tag(path, size_px)
        if tag is None:
            return Skip(path, "is not there any more", "machine")
        return self.kept(tag) or self.make(path, size_px, tag)

    def make(self, path: str, size_px: int, tag: str) -> Thumbnail | Skip:
        """From the file, kept by its tag; or why there is none."""
        ((_, made),) = self._pool.thumbnails([path], size_px)
        if isinstance(made, Skip):
            return made
        self._keep(tag, made)
        return Thumbnail(made, tag)

    def kept(self, tag: str) -> Thumbnail | None:
        """What was made before."""
        jpeg = self._kept(tag)
        return None if jpeg is None else Thumbnail(jpeg, tag)

    def _kept(self, tag: str) -> bytes | None:
        now = int(time.time())
        with self._lock, self._damage_forgiven():
            connection = self._opened()
            row = connection.execute("SELECT jpeg, seen_at FROM thumbnails WHERE tag = ?", (tag,)).fetchone()
            if row is None:
                return None
            if now - row[1] > SEEN_EVERY_S:
                connection.execute("UPDATE thumbnails SET seen_at = ? WHERE tag = ?", (now, tag))
            return bytes(row[0])
        return None

    def _keep(self, tag: str, jpeg: bytes) -> None:
        with self._lock, self._damage_forgiven():
            connection = self._opened()
            values = (tag, int(time.time()), len(jpeg), jpeg)
            connection.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?, ?)", values)
            self._total_bytes += len(jpeg)
            if self._total_bytes > self._max_bytes:
                self._make_room(connection)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Take out those that were not looked at for longest."""
        connection.execute(
            """DELETE FROM thumbnails WHERE rowid IN (SELECT rowid FROM (
                SELECT rowid, sum(size_bytes) OVER (ORDER BY seen_at DESC, rowid DESC) AS newer FROM thumbnails)
               WHERE newer > ?)""",
            (int(KEPT_SHARE * self._max_bytes),),
        )
        self._total_bytes = _total_bytes(connection)

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
            self._total_bytes = _total_bytes(self._connection)
        return self._connection

    def _open(self) -> sqlite3.Connection:
        if self._folder.is_dir() and os.access(self._folder, os.W_OK):
            with contextlib.suppress(sqlite3.Error, IndexWriteError):
                check_database(self._folder / FILE, is_written=True)
                return _connect(str(self._folder / FILE))
        self._max_bytes = min(self._max_bytes, MEMORY_BYTES)
        return _connect(":memory:")

    @contextlib.contextmanager
    def _damage_forgiven(self) -> Iterator[None]:
        """Whatever is wrong with the file costs only that thumbnails are made again."""
        try:
            yield
        except sqlite3.Error:
            self._forget_connection()
            with contextlib.suppress(OSError):
                (self._folder / FILE).unlink()

    def _forget_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(database: str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")  # a power cut may cost thumbnails, nothing else
    connection.execute(
        """CREATE TABLE IF NOT EXISTS thumbnails (
            tag TEXT PRIMARY KEY, seen_at INTEGER NOT NULL, size_bytes INTEGER NOT NULL, jpeg BLOB NOT NULL)"""
    )
    return connection


def _total_bytes(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT ifnull(sum(size_bytes), 0) FROM thumbnails").fetchone()[0])
