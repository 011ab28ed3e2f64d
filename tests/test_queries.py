"""Past queries: asked again, they load no model; nobody waits for them, and nothing fails for want of them."""

import contextlib
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mmsearch import Index
from mmsearch.store import queries
from mmsearch.store.queries import DATABASE, QueryCache
from tests.conftest import ROOT

DIM = 8
ROW = np.linspace(-1, 1, DIM, dtype=np.float32)
ROW /= np.linalg.norm(ROW)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    with Index(tmp_path / "index", model="lite") as made:
        made.add_texts(["a dog on the beach", "snow on the mountains"])
    return tmp_path / "index"


def asked(folder: Path, words: str) -> list[tuple[str, float]]:
    with Index(folder) as opened:
        return [(hit.id, hit.score) for hit in opened.search(words)]


def test_a_query_asked_again_loads_no_model(index: Path) -> None:
    first = asked(index, "a dog")
    script = (
        "import sys; from mmsearch import Index\n"
        f"hits = Index({str(index)!r}).search('a  dog ')\n"
        "print([(hit.id, hit.score) for hit in hits])\n"
        "print(sorted({'onnxruntime', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(first), "[]"]


def test_what_was_asked_cannot_be_read_there(index: Path) -> None:
    asked(index, "unmistakable words")
    assert b"unmistakable" not in (index / DATABASE).read_bytes()


def test_vectors_of_another_space_are_not_taken(tmp_path: Path) -> None:
    cache = QueryCache(tmp_path)
    cache.put("model", {"a dog": ROW})
    assert cache.get("model", ["a dog"], DIM)["a dog"].tolist() == ROW.tolist()
    assert cache.get("model other-heads", ["a dog"], DIM) == {}
    assert cache.get("model", ["A dog", "a cat"], DIM) == {}


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST", 5)
    cache = QueryCache(tmp_path)
    for number in range(12):
        cache.put("model", {f"query {number}": np.roll(ROW, number)})
    known = cache.get("model", [f"query {number}" for number in range(12)], DIM)
    assert set(known) == {f"query {number}" for number in range(7, 12)}
    assert [row.tolist() for row in cache.latest("model", 2, DIM)] == [np.roll(ROW, n).tolist() for n in (11, 10)]


@pytest.mark.parametrize("state", ["damaged", "locked", "a folder"])
def test_a_cache_that_cannot_be_used_fails_no_search(index: Path, state: str) -> None:
    before = asked(index, "a dog")
    path = index / DATABASE
    if state == "damaged":
        path.write_bytes(b"rubbish " * 1_000)
    elif state == "a folder":
        path.unlink()
        path.mkdir()
    with contextlib.closing(sqlite3.connect(path if state == "locked" else ":memory:", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert asked(index, "a dog") == before
        assert len(asked(index, "something new")) == 2
    if state == "damaged":
        asked(index, "a dog")
        assert len(QueryCache(index).latest(_space(index), 9, _dim(index))) == 2, "it is made anew"


def test_a_folder_that_cannot_be_written_to_is_left_alone(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries.os, "access", lambda *_: False)
    assert len(asked(index, "a dog")) == 2
    assert not (index / DATABASE).exists()


def test_what_many_threads_bring_at_once_is_all_kept(tmp_path: Path) -> None:
    cache, failed, turns = QueryCache(tmp_path), [], queries.MOST_WAITING // 32  # all may wait at once, on a slow disk

    def work(number: int) -> None:
        try:
            for turn in range(turns):
                cache.put("model", {f"{number} {turn}": ROW})
                assert cache.get("model", [f"{number} {turn}"], DIM)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(cache.latest("model", 1_000, DIM)) == 32 * turns


def _dim(folder: Path) -> int:
    with Index(folder) as index:
        return index.encoder.dim


def _space(folder: Path) -> str:
    with Index(folder) as index:
        return index.encoder.fingerprint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_writes_what_it_asks_by_a_connection_of_its_own(tmp_path: Path) -> None:
    cache = QueryCache(tmp_path)
    cache.put("model", {"the parent": ROW})
    child = multiprocessing.get_context("fork").Process(target=cache.put, args=("model", {"the child": ROW}))
    child.start()
    child.join(30)
    cache.put("model", {"the parent, later": ROW})
    assert child.exitcode == 0
    assert len(QueryCache(tmp_path).latest("model", 9, DIM)) == 3


def test_what_this_process_asked_is_known_though_it_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / DATABASE).mkdir()
    cache = QueryCache(tmp_path)
    cache.put("model", {"a dog": ROW})
    assert cache.get("model", ["a dog"], DIM)["a dog"].tolist() == ROW.tolist()
    assert QueryCache(tmp_path).get("model", ["a dog"], DIM) == {}


def kept(folder: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database:
        return database.execute("SELECT * FROM asked ORDER BY id").fetchall()


def crafted(folder: Path, vector: object, checksum: object) -> None:
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("UPDATE asked SET vector = ?, checksum = ifnull(?, checksum)", (vector, checksum))


def test_what_is_not_what_was_kept_is_not_believed_and_kept_anew(tmp_path: Path) -> None:
    text_hash = queries._hash("a dog")
    bad = [np.full(DIM, number) for number in (np.nan, np.inf, 0, 1, 3e38)] + [ROW[:4], np.tile(ROW, 2)]
    blobs: list[object] = [np.asarray(row, np.float32).tobytes() for row in bad]
    blobs += [b"", b"123", "text", 7, 2.5]
    told: list[tuple[object, object]] = [
        (blob, queries._checksum("model", text_hash, blob)) for blob in blobs if isinstance(blob, bytes)
    ]
    told += [(blob, checksum) for blob in (*blobs, ROW[::-1].tobytes()) for checksum in (None, 1, "text")]
    for vector, checksum in told:
        for act in ("get", "latest"):
            QueryCache(tmp_path).put("model", {"a dog": ROW})
            crafted(tmp_path, vector, checksum)
            cache = QueryCache(tmp_path)
            known = cache.get("model", ["a dog"], DIM) if act == "get" else cache.latest("model", 9, DIM)
            assert not known
    QueryCache(tmp_path).put("model", {"a dog": ROW})
    assert QueryCache(tmp_path).get("model", ["a dog"], DIM)["a dog"].tolist() == ROW.tolist()


def test_a_vector_is_not_taken_for_another_querys(tmp_path: Path) -> None:
    QueryCache(tmp_path).put("model", {"a dog": ROW, "a cat": ROW[::-1].copy()})
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("DELETE FROM asked WHERE id = 1")
        database.execute("UPDATE asked SET text_hash = ? WHERE id = 2", (queries._hash("a dog"),))
    assert QueryCache(tmp_path).get("model", ["a dog"], DIM) == {}


@pytest.mark.parametrize(
    "tables",
    [
        "CREATE TABLE queries (id INTEGER PRIMARY KEY, space TEXT, text_hash BLOB, vector BLOB)",
        "CREATE VIEW asked AS SELECT 1 AS id, 'model' AS space, x'00' AS text_hash, x'00' AS vector, x'00' AS checksum",
        queries.TABLE + "; CREATE TRIGGER t AFTER INSERT ON asked BEGIN DELETE FROM asked; END",
        queries.TABLE + "; INSERT INTO asked VALUES (9223372036854775807, 'model', x'00', x'00', x'00')",
    ],
)
def test_a_database_that_is_none_of_ours_is_made_anew(tmp_path: Path, tables: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.executescript(tables)
    for _ in range(3):
        cache = QueryCache(tmp_path)
        cache.put("model", {"a dog": ROW})
        cache.close()
    assert QueryCache(tmp_path).get("model", ["a dog"], DIM)["a dog"].tolist() == ROW.tolist()
    assert len(kept(tmp_path)) == 1


def assert_damage_is_survived(folder: Path, count: int, seed: int) -> None:
    draw, rows = random.Random(seed), {f"query {n}": np.roll(ROW, n % DIM) for n in range(60)}
    cache = QueryCache(folder)
    cache.put("model", rows)
    cache.close()
    data = (folder / DATABASE).read_bytes()
    for _ in range(count):
        body = bytearray(data)
        for _ in range(draw.randrange(1, 20)):
            body[draw.randrange(len(body)) if draw.random() < 0.7 else draw.randrange(200)] ^= 1 << draw.randrange(8)
        (folder / DATABASE).write_bytes(body[: draw.randrange(len(body))] if draw.random() < 0.1 else body)
        cache = QueryCache(folder)
        for text, row in cache.get("model", list(rows), DIM).items():
            assert row.tolist() == rows[text].tolist()
        known = [row.tolist() for row in rows.values()]
        assert all(row.tolist() in known for row in cache.latest("model", 100, DIM))
        for _ in range(6):  # each may come upon other damage, and then the file goes
            if len(QueryCache(folder).get("model", list(rows), DIM)) == len(rows):
                break
            QueryCache(folder).put("model", rows)
        else:
            pytest.fail("it never works again")
        for left in folder.glob(f"{DATABASE}*"):
            left.unlink()


@pytest.mark.filterwarnings("error")
def test_random_damage_gives_no_other_vector_and_does_not_last(tmp_path: Path) -> None:
    assert_damage_is_survived(tmp_path, 60, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_hundreds_of_damaged_copies_give_no_other_vector(tmp_path: Path) -> None:
    assert_damage_is_survived(tmp_path, 400, 2)
