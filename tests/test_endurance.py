"""Small runs of the commands in benchmarks/endurance.py; docs/tested.md has the large ones."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.endurance import DISK_STEP, Content, disk, kills, sharing
from mmsearch import Index
from tests.indexes.make import GridEncoder

is_root = sys.platform == "linux" and os.geteuid() == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kills_lose_nothing(tmp_path: Path) -> None:
    rows = kills(tmp_path, 36, seed=1)
    assert len(rows) == 12
    assert [row for row in rows if row[-1] != "0 lost"] == []


@pytest.mark.slow
@pytest.mark.skipif(not is_root, reason="needs root, to mount small disks")
def test_full_disks_lose_nothing(tmp_path: Path) -> None:
    (row,) = disk(tmp_path, first=5 * DISK_STEP, step=9 * DISK_STEP)
    assert row[-1] == "0 lost"


@pytest.mark.slow
def test_writers_and_readers_share_an_index(tmp_path: Path) -> None:
    (row,) = sharing(tmp_path, minutes=0.2, writers=2, readers=3)
    assert row[-1] == "0 lost"


def test_a_lost_item_is_seen(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=GridEncoder()) as index:
        index.add_texts(["red", "green"], ids=["a", "b"])
        before = Content.of(tmp_path / "index")
        assert before.difference(before) is None
        index.remove(ids=["a"])
    assert "red" in str(before.difference(Content.of(tmp_path / "index")))
