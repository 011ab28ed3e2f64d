"""The same items give the same answers, in whatever order they came, and whatever came and went between."""

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch import Index
from mmsearch.store import schema, vectors
from mmsearch.store.metadata import Store
from mmsearch.store.moments import Moments, worth
from mmsearch.store.reader import Reader
from mmsearch.store.records import FloatArray, Kind, NewFile, NewItem
from mmsearch.store.vectors import VectorIndex, cosines
from tests.benchmarks.crossmodal import Workload, unit
from tests.benchmarks.filled import SETTINGS, Known
from tests.colours import COLOURS, ColourEncoder, swatch

COUNT, DIM = 520, 24
Item = tuple[str, Kind, FloatArray]  # path, kind, vector


def items(count: int = COUNT) -> list[Item]:
    """Pictures and texts of a workload; of some there are two to six, equal to the bit."""
    workload = Workload(count, DIM)
    pictures, texts = next(workload.images()), workload.text_queries(count // 4)[0]
    pictures[5::40], pictures[7:13] = pictures[4], pictures[6]
    texts[3::20] = texts[2]
    named: list[Item] = [(f"/p/{n % 7}/beach {n % 3}/{n:04}.jpg", "image", row) for n, row in enumerate(pictures)]
    return named + [(f"/t/{n % 5}/{n:04} words.txt", "text", row) for n, row in enumerate(texts)]


def put(store: Store, some: Sequence[Item]) -> None:
    with store.write() as writer, writer.transaction():
        for path, kind, row in some:
            text = f"said of {path[-8:-4]}" if kind == "text" else None
            writer.put_items([NewItem(kind, row, text=text)], writer.put_file(NewFile(path, kind, 1, 1)))


def take_out(store: Store, paths: Sequence[str]) -> None:
    with store.write() as writer, writer.transaction():
        writer.remove_files([file.id for path in paths if (file := writer.file(path)) is not None])


def build(store: Store) -> None:
    with store.write() as writer:
        for kind in ("image", "text"):
            VectorIndex(store).build(writer, kind)


def filled(folder: Path, act: Callable[[Store], None]) -> Path:
    store = Store.create(folder, {"dim": str(DIM), **SETTINGS})
    with contextlib.closing(store):
        act(store)
    return folder


def answers(folder: Path) -> list[list[tuple[str | None, float, dict[str, int]]]]:
    """The top ten of 60 queries, by words and with words that stand in paths."""
    workload = Workload(COUNT, DIM)
    known = Known(workload.text_queries(60)[0], workload.image_queries(60))
    with Index(folder, encoder=known) as index:
        asked = [*(f"text {number}" for number in range(59)), "beach"]
        return [[(hit.path, hit.score, dict(hit.found_by)) for hit in index.search(words)] for words in asked]


def usual(store: Store, kind: Kind, query: FloatArray, index: VectorIndex | None = None) -> tuple[float, float]:
    with store.read() as reader:
        return (index or VectorIndex(store)).usual_scores(reader, kind, query)


def told(store: Store, kind: Kind, query: FloatArray) -> tuple[float, float]:
    """The same from every vector."""
    with store.read() as reader:
        scores = np.concatenate([cosines(rows, query) for _, rows in reader.vectors_after(kind, 0)]).astype(np.float64)
    return float(scores.mean()), float(scores.std())


def moments(reader: Reader, kind: Kind) -> Moments:
    kept = reader.moments(kind)
    assert kept is not None
    return kept


@pytest.fixture(params=["read from the store", "ranked by FAISS"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ranked by FAISS":
        monkeypatch.setattr(vectors, "SMALL", 50)


@pytest.mark.usefixtures("small")
def test_answers_do_not_depend_on_the_order_in_which_items_came(tmp_path: Path) -> None:
    every = items()

    def at_once(store: Store) -> None:
        put(store, every)
        build(store)

    def shuffled(store: Store) -> None:
        mixed = random.Random(3).sample(every, len(every))
        put(store, mixed[:100])
        build(store)
        put(store, [(f"{path}.old", kind, row) for path, kind, row in mixed[:300]])
        put(store, mixed[100:])
        take_out(store, [f"{path}.old" for path, _, _ in mixed[:300]])
        build(store)

    first = answers(filled(tmp_path / "first", at_once))
    assert answers(filled(tmp_path / "second", shuffled)) == first
    assert all(len(hits) == 10 for hits in first)
    kinds = {str(path)[:2] for hits in first for path, _, _ in hits}
    assert kinds == {"/p", "/t"}, "else the two kinds are not merged"


def test_equal_scores_are_in_the_order_of_paths_then_of_own_ids(tmp_path: Path) -> None:
    row = unit(np.ones((1, DIM), np.float32))[0]
    paths = [f"/{n:03}.jpg" for n in range(300)]

    def act(store: Store) -> None:
        with store.write() as writer, writer.transaction():
            writer.put_items([NewItem("image", row, name=name) for name in ("b", "a")], None)
        put(store, [(path, "image", row) for path in random.Random(1).sample(paths, 300)])

    known = Known(row[None], row[None])
    with Index(filled(tmp_path / "index", act), encoder=known) as index:
        assert [hit.path for hit in index.search("text 0", k=10)] == paths[:10], "more tie than are ranked"
        assert [hit.path or hit.id for hit in index.search("text 0", k=400)] == [*paths, "a", "b"]


def test_texts_that_say_the_same_are_one_hit_of_the_first_path(tmp_path: Path) -> None:
    row = unit(np.ones((1, DIM), np.float32))[0]

    def act(store: Store) -> None:
        with store.write() as writer, writer.transaction():
            for path in ("/b.txt", "/a.txt"):
                file = writer.put_file(NewFile(path, "text", 1, 1))
                writer.put_items([NewItem("text", row, text="the same")], file)

    with Index(filled(tmp_path / "index", act), encoder=Known(row[None], row[None])) as index:
        query = index.encode("text 0")
        store = Store(index.folder)
        with contextlib.closing(store), store.read() as reader:
            ids, _ = VectorIndex(store).search(reader, "text", query, 5)
        assert ids.tolist() == [2, 1]


def test_pictures_put_in_folder_by_folder_are_found_as_those_put_in_at_once(tmp_path: Path) -> None:
    names = list(COLOURS)
    for number in range(90):
        folder = tmp_path / "in" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        swatch(names[number % 6], number // 2).save(folder / f"{names[number % 6]} {number}.png")
    (tmp_path / "in" / "notes.txt").write_text("\n\n".join(f"a {name} wall\nand {name} again" for name in names * 9))
    found = []
    for order in (["."], ["2", "0", "."]):
        with Index(tmp_path / f"index{len(order)}", encoder=ColourEncoder()) as index:
            for name in order:
                index.add(tmp_path / "in" / name)
            hits = [index.search(words, k=20) for name in names for words in (name, f"{name} wall", f"no {name}")]
            found.append([[(hit.path, hit.line, hit.score) for hit in answer] for answer in hits])
    assert found[0] == found[1]


# The moments


@pytest.mark.usefixtures("small")
def test_usual_scores_are_those_of_all_vectors_after_every_kind_of_write(tmp_path: Path) -> None:
    every, query = items(), Workload(COUNT, DIM).text_queries(1)[0][0]
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
    with contextlib.closing(Store.create(tmp_path / "index", {"dim": str(DIM), **SETTINGS})) as store:
        index = VectorIndex(store)

        def check(when: str) -> None:
            for kind in ("image", "text"):
                exact = told(store, kind, query)
                assert usual(store, kind, query, index) == pytest.approx(exact, abs=1e-6), when
                assert usual(store, kind, query) == pytest.approx(exact, abs=1e-6), when

        put(store, every[:30] + every[-10:])
        check("few")
        put(store, every[30:-10])
        check("many")
        build(store)
        check("built")
        take_out(store, [path for path, _, _ in every[:40]])
        check("some deleted")
        put(store, every[:40])
        check("some put in again")
        with store.write() as writer, writer.transaction():
            number = writer.item_of_file(every[50][0])
            assert number is not None
            writer.replace_item(number, NewItem("image", every[-1][2]))
        check("one replaced")
        with store.write() as writer, writer.transaction():
            writer.use_heads("turned", lambda kind, own, features: own @ turned)
            writer.project = lambda kind, own, features: own @ turned
            VectorIndex(store).build(writer, "image")
        check("other heads")
        take_out(store, [path for path, _, _ in every[100:110]])
        check("deleted under heads")
        with store.write() as writer, writer.transaction():
            writer.use_heads(None, None)
        check("the model's own again")
        take_out(store, [path for path, _, _ in every[:500]])
        check("nearly all deleted")


def test_moments_of_what_is_left_are_those_of_an_index_that_never_held_more(tmp_path: Path) -> None:
    every = [item for item in items(1_200) if item[1] == "image"]
    kept = []
    for name in ("one", "other"):
        with contextlib.closing(Store.create(tmp_path / name, {"dim": str(DIM), **SETTINGS})) as store:
            if name == "one":
                for start in range(0, 1_200, 150):
                    put(store, every[start : start + 150])
                for start in range(0, 700, 70):
                    take_out(store, [path for path, _, _ in every[start : start + 70]])
            else:
                put(store, every[700:][::-1])
            with store.write() as writer, writer.transaction():
                writer.put_moments("image")
            with store.read() as reader:
                kept.append(moments(reader, "image"))
    assert kept[0].count == kept[1].count == 500
    assert np.array_equal(kept[0].sums, kept[1].sums) and np.array_equal(kept[0].products, kept[1].products)


@settings(max_examples=25)
@given(st.data())
def test_adding_and_taking_off_in_any_order_leaves_nothing_behind(data: st.DataObject) -> None:
    rows = unit(np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(40, 6)).astype(np.float32))
    rows = rows.astype(np.float16).astype(np.float32)
    left = data.draw(st.sets(st.integers(0, 39), min_size=1))
    made = Moments.none(6)
    for row in data.draw(st.permutations(range(40))):
        made = made.plus(rows[[row]], 40)
    for row in data.draw(st.permutations(sorted(set(range(40)) - left))):
        made = made.minus(rows[[row]])
    direct = Moments.none(6).plus(rows[sorted(left)], 40)
    assert made.count == len(left)
    assert np.array_equal(made.sums, direct.sums) and np.array_equal(made.products, direct.products)


def test_few_vectors_have_no_moments_and_cost_no_room(tmp_path: Path) -> None:
    with contextlib.closing(Store.create(tmp_path / "index", {"dim": str(DIM), **SETTINGS})) as store:
        put(store, items()[: worth(DIM) - 1])
        build(store)
        with store.read() as reader:
            assert reader.moments("image") is None


def test_an_index_of_an_older_version_gets_moments_by_its_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, query = items(), Workload(COUNT, DIM).text_queries(1)[0][0]
    with monkeypatch.context() as then:
        # Without moments; the writer of today needs what else is new
        steps = tuple(step for step in schema.STEPS if step is not schema.keep_moments_and_checksums)
        then.setattr(schema, "STEPS", steps)
        then.setattr(schema, "VERSION", 3)
        filled(tmp_path / "index", lambda store: put(store, every))
    with contextlib.closing(Store(tmp_path / "index")) as store:
        exact = told(store, "image", query)
        assert usual(store, "image", query) == pytest.approx(exact, abs=1e-6)
        with store.write() as writer, writer.transaction():
            writer.set("any", "thing")
        with store.read() as reader:
            assert moments(reader, "image").count == COUNT
        assert usual(store, "image", query) == pytest.approx(exact, abs=1e-6)


def test_moments_that_make_no_sense_are_not_believed_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "SMALL", 50)
    query = Workload(COUNT, DIM).text_queries(1)[0][0]
    with contextlib.closing(Store.create(tmp_path / "index", {"dim": str(DIM), **SETTINGS})) as store:
        put(store, items())
        build(store)
        exact = told(store, "image", query)
        with store.write() as writer, writer.transaction():
            writer.connection.execute("UPDATE moments SET products = x'00'")
        assert usual(store, "image", query) == pytest.approx(exact, abs=0.02), "a sample tells them"
        with store.write() as writer, writer.transaction():
            writer.put_moments("image")
        assert usual(store, "image", query) == pytest.approx(exact, abs=1e-6)
