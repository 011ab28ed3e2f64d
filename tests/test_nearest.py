"""Nearest rows, told by products of matrices, are those that one by one comparing finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch import nearest
from mmsearch.nearest import Neighbours, kmeans, nearest_centre, nearest_rows


@settings(max_examples=30)
@given(rows=st.integers(1, 70), centres=st.integers(1, 40), dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_nearest_centre_is_the_nearest(rows: int, centres: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = rng.standard_normal((rows, dim)).astype(np.float32)
    means = rng.standard_normal((centres, dim)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "PRODUCT", 7 * centres)  # several blocks, the last one shorter
        places, squared = nearest_centre(some, means)
    every = ((some[:, None].astype(np.float64) - means[None]) ** 2).sum(axis=2)
    assert every[np.arange(rows), places] == pytest.approx(every.min(axis=1), abs=1e-4)
    assert squared == pytest.approx(every.min(axis=1), abs=1e-4)


@settings(max_examples=30)
@given(queries=st.integers(0, 20), rows=st.integers(0, 40), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_nearest_rows_are_the_nearest(queries: int, rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = rng.integers(-2, 3, (queries, 3)).astype(np.float32)  # with many ties
    some = rng.integers(-2, 3, (rows, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "PRODUCT", 7 * max(1, rows))
        scores, places = nearest_rows(asked, some, count)
    every = asked @ some.T
    assert scores.tolist() == np.sort(every, axis=1)[:, ::-1][:, :count].tolist()
    assert np.take_along_axis(every, places, axis=1).tolist() == scores.tolist()
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_kmeans_finds_the_middles_of_clusters() -> None:
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((8, 16)).astype(np.float32) * 10
    rows = (middles[rng.integers(0, 8, 2_000)] + rng.standard_normal((2_000, 16))).astype(np.float32)
    centres = kmeans(rows, 64, 8)
    assert np.array_equal(centres, kmeans(rows, 64, 8)), "the same every time"
    _, squared = nearest_centre(rows, centres)
    assert squared.mean() < 16, "nearer than to the true middles, of which there are fewer"
    assert np.isfinite(centres).all()


def test_kmeans_leaves_no_cell_empty_where_rows_differ_and_does_with_rows_that_are_all_the_same() -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32), [1, 1, 1, 97], axis=0)
    rows += np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32) / 100
    assert set(nearest_centre(rows, kmeans(rows, 10, 20))[0]) == set(range(10))
    same = kmeans(np.ones((5, 3), np.float32), 9, 3)
    assert same.shape == (9, 3) and np.isfinite(same).all()


def test_neighbours_are_those_of_all_blocks_without_the_query_itself() -> None:
    rng = np.random.default_rng(0)
    rows, ids = rng.standard_normal((300, 8)).astype(np.float32), np.arange(300) * 2 + 1
    queries = rows[:5]
    near = Neighbours(queries, 10)
    for start in (0, 7, 150):
        end = {0: 7, 7: 150, 150: 300}[start]
        near.see(ids[start:end], rows[start:end])
    order = np.argsort(-(queries @ rows.T), axis=1, kind="stable")
    for own in (ids[:5], np.full(5, -1)):
        true = [[n for n in ids[places].tolist() if n != each][:10] for places, each in zip(order, own, strict=True)]
        assert near.but_for(own).tolist() == true
