"""`pairs check` and `pairs prepare`: what is left out and why, the split, and that it is the same every time."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmsearch.errors import UsageError
from mmsearch.index import Index
from mmsearch.preparing import PrepareOptions, normalised, write
from tests.colours import COLOURS, plain
from tests.dialect import DialectEncoder, draw


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=DialectEncoder()) as index:
        index.add_images([plain("red")])
        yield index


def table(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("path", "caption")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def kept(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_each_thing_that_is_wrong_has_its_reason(index: Index, tmp_path: Path) -> None:
    for place, name in enumerate("abcdef"):
        Image.new("RGB", (40, 30), tuple(COLOURS.values())[place]).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    before = {path: path.read_bytes() for path in tmp_path.glob("*.png")}
    rows = [
        ("a.png", "a  cafe\u0301\n in red"),
        ("a.png", "a café in red"),
        ("b.png", "IMG_2034.JPG"),
        ("c.png", "..."),
        ("d.png", "word " * 300),
        ("e.png", "Click here to enlarge"),
        ("broken.png", "something"),
        ("gone.png", "something"),
        ("f.png", "a black square " + "that goes on and on " * 14),  # 73 words; this encoder reads 60
    ]
    prepared = index.prepare_pairs(table(tmp_path / "pairs.csv", rows))
    assert sorted(pair.caption[:14] for pair in prepared.pairs) == ["a black square", "a café in red"]
    assert prepared.cut == 1
    reasons = prepared.reasons
    assert reasons["its caption is boilerplate"] == 2
    assert reasons["its caption is empty"] == 1
    assert reasons["its caption has more than 200 words"] == 1
    assert reasons["says what another row says of the same picture"] == 1
    assert sum("broken.png" in reason or "gone.png" in reason for reason in reasons) == 2
    assert {path: path.read_bytes() for path in tmp_path.glob("*.png")} == before


def test_case_and_accents_go_only_where_that_was_asked_for() -> None:
    text = "  Ein Café\u0301  über "
    assert normalised("Café Über", PrepareOptions()) == "Café Über"
    assert normalised("Café Über", PrepareOptions(lower=True)) == "café über"
    assert normalised(text, PrepareOptions(strip_accents=True, lower=True)) == "ein cafe uber"


def test_the_same_pairs_give_the_same_files_and_the_page_shows_them(index: Index, tmp_path: Path) -> None:
    from mmsearch.cli.printing import thumbnails_of

    pairs = draw(tmp_path / "dialect", each=3)
    written = [
        write(index.prepare_pairs(pairs), tmp_path / name, lambda paths: thumbnails_of(paths, 64))
        for name in ("one", "two")
    ]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["counts"]["pairs"] == len(kept(tmp_path / "one" / "pairs.csv")) == 108
    page = (tmp_path / "one" / "report.html").read_text()
    assert "data:image/jpeg" in page and "data:image/png" in page and "script" not in page
    other = index.prepare_pairs(pairs, options=PrepareOptions(seed=1))
    assert other.table() != index.prepare_pairs(pairs).table()


def test_a_group_and_nearly_the_same_pictures_stay_on_one_side(index: Index, tmp_path: Path) -> None:
    pairs = draw(tmp_path / "dialect", each=4)  # the four of two colours are nearly the same to the encoder
    options = PrepareOptions(held_out=0.5, alike=0.97)
    prepared = index.prepare_pairs(pairs, options=options)
    assert prepared.alike
    side = {pair.path: pair.split for pair in prepared.pairs}
    assert all(side[one] == side[other] for one, other in prepared.alike)
    assert {"train", "test"} == {*side.values()}


def test_what_leaks_from_the_test_is_taken_out_of_the_training(index: Index, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), COLOURS["red"]).save(tmp_path / "a.png")
    Image.new("RGB", (80, 60), COLOURS["red"]).save(tmp_path / "larger.png")
    Image.new("RGB", (40, 30), COLOURS["blue"]).save(tmp_path / "b.png")
    rows = [("a.png", "zorp", "train"), ("larger.png", "zorp", "test"), ("b.png", "quax", "train")]
    prepared = index.prepare_pairs(table(tmp_path / "pairs.csv", rows, ("path", "caption", "split")))
    assert {(Path(pair.path).name, pair.split) for pair in prepared.pairs} == {
        ("larger.png", "test"),
        ("b.png", "train"),
    }
    assert prepared.reasons == {"is in the training, and nearly the same is in the test": 1}


def test_what_is_prepared_trains_as_it_stands(index: Index, tmp_path: Path) -> None:
    from mmsearch.train.residual import HeadSettings

    pairs = draw(tmp_path / "dialect", each=6)
    prepared = index.prepare_pairs(pairs, options=PrepareOptions(held_out=0.3, alike=1.0))
    [out, *_] = write(prepared, tmp_path / "prepared", lambda paths: {})
    report = index.train_heads(out, settings=HeadSettings(epochs=3, hidden=16, batch=64), use=False)
    assert report.encoded == 0
    assert report.learned_from == prepared.counts["train pairs"]


@pytest.mark.parametrize("wrong", [{"held_out": 1.0}, {"alike": 2.0}, {"words_most": 0}])
def test_options_that_make_no_sense_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PrepareOptions(**wrong)
