"""What a large vector index promises: the right neighbours, all that a filter allows, and old or new, never half.

The cells that hold a large index are tried here on a few thousand vectors, as if that were many.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch.search import Filters
from mmsearch.store import cells, schema, vectors
from mmsearch.store.cells import RECALL, Cells, Settings
from mmsearch.store.metadata import Store
from mmsearch.store.records import Condition, FloatArray, IntArray, NewFile, NewItem
from mmsearch.store.vectors import VectorIndex, cosines
from tests.benchmarks.crossmodal import Workload

COUNT, DIM = 6_000, 64


@pytest.fixture
def workload() -> Workload:
    return Workload(COUNT, DIM)


@pytest.fixture
def store(tmp_path: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An index so large that cells hold it; of every 100 pictures, one is of 2001."""
    monkeypatch.setattr(vectors, "CELLS_FROM", 3_000)
    monkeypatch.setattr(vectors, "TAIL", 500)
    monkeypatch.setattr(vectors, "FEW", 20)
    with contextlib.closing(Store.create(tmp_path / "index", {"model": "test"})) as store:
        put(store, next(workload.images()))
        build(store, workload)
        yield store


def put(store: Store, rows: FloatArray) -> list[int]:
    with store.write() as writer, writer.transaction():
        first = writer.last_vector("image")
        items = [
            NewItem("image", row, taken_at="2001-05" if n % 100 == 0 else "2002-05", facts={"half": n % 2})
            for n, row in enumerate(rows)
        ]
        file = writer.put_file(NewFile(f"/{first}.jpg", "image", 1, 1))
        return writer.put_items(items, file)


def build(store: Store, workload: Workload) -> None:
    with store.write() as writer:
        VectorIndex(store).build(writer, "image", lambda: workload.text_queries(100)[0])


def found(store: Store, query: FloatArray, k: int, condition: Condition | None = None) -> tuple[IntArray, FloatArray]:
    with store.read() as reader:
        return VectorIndex(store).search(reader, "image", query, k, condition)


def recall(store: Store, queries: FloatArray, rows: FloatArray, allowed: IntArray, where: Condition | None) -> float:
    """recall@10 among allowed rows; the vector of row n has the id n + 1."""
    right = 0
    for query in queries:
        true = allowed[np.argsort(-cosines(rows[allowed], query), kind="stable")[:10]] + 1
        right += len(set(true.tolist()) & set(found(store, query, 10, where)[0].tolist()))
    return right / (10 * len(queries))


def settings(store: Store) -> Settings | None:
    with store.read() as reader:
        told = reader.segments("image")[0].cells
    return None if told is None else Settings.from_json(told)


def test_words_and_pictures_find_their_neighbours_in_cells(store: Store, workload: Workload) -> None:
    chosen = settings(store)
    assert chosen is not None and set(chosen.recall) == {"image", "text"}
    rows, every = next(workload.images()), np.arange(COUNT)
    assert recall(store, workload.text_queries(50)[0], rows, every, None) >= RECALL - 0.02
    assert recall(store, workload.image_queries(50), rows, every, None) >= RECALL - 0.02


def test_few_vectors_are_ranked_exactly(tmp_path: Path, workload: Workload) -> None:
    rows = next(workload.images())[:2_000]
    with contextlib.closing(Store.create(tmp_path / "small", {"model": "test"})) as store:
        put(store, rows)
        build(store, workload)
        assert settings(store) is None
        assert recall(store, workload.text_queries(20)[0], rows, np.arange(2_000), None) == 1.0


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        (Filters(after="2002"), [n for n in range(COUNT) if n % 100]),  # asked of candidates
        (Filters(where={"half": 1}), list(range(1, COUNT, 2))),
        (Filters(before="2002"), list(range(0, COUNT, 100))),  # all that pass are looked up
        (Filters(before="2002", where={"half": {"<": 1}}), list(range(0, COUNT, 100))),
    ],
)
def test_a_filter_costs_neither_hits_nor_recall(
    store: Store, workload: Workload, filters: Filters, allowed: list[int]
) -> None:
    queries, rows, passing = workload.text_queries(20)[0], next(workload.images()), np.array(allowed)
    condition = filters.condition("image")
    assert recall(store, queries, rows, passing, condition) >= RECALL - 0.03
    for k in (10, len(allowed), COUNT):
        ids, scores = found(store, queries[0], k, condition)
        assert len(ids) == min(k, len(allowed)) and set(ids.tolist()) <= set((passing + 1).tolist())
        assert np.all(np.diff(scores) <= 0)


