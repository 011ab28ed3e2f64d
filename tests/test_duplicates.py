"""Pictures that are one picture are told from pictures that only look alike, however many there are."""

import io
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from mmsearch import Client, Index, Progress
from mmsearch.duplicates import EXACT_TO, SIDE, Group, likenesses, near_pairs, planes
from mmsearch.errors import UsageError
from tests.colours import ColourEncoder
from tests.conftest import Run
from tests.pictures import scene
from tests.served import Served, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make(folder)
    return folder


@pytest.fixture(scope="module", params=["embedded", "served"])
def index(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Index | Client]:
    with Index(tmp_path_factory.mktemp("index") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        if request.param == "embedded":
            yield index
        else:
            with serving(index) as served, Client(served.url) as client:
                yield client


def make(folder: Path) -> None:
    """A picture with versions of it, one with a copy, and others of the same colours."""
    whole = scene((640, 480), seed=1)
    (folder / "versions").mkdir()
    whole.save(folder / "versions" / "whole.png")
    whole.resize((200, 150)).save(folder / "versions" / "small.png")
    whole.save(folder / "versions" / "poor.jpg", quality=25)
    whole.convert("L").save(folder / "versions" / "grey.png")
    whole.crop((32, 24, 608, 456)).save(folder / "versions" / "cut.png")
    ImageEnhance.Brightness(whole).enhance(0.7).save(folder / "versions" / "dark.webp")
    (folder / "copies").mkdir()
    scene((320, 240), seed=2).save(folder / "copies" / "one.png")
    shutil.copy(folder / "copies" / "one.png", folder / "copies" / "other.png")
    for seed in range(3, 9):
        scene((320, 240), seed=seed).save(folder / f"{seed}.png")
    for name in ("tone", "tone again"):
        Image.new("RGB", (64, 48), (90, 90, 91 if name == "tone" else 90)).save(folder / f"{name}.png")


def names(groups: list[Group]) -> list[list[str]]:
    return [[Path(copy.path or copy.id).name for copy in group.copies] for group in groups]


def test_versions_are_one_group_and_the_largest_is_first(index: Index | Client) -> None:
    versions, copies = index.duplicates(threshold=0.85)
    assert names([versions])[0][0] == "whole.png"
    assert set(names([versions])[0]) == {"whole.png", "small.png", "poor.jpg", "cut.png"}  # to it others are far
    assert all(0.85 <= copy.likeness <= 1 and not copy.is_exact for copy in versions.copies[1:])
    assert names([copies]) == [["one.png", "other.png"]]
    assert copies.copies[1].is_exact and copies.copies[1].likeness == 1
    assert copies.spare_bytes == copies.copies[1].size_bytes and versions.spare_bytes > copies.spare_bytes


def test_at_1_only_copies_to_the_byte_are_given_and_only_their_files_are_read(index: Index | Client) -> None:
    told: list[Progress] = []
    assert names(index.duplicates(threshold=1, progress=told.append)) == [["one.png", "other.png"]]
    assert all(progress.total in (0, 2) for progress in told)


def test_only_what_lies_below_a_folder(index: Index | Client, folder: Path) -> None:
    assert names(index.duplicates(under=folder / "copies")) == [["one.png", "other.png"]]
    assert index.duplicates(under=folder / "3.png") == []


def test_a_threshold_is_above_0_and_not_above_1(index: Index | Client) -> None:
    for wrong in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(UsageError, match="threshold"):
            index.duplicates(threshold=wrong)


def test_what_is_gone_is_left_out_and_progress_tells(tmp_path: Path) -> None:
    make(tmp_path)
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path)
        copy = Image.open(tmp_path / "copies" / "one.png")
        index.add_images([copy, copy], ids=["from memory", "again"])
        (tmp_path / "versions" / "small.png").unlink()
        told = []
        groups = index.duplicates(threshold=0.85, progress=told.append)
        assert not any("small.png" in group for group in names(groups)) and ["again", "from memory"] in map(
            sorted, names(groups)
        )
        assert told[-1].done == told[-1].total > 0 and told[-1].skipped == 1

        def stop(progress: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            index.duplicates(progress=stop)


def test_pages_of_text_in_one_layout_are_different_pictures() -> None:
    rng = np.random.default_rng(0)
    lines = np.arange(64) % 4 < 2
    pages = np.where(lines[:, None] & (rng.random((2, 64, 64)) < 0.5), 60, 250).astype(np.uint8)
    pages[:, :, :8] = pages[:, :8] = 250
    one, other = (planes(np.repeat(page[:, :, None], 3, axis=2)) for page in pages)
    assert likenesses(one, other[None])[0] < 0.8
    assert likenesses(one, one[None])[0] > 0.99


def small(image: Image.Image) -> Any:
    """A picture as it is compared."""
    return planes(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)))


def likeness(one: Image.Image, other: Image.Image) -> float:
    return float(likenesses(small(one), small(other)[None])[0])


