"""16 bits as 32, and scores that do not depend on their neighbours."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.store.halves import floats
from mmsearch.store.vectors import cosines


def test_every_finite_half_is_the_same_number() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    rows = np.resize(finite, (len(finite) // 62 + 1, 62))
    found = floats(rows)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), rows.astype(np.float32).view(np.int32))  # -0.0 stays -0.0


def test_rows_that_lie_apart_and_no_rows_at_all() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 20)).astype(np.float16)
    np.testing.assert_array_equal(floats(rows[::3, 4:9]), rows[::3, 4:9].astype(np.float32))
    assert floats(rows[:0]).shape == (0, 20)
    assert floats(np.empty((0, 0), np.float16)).shape == (0, 0)


@given(start=st.integers(0, 90), count=st.integers(1, 110), dim=st.sampled_from([1, 3, 32, 96, 384, 512, 513]))
def test_a_score_is_the_same_whatever_else_is_scored(start: int, count: int, dim: int) -> None:
    random = np.random.default_rng(dim)
    rows = random.standard_normal((200, dim)).astype(np.float16)
    query = random.standard_normal(dim).astype(np.float32)
    every = cosines(floats(rows), query)
    some = slice(start, start + count)
    np.testing.assert_array_equal(cosines(floats(rows[some]), query), every[some])
    np.testing.assert_array_equal(cosines(floats(rows)[some], query), every[some])  # wherever they lie in memory
    np.testing.assert_allclose(every, rows.astype(np.float64) @ query, rtol=0, atol=1e-4 * dim**0.5)