def test_as_many_hits_as_there_are_vectors_can_be_had(store: Store, workload: Workload) -> None:
    ids, _ = found(store, workload.image_queries(1)[0], 10 * COUNT)
    assert sorted(ids.tolist()) == list(range(1, COUNT + 1))


def test_more_hits_begin_as_fewer_do(store: Store, workload: Workload) -> None:
    query = workload.text_queries(1)[0][0]
    few, many = found(store, query, 10)[0], found(store, query, 40)[0]
    assert few.tolist() == found(store, query, 10)[0].tolist()
    assert (
        len(set(few.tolist()) & set(many[:10].tolist())) >= 9
    )  # a longer list may bring in a near one that was missed


def test_new_vectors_are_found_beside_cells_and_dead_ones_are_not(store: Store, workload: Workload) -> None:
    query = workload.image_queries(1)[0]
    nearest = found(store, query, 3)[0].tolist()
    with store.write() as writer, writer.transaction():
        writer.remove_items(nearest)  # an item has the id of its vector here
    new = put(store, query[None])
    ids, scores = found(store, query, 10)
    assert ids[0] == new[0] and scores[0] == pytest.approx(1.0, abs=1e-3)
    assert not set(nearest) & set(ids.tolist())


def test_cells_take_in_what_waits_and_are_placed_again_when_they_have_grown(store: Store, workload: Workload) -> None:
    more = Workload(2 * COUNT, DIM, seed=1)
    rows = next(more.images())
    before = settings(store)
    put(store, rows[:400])
    build(store, workload)
    assert len(files(store)) == 2, "a few lie beside the cells"
    put(store, rows[400:1_000])
    with store.write() as writer, writer.transaction():
        writer.remove_items([1, 2, 3])
    build(store, workload)
    assert len(files(store)) == 1 and settings(store) == before, "more are taken in"
    assert sorted(found(store, rows[0], 2 * COUNT)[0].tolist()) == list(range(4, COUNT + 1_001))
    put(store, rows[1_000:])
    build(store, workload)
    after = settings(store)
    assert after is not None and before is not None and after.trained_on > 2 * before.trained_on
    assert len(found(store, rows[0], 4 * COUNT)[0]) == 3 * COUNT - 3


def test_a_reader_goes_on_while_cells_are_exchanged(store: Store, workload: Workload) -> None:
    query, index = workload.image_queries(1)[0], VectorIndex(store)
    with store.read() as early:
        before = index.search(early, "image", query, 10)[0].tolist()
        put(store, next(Workload(2 * COUNT, DIM, seed=1).images()))
        build(store, workload)
        assert index.search(early, "image", query, 10)[0].tolist() == before
    assert len(found(store, query, 10)[0]) == 10


needs_sysconf = pytest.mark.skipif(not hasattr(os, "sysconf"), reason="how much memory there is, is not known")


@needs_sysconf
@pytest.mark.parametrize(("from_memory_s", "again_s", "times"), [(0.0, 600.0, 1), (0.0, 0.0, 3), (60.0, 600.0, 0)])
def test_cells_on_a_disk_are_read_through_once_in_a_while(
    store: Store,
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
    from_memory_s: float,
    again_s: float,
    times: int,
) -> None:
    queries, index, read = workload.text_queries(3)[0], VectorIndex(store), list[tuple[Path, int]]()
    read_through = cells.read_through
    before = [found(store, query, 10)[0].tolist() for query in queries]
    monkeypatch.setattr(cells, "read_through", lambda path: read.append((path, read_through(path))))
    monkeypatch.setattr(cells, "FROM_MEMORY_S", from_memory_s)
    monkeypatch.setattr(cells, "FETCHED_AGAIN_S", again_s)
    with store.read() as reader:
        assert [index.search(reader, "image", query, 10)[0].tolist() for query in queries] == before
    for thread in threading.enumerate():
        if thread.name == "mmsearch fetching":
            thread.join()
    (file,) = files(store)
    assert read == [(file, file.stat().st_size)] * times


