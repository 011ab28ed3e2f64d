"""Ranks, recall and how sure it is, against small tables that are worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmsearch.evaluate import best_ranks, recall_at_k, recall_interval

SCORES = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.1], [0.4, 0.4, 0.4]], dtype=np.float32)
RIGHT = np.array([[True, False, False], [True, False, True], [False, True, False]])


def test_the_best_right_answer_counts_and_ties_count_against_it() -> None:
    assert best_ranks(SCORES, RIGHT).tolist() == [1, 2, 3]


def test_recall_is_the_share_of_queries_answered_so_far() -> None:
    ranks = best_ranks(SCORES, RIGHT)
    assert [recall_at_k(ranks, k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1]


def test_a_query_that_nothing_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="right answer"):
        best_ranks(SCORES, np.zeros_like(RIGHT))
    with pytest.raises(ValueError, match="no query"):
        recall_at_k(np.array([], dtype=np.int64), 1)


@given(arrays(np.float32, (4, 6), elements=st.floats(-1, 1, width=32)), st.integers(0, 5))
def test_a_right_answer_put_first_has_rank_one(scores: np.ndarray, place: int) -> None:
    right = np.zeros((4, 6), dtype=bool)
    right[:, place] = True
    scores[:, place] = 2
    assert (best_ranks(scores, right) == 1).all()
    scores[:, place] = -2
    assert (best_ranks(scores, right) == 6).all()


def test_an_interval_holds_its_value_and_narrows_with_more_queries() -> None:
    few, many = (np.tile(np.array([1, 5, 20], dtype=np.int64), n) for n in (10, 1000))
    wide, narrow = recall_interval(few, 10), recall_interval(many, 10)
    assert wide.value == pytest.approx(2 / 3)
    assert wide.low < wide.value < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5
    assert str(recall_interval(np.array([1, 1], dtype=np.int64), 1)) == "1.000 (1.000–1.000)"
