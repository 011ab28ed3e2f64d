"""`pairs check` and `pairs prepare`: what is left out and why, the split, and that it is the same every time."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch.errors import TrainingError, UsageError
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


def of_colour(name: str) -> bytes:
    file = io.BytesIO()
    plain(name).save(file, "PNG")
    return file.getvalue()


def test_pictures_in_a_tar_become_files_named_by_their_content(index: Index, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for name, data in (
            ("../../evil.png", of_colour("red")),
            ("../../evil.txt", b"a red one"),
            ("b.png", of_colour("blue")),
            ("b.txt", b"a blue one"),
            ("c.png", b"no picture"),
            ("c.txt", b"a broken one"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    into = tmp_path / "deep" / "er" / "prepared"
    prepared = index.prepare_pairs(tmp_path / "pairs.tar", options=PrepareOptions(alike=1.0), into=into)
    [out, *_] = write(prepared, into, lambda paths: {})
    rows = {row["caption"]: row["path"] for row in kept(out)}
    assert rows.keys() == {"a red one", "a blue one"}
    assert all((into / path).parent == into / "pictures" for path in rows.values())
    assert (into / rows["a red one"]).read_bytes() == of_colour("red")
    assert prepared.reasons == {"the picture is text, not a picture": 1}
    assert not list(tmp_path.rglob("evil*"))
    again = index.prepare_pairs(out, options=PrepareOptions(alike=1.0))
    assert {pair.path for pair in again.pairs} == {str(into / path) for path in rows.values()}


def test_pairs_in_a_tar_are_checked_without_writing(index: Index, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for name, data in (("a.png", of_colour("red")), ("a.txt", b"a red one")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*.png"))
    assert index.prepare_pairs(tmp_path / "pairs.tar").counts["pairs"] == 1
    assert sorted(tmp_path.rglob("*.png")) == before


@pytest.mark.parametrize("is_struct", [True, False])
def test_pictures_in_a_parquet_are_read(index: Index, tmp_path: Path, is_struct: bool) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plain("green").save(tmp_path / "green.png")
    red, broken = of_colour("red"), b"broken"
    images: list[object] = [red, broken]
    if is_struct:
        images = [
            {"bytes": red, "path": "x.png"},
            {"bytes": broken, "path": None},
            {"bytes": None, "path": "green.png"},
        ]
    columns = {"image": images, "file_name": ["a", "b", "c"][: len(images)], "text": ["red", "broken", "green"]}
    columns["text"] = columns["text"][: len(images)]
    parquet.write_table(pyarrow.table(columns), tmp_path / "pairs.parquet")
    prepared = index.prepare_pairs(tmp_path / "pairs.parquet", into=tmp_path / "prepared")
    assert sorted(pair.caption for pair in prepared.pairs) == (["green", "red"] if is_struct else ["red"])
    assert len(prepared.left_out) == 1


def test_a_cut_version_stays_on_the_side_of_its_picture(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        blobs = Image.fromarray(random.integers(0, 255, (18, 24, 3), np.uint8))
        blobs.resize((480, 360), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
    Image.open(tmp_path / "a.png").crop((20, 10, 470, 350)).save(tmp_path / "version.png")
    pairs = table(tmp_path / "pairs.csv", [("a.png", "one"), ("b.png", "two"), ("version.png", "three")])
    with Index(tmp_path / "index", model="lite") as index:
        index.add_texts(["some text"])
        prepared = index.prepare_pairs(pairs, options=PrepareOptions(alike=0.9999))
    assert [tuple(Path(path).name for path in both) for both in prepared.alike] == [("a.png", "version.png")]


def test_where_no_row_can_be_used_the_first_reason_is_said(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('[{"path": "a.png", "caption": "a red square"}]\n')  # a whole list, as JSON and not JSON Lines
    with pytest.raises(TrainingError, match=r"can be used; the first: pairs\.jsonl, row 1: is not a JSON object\.$"):
        index.prepare_pairs(path)
