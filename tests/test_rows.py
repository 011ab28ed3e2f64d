"""The file beside cells says what the store says, or is not believed."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mmsearch.store import rows, vectors
from mmsearch.store.metadata import Store
from mmsearch.store.records import FloatArray, HalfArray, NewItem
from mmsearch.store.rows import Rows, Told
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.crossmodal import Workload

COUNT, DIM = 4_000, 64

pytestmark = pytest.mark.skipif(not rows.READS_AT_A_PLACE, reason="short lists are read from the store here")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An index so large that cells hold it; every fourth vector is a text's."""
    monkeypatch.setattr(vectors, "CELLS_FROM", 1_000)
    monkeypatch.setattr(vectors, "TAIL", 100)
    with contextlib.closing(Store.create(tmp_path / "index", {"model": "test"})) as store:
        put(store, next(Workload(COUNT, DIM).images()))
        build(store)
        yield store


def put(store: Store, new: FloatArray) -> list[int]:
    with store.write() as writer, writer.transaction():
        return writer.put_items(
            [NewItem("text" if n % 4 == 0 else "image", row, text="t") for n, row in enumerate(new)], None
        )


def build(store: Store) -> None:
    with store.write() as writer:
        VectorIndex(store).build(writer, "image", lambda: Workload(COUNT, DIM).text_queries(50)[0])


def told(store: Store) -> Told:
    with store.read() as reader:
        told = Told.by(reader)
    assert told is not None
    return told


def path(store: Store) -> Path:
    (file,) = (store.folder / vectors.FOLDER).glob(f"*{rows.SUFFIX}")
    assert file.name == told(store).file
    return file


def found(store: Store, query: FloatArray) -> list[tuple[int, float]]:
    with store.read() as reader:
        ids, scores = VectorIndex(store).search(reader, "image", query, 20)
        owners = reader.owners("image", ids.tolist())
    assert [owners[vector][0] for vector in ids.tolist()] == ids.tolist(), "an item has the id of its vector here"
    return list(zip(ids.tolist(), scores.tolist(), strict=True))


def assert_same(store: Store) -> None:
    """The file holds exactly the vectors of the store, up to where it reaches."""
    asked = np.arange(-1, told(store).through + 10)
    there, items, halves = Rows(path(store), told(store)).read(asked)
    with store.read() as reader:
        known: dict[int, HalfArray] = {}
        for ids, block in reader.stored_vectors(asked.tolist()):
            known |= zip(ids.tolist(), block, strict=True)
    held = {n: vector for n, vector in zip(there.tolist(), halves, strict=True) if n in known}
    assert sorted(held) == [n for n in sorted(known) if n <= told(store).through]
    assert all(np.array_equal(known[n], vector) for n, vector in held.items())
    assert items.tolist() == there.tolist()


def test_it_holds_what_the_store_does(store: Store) -> None:
    assert told(store) == Told(path(store).name, DIM, told(store).through, told(store).through, None, 2 * 8 + 2 * DIM)
    assert_same(store)


def test_a_ranking_is_the_same_with_it_and_without(store: Store) -> None:
    query = Workload(COUNT, DIM).image_queries(1)[0]
    with_it = found(store, query)
    path(store).unlink()
    assert found(store, query) == with_it
    build(store)
    assert_same(store)
    assert found(store, query) == with_it


@pytest.mark.parametrize("damage", ["cut", "zeros", "rubbish"])
def test_a_damaged_one_is_passed_over_and_written_again(store: Store, damage: str) -> None:
    query = Workload(COUNT, DIM).image_queries(1)[0]
    before, file = found(store, query), path(store)
    size = file.stat().st_size
    if damage == "cut":
        os.truncate(file, size - 1)
    else:
        file.write_bytes(bytes(size) if damage == "zeros" else b"\xa5" * size)
    assert found(store, query) == before
    build(store)
    assert path(store) != file
    assert_same(store)


def test_it_is_appended_to_wherever_a_run_was_killed(store: Store) -> None:
    file, through = path(store), told(store).through
    with file.open("ab") as stream:
        stream.write(b"\xa5" * 10_000)
    put(store, next(Workload(2 * COUNT, DIM, seed=1).images())[:400])
    build(store)
    assert path(store) == file and told(store).through > through
    assert_same(store)


