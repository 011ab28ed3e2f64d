"""Trained heads of an index: moving to them, back, and what a reader sees meanwhile."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import Error, IndexDamagedError, ModelError, SourceError, UsageError
from mmsearch.index import Index
from mmsearch.query import Query
from mmsearch.store.metadata import Store
from mmsearch.store.records import NewItem
from mmsearch.store.writer import _projected
from tests.colours import COLOURS, ColourEncoder, swatch


def swapping(dim: int = 13) -> TrainedHeads:
    """Heads under which pictures have red and blue exchanged: 'red' finds blue ones."""
    exchanged = np.eye(dim, dtype=np.float32)
    for cell in range(0, 12, 3):
        exchanged[[cell, cell + 2]] = exchanged[[cell + 2, cell]]
    return TrainedHeads.of("swapped", {"image.weight": exchanged - np.eye(dim, dtype=np.float32)})


def zeros() -> TrainedHeads:
    return TrainedHeads.of("nothing", {"image.weight": np.zeros((13, 13), np.float32)})


def keep(index: Index, heads: TrainedHeads) -> None:
    with Store(index.folder).write() as writer, writer.transaction():
        writer.put_heads(heads.name, heads.hash, heads.to_bytes(), "{}")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        names = [f"{colour} {number}" for colour in COLOURS for number in range(3)]
        index.add_images([swatch(name.split()[0], place) for place, name in enumerate(names)], ids=names)
        index.add_texts(["a red note"], ids=["note"])
        keep(index, swapping())
        keep(index, zeros())
        yield index


def first(index: Index, words: str) -> str:
    return index.search(words, k=1, kind="image")[0].id.split()[0]


def everything(index: Index) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for colour in COLOURS for hit in index.search(colour, k=30)]


def test_other_heads_give_other_answers_and_off_gives_back_the_first_ones_bit_for_bit(index: Index) -> None:
    before, stored = everything(index), _vectors(index)
    assert first(index, "red") == "red"
    index.use_heads("swapped")
    assert [row.in_use for row in index.heads()] == [False, True] and index.status().heads == "swapped"
    assert first(index, "red") == "blue"
    assert _vectors(index) != stored
    index.use_heads(None)
    assert everything(index) == before
    assert _vectors(index) == stored


def test_heads_that_learned_nothing_change_nothing(index: Index) -> None:
    before = everything(index)
    index.use_heads("nothing")
    after = everything(index)
    assert [name for name, _ in after] == [name for name, _ in before]
    assert np.allclose([score for _, score in after], [score for _, score in before], atol=2e-3)  # half precision


def test_items_that_come_later_go_through_the_heads_in_use(index: Index) -> None:
    index.use_heads("swapped")
    index.add_images([swatch("blue", 99)], ids=["later"], captions=["a blue swatch"])
    assert "later" in [hit.id for hit in index.search("red", k=4, kind="image")]
    late = _vectors(index)
    index.use_heads("nothing")
    index.use_heads("swapped")
    assert _vectors(index) == late  # the same whether it came before or after
    index.use_heads(None)
    assert "later" in [hit.id for hit in index.search("blue", k=4, kind="image")]


def test_a_copy_and_a_changed_file_go_through_the_heads_in_use(index: Index, tmp_path: Path) -> None:
    index.use_heads("swapped")
    photos = tmp_path / "photos"
    photos.mkdir()
    swatch("blue", 50).save(photos / "one.png")
    index.add(photos)
    (photos / "two.png").write_bytes((photos / "one.png").read_bytes())
    index.add(photos)
    found = {Path(hit.path).name for hit in index.search("red", k=5, kind="image") if hit.path}
    assert found == {"one.png", "two.png"}
    swatch("red", 51).save(photos / "two.png")
    index.add(photos)
    assert {Path(hit.path).name for hit in index.search("blue", k=4, kind="image") if hit.path} == {"two.png"}


def test_a_picture_asks_through_the_heads_in_use(index: Index) -> None:
    index.use_heads("swapped")
    assert index.search(swatch("red", 7), k=1)[0].id.startswith("red")
    assert index.search(Query.of_item("red 1"), k=1)[0].id.startswith("red")
    assert index.search("red", k=1, kind="image")[0].id.startswith("blue")


def test_an_index_that_is_open_elsewhere_sees_the_move(index: Index) -> None:
    with Index(index.folder, encoder=ColourEncoder()) as other:
        assert first(other, "red") == "red"
        index.use_heads("swapped")
        assert first(other, "red") == "blue"
        index.use_heads(None)
        assert first(other, "red") == "red"


def test_whoever_searches_meanwhile_sees_the_old_or_the_new(index: Index) -> None:
    old = everything(index)
    index.use_heads("swapped")
    new = everything(index)
    seen, failed, done = set(), [], threading.Event()

    def ask() -> None:
        with Index(index.folder, encoder=ColourEncoder()) as other:
            while not done.is_set():
                hits = tuple((hit.id, hit.score) for hit in other.search("red", k=30))
                seen.add(hits)
                if hits not in (tuple(old[: len(hits)]), tuple(new[: len(hits)])):
                    failed.append(hits)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(12):
        index.use_heads("swapped" if turn % 2 else None)
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert seen


def test_a_move_that_is_cut_short_changes_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(index)
    monkeypatch.setattr(TrainedHeads, "project", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.use_heads("swapped")
    monkeypatch.undo()
    assert everything(index) == before
    assert not any(row.in_use for row in index.heads())


def test_heads_in_use_are_not_removed_and_unknown_ones_are_named(index: Index) -> None:
    index.use_heads("swapped")
    with pytest.raises(UsageError, match="heads off"):
        index.remove_heads("swapped")
    with pytest.raises(UsageError, match="there are nothing, swapped"):
        index.use_heads("nonsense")
    index.use_heads(None)
    index.remove_heads("swapped")
    assert [row.name for row in index.heads()] == ["nothing"]


def test_damaged_heads_are_refused_and_nothing_is_unpickled(index: Index) -> None:
    with Store(index.folder).write() as writer, writer.transaction():
        writer.put_heads("pickled", "abc", b"\x80\x04\x95cos\nsystem\n(S'echo no'\ntR.", "{}")
    with pytest.raises(ModelError, match="pickled"):
        index.use_heads("pickled")


def test_feedback_is_kept_and_the_last_word_counts(index: Index) -> None:
    assert index.add_feedback("  warm   colours", like=["red 0", "yellow 1"], unlike=["blue 0"]) == 3
    index.add_feedback("warm colours", unlike=["yellow 1"])
    kept = {(words, id): match for words, id, match in index.feedback()}
    assert kept == {
        ("warm colours", "red 0"): True,
        ("warm colours", "yellow 1"): False,
        ("warm colours", "blue 0"): False,
    }
    index.remove(ids=["blue 0"])
    assert len(index.feedback()) == 2
    with pytest.raises(SourceError, match="no item"):
        index.add_feedback("warm", like=["nobody"])
    with pytest.raises(UsageError, match="words"):
        index.add_feedback(" ", like=["red 0"])
    with pytest.raises(UsageError, match="'red 0'"):
        index.add_feedback("warm", like=["red 0"], unlike=["red 0"])


def test_a_remembered_query_is_not_taken_for_one_under_other_heads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    turned = TrainedHeads.of("turned", {"text.weight": random.standard_normal((384, 384)).astype(np.float32)})
    with Index(tmp_path / "index", model="lite") as index:
        index.add_texts(["a dog on the beach"])
        keep(index, turned)
        before = index.encode("a dog")
        index.use_heads("turned")
        under = index.encode("a dog")
        assert float(before @ under) < 0.5
        with Index(tmp_path / "index") as other:  # which remembers it
            assert np.array_equal(other.encode("a dog"), under)
        index.use_heads(None)
        assert np.array_equal(index.encode("a dog"), before)


def _vectors(index: Index) -> dict[int, bytes]:
    with Store(index.folder).read() as reader:
        ids = reader.items_of_kind("image") + reader.items_of_kind("text")
        return {item: row.tobytes() for item, row in reader.vectors(ids).items()}


def test_items_with_and_without_features_are_refused_and_never_cut_anew(index: Index) -> None:
    half = np.eye(1, 13, dtype=np.float16).tobytes()
    for features in ([half, None], [None, half], [half, half[:4]]):
        with pytest.raises(Error) as refused:
            _projected(swapping().project, ["image", "image"], [half, half], features)
        assert len(str(refused.value)) < 300
    row = np.eye(1, 13, dtype=np.float32)[0]
    put = NewItem("image", row, feature=row)
    with Store(index.folder).write() as writer, writer.transaction():
        writer.put_items([put], None)  # the others came without
    with pytest.raises(ModelError, match="others without"):
        index.use_heads("swapped")
    assert index.status().heads is None and first(index, "red") == "red"


def test_one_item_with_features_is_refused_under_heads_where_all_others_have_none(index: Index) -> None:
    index.use_heads("swapped")
    row = np.eye(1, 13, dtype=np.float32)[0]
    with Store(index.folder).write() as writer:
        writer.project = swapping().project
        with pytest.raises(ModelError, match="others without"), writer.transaction():
            writer.put_items([NewItem("image", row, feature=row)], None)
    assert len(index.search("red", k=100)) == 3 * len(COLOURS) + 1


def test_features_of_another_length_than_the_heads_read_are_refused(index: Index) -> None:
    rows = np.eye(2, 13, dtype=np.float32)
    with pytest.raises(ModelError, match="13 numbers, and these images have 7"):
        swapping().project("image", rows, rows[:, :7])


def test_vectors_of_different_lengths_are_damage_and_never_cut_anew(index: Index) -> None:
    with Store(index.folder).write() as writer, writer.transaction():  # as long together as if none were wrong
        for item, length in ((1, 13 - 4), (2, 13 + 4)):
            writer.connection.execute("UPDATE vectors SET vector = zeroblob(?) WHERE item_id = ?", (2 * length, item))
    with Index(index.folder, encoder=ColourEncoder()) as again, pytest.raises(IndexDamagedError, match="18 and of 34"):
        again.search("red")
