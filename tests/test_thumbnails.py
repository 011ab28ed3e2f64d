"""Thumbnails are made once, bounded, and never worth worrying about."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsearch.decoding import Skip
from mmsearch.thumbnails import FILE, Thumbnail, Thumbnails
from tests.colours import plain, swatch


@pytest.fixture
def thumbnails(tmp_path: Path) -> Iterator[Thumbnails]:
    (tmp_path / "index").mkdir()
    thumbnails = Thumbnails(tmp_path / "index", max_bytes=6_000)
    yield thumbnails
    thumbnails.close()


def draw(path: Path, seed: int = 0) -> str:
    swatch("red", seed, (400, 300)).save(path)
    return str(path)


def made(thumbnails: Thumbnails, path: str) -> Thumbnail:
    thumbnail = thumbnails.get(path, 64)
    assert isinstance(thumbnail, Thumbnail)
    return thumbnail


def test_a_thumbnail_outlives_the_program_but_not_a_change_of_its_file(thumbnails: Thumbnails, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    first = made(thumbnails, path)
    thumbnails.close()
    again = Thumbnails(tmp_path / "index")
    assert again._kept(first.tag) == first.jpeg
    plain("blue", (50, 50)).save(path)
    changed = made(again, path)
    assert changed.tag != first.tag and changed.jpeg != first.jpeg
    again.close()


def test_what_was_not_looked_at_for_longest_makes_room(thumbnails: Thumbnails, tmp_path: Path) -> None:
    paths = [draw(tmp_path / f"{seed}.png", seed) for seed in range(14)]
    for path in paths:
        made(thumbnails, path)
    kept = [path for path in paths if thumbnails._kept(thumbnails.tag(path, 64) or "")]
    assert 0 < len(kept) < 14 and kept == paths[-len(kept) :]
    assert thumbnails._total_bytes <= 6_000


def test_a_damaged_file_is_made_anew(thumbnails: Thumbnails, tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png")
    (tmp_path / "index" / FILE).write_bytes(b"not a database" * 1000)
    assert made(thumbnails, path).jpeg == made(thumbnails, path).jpeg


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path / "not there")
    path = draw(tmp_path / "a.png")
    assert made(thumbnails, path).jpeg == made(thumbnails, path).jpeg
    assert not (tmp_path / "not there").exists()
    thumbnails.close()


def test_a_picture_that_cannot_be_read_has_a_reason(thumbnails: Thumbnails, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"")
    for path in (str(tmp_path / "broken.png"), str(tmp_path / "gone.png"), "a\0b", os.fspath(tmp_path)):
        assert isinstance(thumbnails.get(path, 64), Skip)