def test_what_was_deleted_is_not_found_and_goes_when_it_is_half(store: Store) -> None:
    query, file = Workload(COUNT, DIM).image_queries(1)[0], path(store)
    with store.write() as writer, writer.transaction():
        writer.remove_items([item for item, _ in found(store, query)])
    build(store)
    assert path(store) == file
    with store.write() as writer, writer.transaction():
        writer.remove_items(list(range(1, COUNT // 2 + 50)))
    assert all(item >= COUNT // 2 + 50 for item, _ in found(store, query))
    build(store)
    assert path(store) != file and told(store).count < COUNT / 2
    assert_same(store)
    build(store)
    assert told(store).count < COUNT / 2, "and is not written again for what went before"


def test_other_heads_have_a_file_of_their_own(store: Store) -> None:
    query, file = Workload(COUNT, DIM).image_queries(1)[0], path(store)
    before = found(store, query)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
    with store.write() as writer, writer.transaction():
        writer.use_heads("turned", lambda kind, own, features: own @ turned)
    assert found(store, query) != before
    build(store)
    assert path(store) != file and told(store).heads == "turned"
    assert_same(store)
    with store.write() as writer, writer.transaction():
        writer.use_heads(None, None)
    build(store)
    assert found(store, query) == before


def test_a_reader_of_an_earlier_state_gets_nothing_newer(store: Store) -> None:
    query, index = Workload(COUNT, DIM).image_queries(1)[0], VectorIndex(store)
    with store.read() as early:
        before = index.search(early, "image", query, 20)[0].tolist()
        new = put(store, np.repeat(query[None], 300, axis=0))
        build(store)
        with store.read() as late:
            assert set(index.search(late, "image", query, 20)[0].tolist()) <= set(new)
        assert index.search(early, "image", query, 20)[0].tolist() == before


def test_one_that_is_cut_short_while_it_is_open_is_not_believed(store: Store) -> None:
    query, index = Workload(COUNT, DIM).image_queries(1)[0], VectorIndex(store)
    with store.read() as reader:
        before = index.search(reader, "image", query, 20)
        os.truncate(path(store), 1_000)
        ids, scores = index.search(reader, "image", query, 20)
    assert ids.tolist() == before[0].tolist() and scores.tolist() == before[1].tolist()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
@pytest.mark.parametrize(("from_memory_s", "on_disk"), [(0.0, True), (60.0, False)])
def test_rows_on_a_disk_are_fetched_together(
    store: Store, monkeypatch: pytest.MonkeyPatch, from_memory_s: float, on_disk: bool
) -> None:
    monkeypatch.setattr(rows, "FROM_MEMORY_S", from_memory_s)
    advised, advise = list[tuple[int, int, int]](), os.posix_fadvise

    def noted(file: int, place: int, size: int, advice: int) -> None:
        advised.append((place, size, advice))
        advise(file, place, size, advice)

    monkeypatch.setattr(os, "posix_fadvise", noted)
    with store.read() as reader:
        ids, vectors = reader.sample_of_vectors("image", 30)
    there, _, read = Rows(path(store), told(store)).read(ids)
    assert there.tolist() == ids.tolist() and np.array_equal(read, vectors)
    size = told(store).layout.itemsize
    places = [(number - 1) * size for number in ids[rows.FIRST_ROWS :].tolist()] if on_disk else []
    assert advised == [(place, size, os.POSIX_FADV_WILLNEED) for place in places]
    assert not on_disk or places


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_advice_that_is_not_taken_costs_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*advice: int) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(rows, "FROM_MEMORY_S", 0.0)
    monkeypatch.setattr(os, "posix_fadvise", refused)
    assert_same(store)


@pytest.mark.parametrize(
    "said",
    [
        '{"file": "../index.db"}',
        "[]",
        "rubbish",
        {"file": "../index.db"},
        {"dim": -1},
        {"dim": 2**40},
        {"through": "x"},
    ],
)
def test_nonsense_in_the_store_is_no_file(store: Store, said: str | dict[str, object]) -> None:
    query = Workload(COUNT, DIM).image_queries(1)[0]
    before = found(store, query)
    text = said if isinstance(said, str) else json.dumps(asdict(told(store)) | said)
    with store.write() as writer, writer.transaction():
        writer.set(rows.SETTING, text)
    assert found(store, query) == before
    build(store)
    assert_same(store)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
@pytest.mark.parametrize("how", ["link", "hard link", "pipe"])
def test_rows_that_lead_to_another_file_are_written_anew_and_it_stays_as_it_was(
    tmp_path: Path, store: Store, how: str
) -> None:
    """The store says the name of the file, and may be a stranger's."""
    mine, old = tmp_path / "mine", path(store)
    mine.write_bytes(old.read_bytes() + b"mine")
    old.unlink()
    if how == "link":
        old.symlink_to(mine)
    elif how == "hard link":
        os.link(mine, old)
    else:
        os.mkfifo(old)
    before = mine.read_bytes()
    put(store, next(Workload(2 * COUNT, DIM, seed=1).images())[:400])
    build(store)
    assert_same(store)
    assert told(store).file != old.name
    assert mine.read_bytes() == before
