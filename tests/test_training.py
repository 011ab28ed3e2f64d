"""From pairs to better answers: `train_heads` on a domain that the model has no words for."""

import csv
import io
import json
import math
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch.encoders.heads import TrainedHeads
from mmsearch.errors import SourceError, TrainingError, UsageError
from mmsearch.index import Index
from mmsearch.train.residual import Epoch, HeadSettings
from tests.colours import COLOURS, plain
from tests.dialect import DIALECT, DialectEncoder, draw

FAST = HeadSettings(epochs=25, batch=64, hidden=32, patience=25, learning_rate=5e-3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("dialect"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    """An index of the pictures, to be copied."""
    folder = tmp_path_factory.mktemp("made") / "index"
    with Index(folder, encoder=DialectEncoder()) as index:
        index.add(pairs.parent)
    return folder


@pytest.fixture
def index(tmp_path: Path, made: Path) -> Iterator[Index]:
    shutil.copytree(made, tmp_path / "index")
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        yield index


def answers(index: Index) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for words in ("red", "zorpish blim", "blue") for hit in index.search(words, k=20)]


def rows_of(table: Path) -> list[tuple[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return [(str(table.parent / row["path"]), row["caption"]) for row in csv.DictReader(file)]


def write(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("path", "caption")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_pairs_make_better_answers_and_off_gives_back_the_first_ones(tmp_path: Path, index: Index, pairs: Path) -> None:
    before = answers(index)
    told: list[Epoch] = []
    report = index.train_heads(pairs, settings=FAST, tell=told.append)
    assert report.used, report.decision
    assert report.before is not None and report.after is not None and report.gain is not None
    assert report.after.reciprocal_rank.value > report.before.reciprocal_rank.value + 0.2
    assert report.gain.low > 0
    assert report.encoded == 0  # the index had every picture
    shutil.copy(index.folder / "index.db", tmp_path)
    with Index(tmp_path, encoder=DialectEncoder()) as copy:
        assert answers(copy) == answers(index) != before
    assert len(told) == report.epochs
    colours = [Path(hit.path or "").name.split("-")[:2] for hit in index.search("zorpish quax", k=5)]
    assert colours.count(["red", "blue"]) >= 4
    assert [row.name for row in index.heads() if row.in_use] == ["trained"]
    index.use_heads(None)
    assert answers(index) == before


def test_the_same_pairs_and_seed_give_the_same_heads(index: Index, pairs: Path) -> None:
    index.train_heads(pairs, name="one", settings=FAST, use=False)
    index.train_heads(pairs, name="two", settings=FAST, use=False)
    other = HeadSettings(**{**vars(FAST), "seed": 1})
    index.train_heads(pairs, name="three", settings=other, use=False)
    one, three, two = index.heads()
    assert one.hash == two.hash != three.hash


@pytest.mark.parametrize(
    "changed",
    [
        {"head": "linear"},
        pytest.param({"towers": "text"}, marks=pytest.mark.slow),
        {"loss": "sigmoid"},
        {"loss": "triplet"},
        {"loss": "matched"},
        {"loss": "cross_entropy"},
        {"optimizer": "sgd", "learning_rate": 0.01},
        {"optimizer": "rmsprop", "schedule": "constant", "learning_rate": 1e-3},
        {"optimizer": "adam"},
    ],
    ids=lambda changed: "-".join(map(str, changed.values())),
)
def test_every_setting_learns(index: Index, pairs: Path, changed: dict[str, object]) -> None:
    report = index.train_heads(pairs, settings=HeadSettings(**{**vars(FAST), **changed}), use=False)
    assert report.after is not None and report.before is not None, report.decision
    assert report.after.reciprocal_rank.value > report.before.reciprocal_rank.value + 0.05


def test_ten_pairs_never_make_an_index_worse(index: Index, pairs: Path, tmp_path: Path) -> None:
    before = answers(index)
    rows = rows_of(pairs)
    random = np.random.default_rng(0)
    for turn in range(5):
        few = [rows[place] for place in random.choice(len(rows), 10, replace=False)]
        report = index.train_heads(write(tmp_path / f"{turn}.csv", few), settings=FAST)
        assert not report.used
        assert "old heads stay" in report.decision
    assert answers(index) == before


def test_ten_judgements_never_make_an_index_worse(index: Index) -> None:
    before = answers(index)
    hits = index.search("zorpish blim", k=10)
    index.add_feedback("zorpish blim", like=[hit.id for hit in hits[:5]], unlike=[hit.id for hit in hits[5:]])
    report = index.train_heads(settings=FAST)
    assert (report.pairs, report.used) == (10, False)
    assert answers(index) == before


def test_worse_heads_do_not_take_the_place_of_those_in_use(index: Index, pairs: Path) -> None:
    index.train_heads(pairs, settings=FAST)
    [good] = index.heads()
    before = answers(index)
    poor = HeadSettings(**{**vars(FAST), "epochs": 1, "learning_rate": 1e-4})
    report = index.train_heads(pairs, settings=poor)
    assert not report.used
    assert index.heads() == [good]
    assert answers(index) == before
    again = index.train_heads(pairs, settings=FAST)  # as good as they are, and so no better
    assert again.gain is None or (again.gain.value, again.used) == (0.0, False)


def test_wrong_pairs_are_found_out_by_the_held_out_ones(index: Index, pairs: Path, tmp_path: Path) -> None:
    rows = rows_of(pairs)
    texts = [text for _, text in rows]
    np.random.default_rng(1).shuffle(texts)
    shuffled = [(path, text) for (path, _), text in zip(rows, texts, strict=True)]
    report = index.train_heads(write(tmp_path / "shuffled.csv", shuffled), settings=FAST)
    assert not report.used


def test_feedback_is_learned_from(index: Index, pairs: Path) -> None:
    for hit in index.search("red", k=20):
        colours = Path(hit.path or "").name.split("-")[:2]
        index.add_feedback(
            "glimmering", like=[hit.id] if colours[0] == "red" else [], unlike=[hit.id] if colours[0] != "red" else []
        )
    report = index.train_heads(pairs, settings=FAST)
    assert report.pairs == len(rows_of(pairs)) + 20
    assert report.used


def test_the_captions_of_an_index_are_pairs(index: Index, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No pair"):
        index.train_heads(settings=FAST)
    from mmsearch.planning import IngestOptions

    index.add(options=IngestOptions(captions=(str(pairs),)))
    report = index.train_heads(settings=FAST)
    assert report.pairs == len(rows_of(pairs))
    assert report.used


def test_new_pictures_are_encoded_once_and_are_no_items(tmp_path: Path, pairs: Path) -> None:
    encoder = DialectEncoder()
    with Index(tmp_path / "index", encoder=encoder) as index:
        index.add_images([plain("red")], ids=["only"])
        first = index.train_heads(pairs, settings=FAST, use=False)
        encoded = encoder.images_encoded
        second = index.train_heads(pairs, settings=FAST, use=False)
        assert (first.encoded, second.encoded) == (len(rows_of(pairs)), 0)
        assert encoder.images_encoded == encoded
        assert index.status().images == 1


def test_pictures_that_an_index_let_go_by_their_ids_are_encoded_anew(index: Index, pairs: Path) -> None:
    from mmsearch import training
    from mmsearch.sources.pairs import read_pairs
    from mmsearch.store.metadata import Store

    index.remove(ids=[hit.id for hit in index.search("red", kind="image", k=1000)])
    assert index.status().images == 0  # their files are known still
    gathered = training.gather(Store(index.folder), DialectEncoder, read_pairs(pairs))
    assert not gathered.skipped
    assert len(gathered.pictures) == len({path for path, _ in rows_of(pairs)})


def test_a_webdataset_is_read_as_a_stream_and_hostile_names_do_nothing(tmp_path: Path, pairs: Path) -> None:
    tar_path = tmp_path / "pairs.tar"
    with tarfile.open(tar_path, "w") as tar:
        for number, (path, text) in enumerate(rows_of(pairs)):
            name = "../../escaped" if number == 0 else f"/etc/sample{number}" if number == 1 else f"{number:06}"
            _member(tar, f"{name}.png", Path(path).read_bytes())
            _member(tar, f"{name}.txt", text.encode())
            _member(tar, f"{name}.json", b'{"key": 1}')
        link = tarfile.TarInfo("linked.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        _member(tar, "lonely.png", b"no picture at all")
        _member(tar, "lonely.txt", b"something")
        _member(tar, "silent.png", Path(rows_of(pairs)[0][0]).read_bytes())
    before = {*tmp_path.rglob("*")}
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        index.add_images([plain("red")])
        report = index.train_heads(tar_path, settings=FAST)
    assert {path for path in tmp_path.rglob("*") if "index" not in path.parts} == before
    assert not (tmp_path.parent / "escaped.png").exists()
    assert report.pictures == len(rows_of(pairs))
    assert len(report.skipped) == 3  # the link, the one that is no picture, and the one without a text
    assert report.used


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_a_folder_as_img2dataset_writes_it(tmp_path: Path, pairs: Path) -> None:
    folder = tmp_path / "00000"
    folder.mkdir()
    for number, (path, text) in enumerate(rows_of(pairs)):
        (folder / f"{number:09}.png").write_bytes(Path(path).read_bytes())
        if number % 2:
            (folder / f"{number:09}.txt").write_text(text, encoding="utf-8")
        else:
            (folder / f"{number:09}.json").write_text(json.dumps({"caption": text, "width": 32}), encoding="utf-8")
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        index.add_images([plain("red")])
        assert index.train_heads(tmp_path, settings=FAST, use=False).pairs == len(rows_of(pairs))


def test_what_a_column_says_is_for_testing_is_never_learned_from(index: Index, pairs: Path, tmp_path: Path) -> None:
    rows = [(*row, "test" if place % 3 == 0 else "train") for place, row in enumerate(rows_of(pairs))]
    table = write(tmp_path / "split.csv", rows, ("path", "caption", "split"))
    report = index.train_heads(table, settings=FAST, use=False)
    assert report.learned_from == sum(row[2] == "train" for row in rows)


def test_a_group_is_never_on_both_sides(index: Index, pairs: Path, tmp_path: Path) -> None:
    from mmsearch import training
    from mmsearch.sources.pairs import read_pairs
    from mmsearch.store.metadata import Store

    rows = [(*row, Path(row[0]).stem[:-2]) for row in rows_of(pairs)]
    table = write(tmp_path / "groups.csv", rows, ("path", "caption", "group"))
    gathered = training.gather(Store(index.folder), DialectEncoder, read_pairs(table))
    sides = training.split(gathered, 0.5, seed=0)
    groups = [{gathered.groups[place] for place in side.pictures} for side in sides]
    assert all(groups) and not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


# What can be wrong with pairs, a sentence each

BAD = {
    "not there": ("path,caption\n", "No pair"),
    "one row": ("path,caption\n{a},zorp\n", None),
    "all the same": ("path,caption\n{a},same\n{b},same\n{c},same\n", None),
    "no column": ("picture_name_x,words\n{a},zorp\n", "no path column"),
    "gone": ("path,caption\nnowhere.png,zorp\nnor-here.png,blim\n", "nowhere.png: no such file"),
    "labels": ("path,caption,label\n{a},zorp,7\n{b},blim,9\n", "label '7'"),
    "weights": ("path,caption,sample_weight\n{a},zorp,-3\n{b},blim,x\n", "weight -3"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_pairs_is_said_in_a_sentence(index: Index, pairs: Path, tmp_path: Path, name: str) -> None:
    before = answers(index)
    content, reason = BAD[name]
    some = dict(zip("abc", (path for path, _ in rows_of(pairs)[::40]), strict=False))
    table = tmp_path / "bad.csv"
    table.write_text(content.format(**some), encoding="utf-8")
    if reason is None:
        report = index.train_heads(table, settings=FAST)
        assert not report.used
        assert "old heads stay" in report.decision
    else:
        with pytest.raises((TrainingError, SourceError), match=reason):
            index.train_heads(table, settings=FAST)
    assert answers(index) == before
    assert index.heads() == []


def test_a_source_that_is_none_is_named(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        index.train_heads(tmp_path / "nothing.csv")
    (tmp_path / "pairs.doc").write_text("x")
    with pytest.raises(SourceError, match="holds no pairs"):
        index.train_heads(tmp_path / "pairs.doc")
    (tmp_path / "broken.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(SourceError, match="as a tar"):
        index.train_heads(tmp_path / "broken.tar")
    (tmp_path / "plain").mkdir()
    plain("red").save(tmp_path / "plain" / "a.png")
    with pytest.raises(SourceError, match="no text for them"):
        index.train_heads(tmp_path / "plain")


def test_a_loss_that_is_no_number_ends_it_and_changes_nothing(index: Index, pairs: Path) -> None:
    before = answers(index)
    wild = HeadSettings(**{**vars(FAST), "optimizer": "sgd", "learning_rate": 10.0, "pull": 1e6})
    with pytest.raises(TrainingError, match="smaller learning_rate"):
        index.train_heads(pairs, settings=wild)
    assert answers(index) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rat": 1}, "'learning_rat' is no setting"),
        ({"epochs": "many"}, "epochs is a whole number"),
        ({"epochs": 0}, "epochs is a number from 1"),
        ({"loss": "l2"}, "loss is one of info_nce"),
        ({"learning_rate": math.nan}, "learning_rate is a number"),
        ({"head": True}, "head is text"),
    ],
)
def test_a_setting_that_is_none_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        HeadSettings.of(given)


def test_half_of_what_was_learned_lies_between_old_and_new(index: Index, pairs: Path) -> None:
    index.train_heads(pairs, settings=FAST, use=False)
    from mmsearch.store.metadata import Store

    with Store(index.folder).read() as reader:
        [row] = reader.heads()
        heads = TrainedHeads.from_bytes(row.name, row.hash, reader.head_tensors(row.hash) or b"")
        first, features = (
            np.stack(each) for each in zip(*reader.raw(reader.items_of_kind("image")).values(), strict=True)
        )
    tensors = {name: each * (0 if ".out." in name else 1) for name, each in heads.tensors.items()}
    nothing = TrainedHeads.of("nothing", tensors).project("image", first, features)
    assert np.allclose(nothing, first, atol=1e-3)
    assert np.abs(heads.project("image", first, features) - first).max() > 0.05


def test_words_of_the_dialect_are_what_the_test_thinks() -> None:
    assert len({*DIALECT.values()}) == len(COLOURS)
    assert Image.new("RGB", (1, 1)).size == (1, 1)