@needs_sysconf
def test_a_query_is_answered_where_no_thread_can_be_started(
    store: Store, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    query = workload.text_queries(1)[0][0]
    before = found(store, query, 10)[0].tolist()
    monkeypatch.setattr(cells, "FROM_MEMORY_S", 0.0)
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert found(store, query, 10)[0].tolist() == before


@needs_sysconf
def test_a_file_that_would_fill_the_memory_is_not_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, sizes = tmp_path / "file", {"SC_PHYS_PAGES": 4, "SC_PAGE_SIZE": 1000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(cells, "FETCHED_AT_ONCE", 300)
    file.write_bytes(bytes(1999))
    assert cells.read_through(file) == 1999
    file.write_bytes(bytes(2000))
    assert cells.read_through(file) == 0
    assert cells.read_through(tmp_path / "gone") == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "zeros", "rubbish"])
def test_damaged_cells_are_passed_over_and_built_again(store: Store, workload: Workload, damage: str) -> None:
    query = workload.image_queries(1)[0]
    nearest = found(store, query, 10)[0].tolist()
    (path,) = files(store)
    data = path.read_bytes()
    body = {"cut": data[: len(data) // 2], "zeros": bytes(len(data)), "rubbish": b"\xa5" * len(data)}
    if damage == "missing":
        path.unlink()
    else:
        start = 0 if damage == "cut" else len(data) // 4  # a header that reads well, and codes that mean nothing
        path.write_bytes(body["cut"] if damage == "cut" else data[:start] + body[damage][start:])
    assert len(set(found(store, query, 10)[0].tolist()) & set(nearest)) >= 9
    build(store, workload)
    assert len(found(store, query, 10)[0]) == 10 and files(store) != [path]


@pytest.mark.filterwarnings("error")
def test_cells_that_could_not_be_searched_well_are_tried_again_only_where_there_is_more(
    tmp_path: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "CELLS_FROM", 900)
    monkeypatch.setattr(vectors, "choose", lambda *_: None)
    tried: list[int] = []
    train = Cells.train
    monkeypatch.setattr(Cells, "train", lambda rows, count: (tried.append(count), train(rows, count))[1])
    with contextlib.closing(Store.create(tmp_path / "same", {"model": "test"})) as same:
        rows = np.full((1_000, DIM), DIM**-0.5, np.float32)  # all the same: no direction has any variance
        put(same, rows)
        build(same, workload)
        build(same, workload)
        assert tried == [1_000]
        assert len(found(same, rows[0], 5)[0]) == 5
        put(same, rows[:50])
        build(same, workload)
        assert tried == [1_000, 1_050]


def test_where_cells_cannot_find_enough_all_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "choose", lambda *_: None)
    put(store, next(Workload(2 * COUNT, DIM, seed=1).images()))
    with store.write() as writer:
        VectorIndex(store).build(writer, "image")
    assert settings(store) is None
    assert len(found(store, np.eye(1, DIM, dtype=np.float32)[0], 10)[0]) == 10


def test_an_index_of_the_first_version_is_read_as_it_is_and_mended_by_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = np.eye(1, 8, dtype=np.float32)[0]
    with monkeypatch.context() as then:
        then.setattr(schema, "STEPS", schema.STEPS[:1])
        then.setattr(schema, "VERSION", 1)
        old = Store.create(tmp_path / "index", {"model": "test"})
        with contextlib.closing(old), old.write() as writer, writer.transaction():
            writer.put_items([NewItem("image", row, facts={"price": 3, "name": None})], None)
    priced, unnamed = Filters(where={"price": {">": 2}}), Filters(where={"name": None})
    with contextlib.closing(Store(tmp_path / "index")) as store:
        for version in (1, schema.VERSION):
            with store.read() as reader:
                assert reader.version == version
            for filters, hits in ((priced, 1), (unnamed, 1), (Filters(where={"price": 4}), 0)):
                assert len(found(store, row, 5, filters.condition("image"))[0]) == hits
            with store.write():  # brings the tables up to date
                pass
        with store.write() as writer, writer.transaction():
            writer.remove_items([1])
            assert writer.connection.execute("SELECT count(*) FROM item_facts").fetchone() == (0,)


def files(store: Store) -> list[Path]:
    return sorted((store.folder / "vectors").glob("*.faiss"))
