"""Small runs of benchmarks/endurance.py; docs/tested.md has the figures of the large ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.endurance import Content
from mmsearch import Index
from tests.conftest import ROOT
from tests.indexes.make import GridEncoder

is_root = sys.platform == "linux" and os.geteuid() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("kills --count 24", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")),
        pytest.param("disk --step-kb 640", marks=pytest.mark.skipif(not is_root, reason="needs root, to mount disks")),
        "sharing --minutes 0.2",
    ],
)
def test_nothing_is_lost(arguments: str) -> None:
    command = [sys.executable, "-m", "benchmarks.endurance", *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost" in done.stdout


def test_a_lost_item_is_seen(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=GridEncoder()) as index:
        index.add_texts(["red", "green"], ids=["a", "b"])
        before = Content.of(tmp_path / "index")
        assert before.difference(before) is None
        index.remove(ids=["a"])
    assert "red" in str(before.difference(Content.of(tmp_path / "index")))
