"""One rule for the column `split`: no command learns from a row that it holds out, however the word is written."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch import measuring
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import SourceError
from mmsearch.index import Index
from mmsearch.preparing import PrepareOptions
from mmsearch.sources.pairs import GUESSED, Pair, PairColumns, read_pairs
from mmsearch.sources.splits import firmer, held_out, is_held_out, split_of
from mmsearch.train.residual import HeadSettings
from tests.dialect import DialectEncoder, draw

LEARNED = ("train", "training", "Train", "TRAINING ", "restval")
HELD_OUT = (
    "test", "Test", " TESTING", "eval", "evaluation", "hold-out", "held_out",
    "val", "VAL", "valid", "validation", "Validation ", "dev",
)  # fmt: skip
FAST = HeadSettings(epochs=1, batch=64, hidden=8)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("dialect"), each=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    folder = tmp_path_factory.mktemp("made") / "index"
    with Index(folder, encoder=DialectEncoder()) as index:
        index.add(pairs.parent)
    return folder


@pytest.fixture
def index(tmp_path: Path, made: Path) -> Iterator[Index]:
    shutil.copytree(made, tmp_path / "index")
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        yield index


def split_table(pairs: Path, path: Path, names: tuple[str, str]) -> tuple[Path, int]:
    """The pairs with every third one marked by the second name, and how many these are."""
    with pairs.open(newline="", encoding="utf-8") as file:
        rows = [(str(pairs.parent / row["path"]), row["caption"]) for row in csv.DictReader(file)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption", "split"))
        writer.writerows((*row, names[number % 3 == 0]) for number, row in enumerate(rows))
    return path, len(range(0, len(rows), 3))


@pytest.mark.parametrize("name", HELD_OUT[::3])
def test_no_command_learns_from_what_is_held_out(index: Index, pairs: Path, tmp_path: Path, name: str) -> None:
    from mmsearch.train.design import EncoderDesign
    from mmsearch.train.examples import gather  # also of `train heads --unfreeze`

    table, count = split_table(pairs, tmp_path / "split.csv", (LEARNED[len(name) % len(LEARNED)], name))
    every = [pair for pair in read_pairs(table) if isinstance(pair, Pair)]
    assert len(every) > count
    outside = {pair.image for pair in every if is_held_out(pair.split)}
    assert len(outside) == count

    report = index.train_heads(table, settings=FAST, use=False)
    assert report.learned_from == len(every) - count
    examples = gather(every, EncoderDesign(held_out=0.5), PixelSpec(8, 8), tmp_path)
    assert (len(examples.learned), len(examples.held_out)) == (len(every) - count, count)
    measured = [pair.image for pair in measuring.tested([table], GUESSED) if isinstance(pair, Pair)]
    assert {*measured} == outside
    prepared = index.prepare_pairs(table, options=PrepareOptions(alike=1.0))
    assert {pair.path for pair in prepared.pairs if pair.split == "train"}.isdisjoint(outside)
    assert {pair.path for pair in prepared.pairs if pair.split == "test"} == outside


def test_a_word_that_is_no_split_is_an_error_that_names_it(index: Index, pairs: Path, tmp_path: Path) -> None:
    table, _ = split_table(pairs, tmp_path / "split.csv", ("train", "fold 3"))
    for read in (
        lambda: list(read_pairs(table)),
        lambda: index.train_heads(table, settings=FAST),
        lambda: index.evaluate(table),
        lambda: index.prepare_pairs(table),
    ):
        with pytest.raises(SourceError, match=r"split\.csv, row 2 has the split 'fold 3'; a split is train"):
            read()
    aside = [pair for pair in read_pairs(table, PairColumns(split="")) if isinstance(pair, Pair)]
    assert aside and not any(pair.split for pair in aside)


def test_an_image_that_is_held_out_once_is_never_learned_from(index: Index, pairs: Path, tmp_path: Path) -> None:
    table, count = split_table(pairs, tmp_path / "split.csv", ("train", "test"))
    rows = list(csv.reader(table.open(newline="", encoding="utf-8")))
    path = next(row[0] for row in rows[1:] if row[2] == "train")
    with table.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow((path, "said once more", "val"))
    report = index.train_heads(table, settings=FAST, use=False)
    assert report.learned_from == len(rows) - 1 - count - 1


def test_a_late_split_of_a_jsonl_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"path": "a.jpg", "text": "x"}\n{"path": "b.jpg", "text": "y", "split": "test"}\n'
    )
    assert [pair.split for pair in read_pairs(tmp_path / "a.jsonl") if isinstance(pair, Pair)] == [None, "test"]


@given(st.sampled_from((*LEARNED, *HELD_OUT)), st.booleans(), st.text(" \t-_", max_size=3))
def test_case_blanks_and_hyphens_change_nothing(name: str, upper: bool, around: str) -> None:
    written = around + (name.upper() if upper else name) + around
    assert split_of(written) == split_of(name) is not None
    assert is_held_out(split_of(written)) == (name in HELD_OUT)


@given(
    st.lists(st.tuples(st.sampled_from((None, "train", "validation", "test")), st.sampled_from("abcd")), max_size=12)
)
def test_a_group_is_held_out_whole(rows: list[tuple[str | None, str]]) -> None:
    splits, groups = [split for split, _ in rows], [group for _, group in rows]
    outside = held_out(splits, groups, 0.5, lambda group: (ord(group) % 4) / 4)  # type: ignore[arg-type]
    assert len({*zip(groups, outside, strict=True)}) == len({*groups})
    assert all(out for out, split in zip(outside, splits, strict=True) if split in ("validation", "test"))


def test_what_is_held_out_wins() -> None:
    assert firmer("train", "test") == firmer("test", "train") == firmer(None, "test") == "test"
    assert firmer(None, "train") == "train" and firmer("validation", "test") == "validation"