def card(pips: int, colour: str = "black", sign: str = "square") -> Image.Image:
    """A playing card: a frame, its corners, and pips."""
    image = Image.new("RGB", (240, 320), "ivory")
    draw = ImageDraw.Draw(image)
    for inset in (4, 14):
        draw.rectangle((inset, inset, 239 - inset, 319 - inset), outline="firebrick", width=3)
    for x, y in ((30, 34), (210, 286)):
        draw.rectangle((x - 10, y - 12, x + 10, y + 12), fill=colour)
    for place in range(pips):
        x, y = 80 + 80 * (place % 2), 70 + 60 * (place // 2)
        (draw.ellipse if sign == "disc" else draw.rectangle)((x - 16, y - 16, x + 16, y + 16), fill=colour)
    return image


def clock(hour: float) -> Image.Image:
    """A clock face with two hands."""
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 290, 290), outline="navy", width=14)
    for angle in range(12):
        at = [150 + r * f(angle * math.pi / 6) for r in (110, 128) for f in (math.sin, math.cos)]
        draw.line(at, fill="navy", width=6)
    for turn, length in ((hour / 12, 65), (hour % 1, 100)):
        angle = 2 * math.pi * turn
        draw.line((150, 150, 150 + length * math.sin(angle), 150 - length * math.cos(angle)), fill="navy", width=9)
    return image


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (card(9), card(8)),
        (card(8), card(7)),
        (card(6, sign="disc"), card(8, sign="disc")),
        (card(4, "firebrick"), card(5, "black")),
        (clock(7), clock(12)),
        (clock(3.25), clock(9.25)),
        (clock(6), clock(5)),
    ],
)
def test_drawings_that_differ_in_a_sign_are_different_pictures(one: Image.Image, other: Image.Image) -> None:
    assert likeness(one, other) < 0.9
    assert likeness(other, one) < 0.9


@pytest.mark.parametrize("drawn", [card(8), card(5, "firebrick"), clock(7)])
def test_versions_of_a_drawing_are_one_picture(drawn: Image.Image) -> None:
    jpeg = io.BytesIO()
    drawn.save(jpeg, "JPEG", quality=30)
    hue, saturation, value = drawn.convert("HSV").split()
    versions = [
        drawn.resize((drawn.width * 2 // 5, drawn.height * 2 // 5)),
        Image.open(jpeg),
        drawn.convert("L"),
        Image.merge("HSV", (hue.point(lambda level: (level + 85) % 256), saturation, value)),
        ImageEnhance.Brightness(drawn).enhance(0.6),
        drawn.crop((0, 0, drawn.width * 9 // 10, drawn.height)),
        drawn.crop((drawn.width // 20, drawn.height // 20, drawn.width * 19 // 20, drawn.height * 19 // 20)),
    ]
    for version in versions:
        assert min(likeness(drawn, version), likeness(version, drawn)) >= 0.9


def test_neighbours_are_found_among_more_than_are_compared_one_by_one() -> None:
    rng = np.random.default_rng(1)
    count, copies = EXACT_TO + 1_000, 200
    vectors = rng.standard_normal((count, 32), np.float32)
    vectors[copies : 2 * copies] = vectors[:copies] + 0.05 * rng.standard_normal((copies, 32), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.monotonic()
    pairs = set(map(tuple, near_pairs(vectors, 0.95).tolist()))
    assert len(pairs & {(place, place + copies) for place in range(copies)}) >= 0.98 * copies
    assert len(pairs) < 2 * copies and time.monotonic() - started < 60


def test_the_server_looks_once_at_a_time_and_pages(folder: Path, tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        assert served.http.post("/api/duplicates", json={}).status_code == 404  # nothing is indexed yet
        assert served.http.get("/api/duplicates").json()["state"] == "idle"
        index.add(folder)
        assert served.http.post("/api/duplicates", json={"threshold": 0.85}).status_code == 202
        assert served.http.post("/api/duplicates", json={"threshold": 0.85}).status_code == 202
        first = finished(served)
        assert (first["number"], first["groups_total"], first["spare_total"]) == (1, 2, 4)
        one = served.http.get("/api/duplicates", params={"k": 1}).json()
        two = served.http.get("/api/duplicates", params={"k": 1, "cursor": one["cursor"]}).json()
        assert one["groups"] + two["groups"] == first["groups"] and two["cursor"] is None
        assert served.http.post("/api/duplicates", json={"threshold": 1}).status_code == 202
        finished(served)
        gone = served.http.get("/api/duplicates", params={"cursor": one["cursor"]})
        assert gone.status_code == 410 and gone.headers["content-type"] == "application/problem+json"
        for wrong in ({"threshold": 0}, {"threshold": 2}, {"under": ["x"] * 99}, {"other": 1}):
            assert served.http.post("/api/duplicates", json=wrong).status_code == 422


def finished(served: Served) -> dict[str, Any]:
    """The groups, once they are found."""
    while (said := served.http.get("/api/duplicates").json())["state"] == "running":
        time.sleep(0.05)
    return dict(said)


def test_the_command_prints_a_table_json_and_spare_paths(mmsearch: Run, tmp_path: Path) -> None:
    make(tmp_path)
    assert mmsearch("index", str(tmp_path), "--quiet", "--model", "lite").returncode == 0
    done = mmsearch("duplicates", "--quiet")
    assert done.returncode == 0 and "same bytes" in done.stdout and "spare images take" in done.stderr
    assert all(name in done.stdout for name in ("small.png", "poor.jpg", "grey.png", "cut.png", "dark.webp"))
    assert not any(f"{name}.png" in done.stdout for name in (*range(3, 9), "tone"))
    groups = json.loads(mmsearch("duplicates", "--json").stdout)
    known = {"id", "path", "width", "height", "size_bytes", "likeness", "is_exact", "frees_bytes"}
    assert set(groups[0]["copies"][0]) == known
    spare = mmsearch("duplicates", "--threshold", "1", "--paths", "-0")
    assert spare.stdout == str(tmp_path / "copies" / "other.png") + "\0"
    assert mmsearch("duplicates", "-0").returncode == 2
    none = mmsearch("duplicates", "--under", str(tmp_path / "nothing"))
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "Nothing found.\n")
