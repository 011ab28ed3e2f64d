"""The map: like lies near like, what people know stays where it was, and nothing is lost by deleting it."""

import io
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmsearch import Index, Map
from mmsearch import map as maps
from tests.colours import COLOURS, ColourEncoder, swatch

EACH = 12


def fill(folder: Path, names: list[str], start: int = 0) -> None:
    for name in names:
        for seed in range(start, start + EACH):
            swatch(name, seed).save(folder / f"{name}-{seed}.png")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in", list(COLOURS))
    index = Index(tmp_path / "index", encoder=ColourEncoder())
    index.add(tmp_path / "in")
    return index


def colours_of(index: Index, map_: Map) -> list[str]:
    return [Path(index.item(id).path or "").name.split("-")[0] for id in map_.ids]


def share_beside_their_own(map_: Map, groups: list[str]) -> float:
    """Of points whose nearest neighbour is of the same group."""
    away = np.linalg.norm(map_.points[:, None] - map_.points[None], axis=2)
    np.fill_diagonal(away, np.inf)
    return float(np.mean([groups[place] == groups[near] for place, near in enumerate(away.argmin(axis=1))]))


def test_like_lies_near_like_within_the_square(index: Index) -> None:
    map_ = index.map()
    assert len(map_) == EACH * len(COLOURS) == len(set(map_.ids)) and map_.is_current
    assert map_.points.dtype == np.float32 and map_.points.min() >= 0 and map_.points.max() <= 1
    assert share_beside_their_own(map_, colours_of(index, map_)) > 0.9


def test_what_is_added_finds_its_place_and_moves_nothing(index: Index, tmp_path: Path) -> None:
    before = index.map()
    fill(tmp_path / "in", ["red", "blue"], start=EACH)
    (tmp_path / "in" / "green-0.png").unlink()
    index.add(tmp_path / "in")
    kept = index.kept_map()
    assert kept is not None and not kept.is_current and kept.ids == before.ids
    after = index.map()
    assert len(after) == len(before) + 2 * EACH - 1 and after.is_current
    stayed = np.isin(before.items, after.items)
    assert np.array_equal(before.points[stayed], after.points[np.isin(after.items, before.items)])
    assert share_beside_their_own(after, colours_of(index, after)) > 0.9


def test_items_beyond_the_sample_lie_among_their_like(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "SAMPLE", 40)
    map_ = index.map()
    assert len(map_) == EACH * len(COLOURS)
    assert share_beside_their_own(map_, colours_of(index, map_)) > 0.8


def test_it_is_laid_out_anew_once_the_collection_has_doubled(index: Index, tmp_path: Path) -> None:
    before = index.map()
    for start in (EACH, 2 * EACH):
        fill(tmp_path / "in", list(COLOURS), start)
    index.add(tmp_path / "in")
    after = index.map()
    assert not np.array_equal(before.points, after.points[np.isin(after.items, before.items)])


