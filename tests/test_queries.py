"""Past queries: asked again, they load no model; nobody waits for them, and nothing fails for want of them."""

import contextlib
import multiprocessing
import os
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

ROW = np.linspace(-1, 1, 8, dtype=np.float32)


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
    assert cache.get("model", ["a dog"])["a dog"].tolist() == ROW.tolist()
    assert cache.get("model other-heads", ["a dog"]) == {}
    assert cache.get("model", ["A dog", "a cat"]) == {}


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST", 5)
    cache = QueryCache(tmp_path)
    for number in range(12):
        cache.put("model", {f"query {number}": ROW * number})
    known = cache.get("model", [f"query {number}" for number in range(12)])
    assert set(known) == {f"query {number}" for number in range(7, 12)}
    assert [row[-1] for row in cache.latest("model", 2)] == [11.0, 10.0]


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
        assert len(QueryCache(index).latest(_space(index), 9)) == 2, "it is made anew"


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
                assert cache.get("model", [f"{number} {turn}"])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(cache.latest("model", 1_000)) == 32 * turns


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
    assert len(QueryCache(tmp_path).latest("model", 9)) == 3


def test_what_this_process_asked_is_known_though_it_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / DATABASE).mkdir()
    cache = QueryCache(tmp_path)
    cache.put("model", {"a dog": ROW})
    assert cache.get("model", ["a dog"])["a dog"].tolist() == ROW.tolist()
    assert QueryCache(tmp_path).get("model", ["a dog"]) == {}
