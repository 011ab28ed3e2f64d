"""Promises that take minutes to check: how much memory large work takes. Run with --slow."""

from pathlib import Path

import pytest

from tests.benchmarks import bundle_memory, indexing
from tests.benchmarks.measure import run


@pytest.mark.slow
def test_making_the_bundle_of_vit_b_32_256_stays_below_4_gb(tmp_path: Path) -> None:
    (row,) = bundle_memory.rows(tmp_path, quick=True)
    assert 100 < row.values["peak_mb"] < 4_000


@pytest.mark.slow
def test_indexing_large_photographs_stays_below_1500_mb(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    indexing.draw(photos, (4000, 3000), 200)
    ran = run(["index", str(photos), "--model", "lite", "-i", str(tmp_path / "index")], watch_memory=True)
    assert "200 added" in ran.output
    assert 100 < ran.peak_mb < 1_500