def test_texts_lie_among_the_pictures_that_they_are_about_and_captions_have_no_point(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        colours = [name for name in COLOURS for _ in range(EACH)]
        captions = [f"{name} wall" for name in colours]
        index.add_images([swatch(name, seed) for seed, name in enumerate(colours)], captions=captions)
        index.add_texts([f"{name} is a colour" for name in COLOURS])
        map_ = index.map()
    assert len(map_) == len(colours) + len(COLOURS) and map_.is_text.sum() == len(COLOURS)
    texts, pictures = map_.points[map_.is_text], map_.points[~map_.is_text]
    nearest = np.linalg.norm(texts[:, None] - pictures[None], axis=2).min(axis=1)
    assert np.median(nearest) < 0.1  # no island of their own


@pytest.mark.parametrize("count", [1, 2, 7, 9])
def test_a_few_items_make_a_map_too(tmp_path: Path, count: int) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_images([swatch("red", seed) for seed in range(count)])
        map_ = index.map()
    assert len(map_) == count and len(np.unique(map_.points, axis=0)) == count


def test_an_empty_index_has_an_empty_map(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        (id,) = index.add_texts(["red"])
        index.remove(ids=[id])
        assert len(index.map()) == 0


def test_a_map_that_is_damaged_or_deleted_is_made_again(index: Index) -> None:
    first = index.map()
    path = index.folder / maps.FILE
    path.write_bytes(path.read_bytes()[:1000])
    assert index.kept_map() is None
    again = index.map()
    assert again.ids == first.ids and index.kept_map() is not None
    path.unlink()
    assert len(index.map()) == len(first)
    assert [entry.name for entry in index.folder.iterdir() if entry.name.startswith(maps.FILE)] == [maps.FILE]


def test_progress_grows_and_what_it_raises_ends_the_work(index: Index) -> None:
    class Enough(Exception):
        pass

    def take(share: float) -> None:
        if share > 0.1:
            raise Enough

    with pytest.raises(Enough):
        index.map(progress=take)
    assert index.kept_map() is None
    shares: list[float] = []
    index.map(progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10


def _kept_bytes(index: Index) -> bytes:
    return (index.folder / maps.FILE).read_bytes()


def assert_random_damage_is_no_map(index: Index, count: int, seed: int) -> None:
    first, draw = index.map(), random.Random(seed)
    data, path = _kept_bytes(index), index.folder / maps.FILE
    for _ in range(count):
        body = bytearray(data)
        for _ in range(draw.randrange(1, 12)):
            near_the_end = draw.random() < 0.4  # where the directory is
            body[draw.randrange(len(body) - 900 if near_the_end else 0, len(body))] ^= 1 << draw.randrange(8)
        at = draw.randrange(len(body))
        path.write_bytes(draw.choice([body, body[:at], body[:at] + bytes(len(body) - at), body[at:], body + body[:at]]))
        kept = index.kept_map()
        assert kept is None or (kept.items.tolist(), kept.points.tolist()) == (
            first.items.tolist(),
            first.points.tolist(),
        )


@pytest.mark.filterwarnings("error")
def test_random_damage_is_no_map(index: Index) -> None:
    assert_random_damage_is_no_map(index, 300, 1)
    assert len(index.map()) == EACH * len(COLOURS) and index.kept_map() is not None


@pytest.mark.slow
def test_a_thousand_damaged_maps_are_none(index: Index) -> None:
    assert_random_damage_is_no_map(index, 1_000, 2)


def _huge_shape(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            header = old.read(name)
            new.writestr(name, header.replace(b"(72,)", b"(9" + b"9" * 12 + b",)").replace(b" " * 11, b"", 1))
    return out.getvalue()


def _packed(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(200_000_000 if name == "rows.npy" else 0))
    return out.getvalue()


def _pickled(data: bytes) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{**_arrays(data), "items": np.array([print, 1], object)})
    return out.getvalue()


def _with(**wrong: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out, arrays = io.BytesIO(), _arrays(data)
        np.savez(out, **{**arrays, **{name: np.asarray(each) for name, each in wrong.items()}})
        return out.getvalue()

    return change


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as file:
        return dict(file)


@pytest.mark.parametrize(
    "change",
    [
        _huge_shape,
        _packed,
        _pickled,
        _with(rows=np.zeros(72, np.int64)),
        _with(points=np.full((72, 2), np.nan, np.float32)),
        _with(points=np.zeros((71, 2), np.float32)),
        _with(means=np.zeros((2, 5), np.float32)),
        _with(laid_out="many"),
        _with(is_text=np.zeros(72)),
        lambda data: b"",
        lambda data: b"PK\x05\x06" + bytes(18),
    ],
)
def test_what_is_no_map_of_ours_is_made_again_and_takes_no_memory(
    index: Index, change: Callable[[bytes], bytes]
) -> None:
    first = index.map()
    damaged = change(_kept_bytes(index))
    (index.folder / maps.FILE).write_bytes(damaged)
    tracemalloc.start()
    try:
        assert index.kept_map() is None
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    again = index.map()
    assert again.ids == first.ids and index.kept_map() is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_in_the_place_of_the_map_is_not_waited_for(index: Index) -> None:
    os.mkfifo(index.folder / maps.FILE)
    assert index.kept_map() is None and len(index.map()) == EACH * len(COLOURS)
    assert index.kept_map() is not None
