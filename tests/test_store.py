"""What the store promises to the threads and processes around it."""

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch.errors import IndexLockedError, IndexWriteError
from mmsearch.index import Index
from mmsearch.store import metadata, schema
from mmsearch.store.metadata import Store
from mmsearch.store.records import NewItem
from mmsearch.store.vectors import VectorIndex
from tests.colours import ColourEncoder, plain

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.create(tmp_path / "index", {"model": "test"})) as store:
        yield store


@needs_proc
def test_threads_that_come_and_go_leave_no_connection_behind(store: Store) -> None:
    for _ in range(30):
        _in_a_thread(lambda: _setting(store))
    assert _open_files(store) <= 3  # one connection: the database, its WAL and the WAL's index
    store.close()
    assert _open_files(store) == 0


def test_reads_at_the_same_time_do_not_share_a_snapshot(store: Store) -> None:
    with store.read() as early:
        assert early.setting("x") is None
        _put(store, "x", "1")
        with store.read() as late:
            assert late.setting("x") == "1"
        assert early.setting("x") is None


def test_closing_does_not_disturb_who_is_reading(store: Store) -> None:
    with store.read() as reader:
        store.close()
        assert reader.setting("model") == "test"
    assert _setting(store) == "test"


@needs_proc
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_no_connection_crosses_a_fork(store: Store) -> None:
    _setting(store)
    child = os.fork()
    if child == 0:
        os._exit(_open_files(store) or _setting(store) != "test")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _setting(store) == "test"


def test_a_database_that_another_program_holds_is_said_to_be(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "BUSY_S", 0.05)
    with contextlib.closing(sqlite3.connect(store.folder / "index.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(IndexLockedError, match="another program"):
            _put(store, "x", "1")


def test_a_folder_that_cannot_be_made_is_said_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IndexWriteError, match="file/index"):
        Store.create(tmp_path / "file" / "index", {})


def test_a_disk_that_is_full_when_vectors_are_written_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _put_texts(store, 3)
    monkeypatch.setattr(os, "fsync", full)
    with store.write() as writer, pytest.raises(IndexWriteError, match="full"):
        VectorIndex(store).build(writer, "text")
    assert not list((store.folder / "vectors").iterdir())


def test_items_written_after_a_snapshot_take_no_place_in_its_answer(store: Store) -> None:
    vectors = VectorIndex(store)
    _put_texts(store, 3)
    query = np.eye(1, 8, dtype=np.float32)[0]
    with store.read() as early:
        early.revision()  # the snapshot is as of its first question
        _put_texts(store, 100, nearness=2.0)
        with store.read() as late:
            assert len(vectors.search(late, "text", query, 3)[0]) == 3
        ids, _ = vectors.search(early, "text", query, 3)
    assert ids.tolist() == [1, 2, 3]


def test_many_small_writes_are_held_in_few_blocks(store: Store) -> None:
    vectors = VectorIndex(store)
    query = np.eye(1, 8, dtype=np.float32)[0]
    for _ in range(50):
        _put_texts(store, 1)
        with store.read() as reader:
            ids, _ = vectors.search(reader, "text", query, 1000)
    assert ids.tolist() == list(range(1, 51))
    assert len(vectors._held["text"].beside) <= 6


def _setting(store: Store) -> str | None:
    with store.read() as reader:
        return reader.setting("model")


def _put(store: Store, key: str, value: str) -> None:
    with store.write() as writer, writer.transaction():
        writer.set(key, value)


def _put_texts(store: Store, count: int, nearness: float = 1.0) -> None:
    vector = np.ones(8, np.float32)
    vector[0] = nearness
    items = [NewItem("text", vector / np.linalg.norm(vector), text="words") for _ in range(count)]
    with store.write() as writer, writer.transaction():
        writer.put_items(items, None)


def _in_a_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def _open_files(store: Store) -> int:
    """How many of an index's files this process has open."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(store.folder))
    return count


def test_an_index_of_version_3_is_read_as_it_is_and_brought_up_to_date_by_a_writer(tmp_path: Path) -> None:
    from sqlite_utils import Database, Migrations

    plain("red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    store = Store(tmp_path / "index")
    store.folder.mkdir()
    with contextlib.closing(sqlite3.connect(store.folder / "index.db", isolation_level=None)) as database:
        migrations = Migrations("mmsearch")
        for step in schema.STEPS[:3]:
            migrations(name=step.__name__)(lambda db, step=step: step(db))
        migrations.apply(Database(database))
        database.execute("PRAGMA user_version = 3")
        settings = {"model": "colours", "fingerprint": "", "dim": "13", "encoder": "own"}
        database.executemany("INSERT INTO settings VALUES (?, ?)", settings.items())
        database.execute(
            "INSERT INTO files (path, kind, size_bytes, modified_ns, skipped, indexed_at) VALUES (?, ?, 6, 1, 'x', '')",
            (str(tmp_path / "broken.png"), "image"),
        )
    with Index(store.folder, encoder=ColourEncoder()) as index:
        assert [file.skipped for file in index.status().skipped] == ["x"]
        assert index.add(tmp_path / "red.png", tmp_path / "broken.png").added == 1
        assert index.status().skipped[0].skipped != "x"
    with store.read() as reader:
        assert reader.version == schema.VERSION
