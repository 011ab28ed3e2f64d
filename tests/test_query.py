"""What a person may type, and what it means."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.errors import QueryError
from mmsearch.query import MAX_LENGTH, Query, Term
from mmsearch.search import match_expression
from mmsearch.store.schema import migrate
from tests.colours import ColourEncoder, plain


def test_terms_are_added_and_taken_away() -> None:
    assert Query.parse("beach + sunset - people").terms == (
        Term(1.0, words="beach"),
        Term(1.0, words="sunset"),
        Term(-1.0, words="people"),
    )


def test_a_term_may_have_a_weight() -> None:
    assert Query.parse("0.5*snow + 2 * red bicycle").terms == (Term(0.5, words="snow"), Term(2.0, words="red bicycle"))


@pytest.mark.parametrize(
    "text", ["t-shirt", "2019-07-14", "C++ code", "rock'n'roll", "a -b", "5 *", "NOT (cat OR dog)", "🐕", "*", "+"]
)
def test_what_only_looks_like_an_operator_is_words(text: str) -> None:
    assert [term.words for term in Query.parse(text).terms] == [text]


def test_double_quotes_keep_words_as_they_stand() -> None:
    assert Query.parse('"rock + roll" - "0.5*x"').terms == (Term(1.0, words="rock + roll"), Term(-1.0, words="0.5*x"))


def test_a_term_that_names_a_picture_is_that_picture(home: Path) -> None:
    plain("red").save("dog.png")
    for text in ("beach + ./dog.png", "beach + dog.png"):
        assert Query.parse(text).terms == (Term(1.0, words="beach"), Term(1.0, picture="dog.png"))


def test_a_word_that_is_also_a_folder_is_a_word(home: Path) -> None:
    Path("dog").mkdir()
    assert Query.parse("dog").terms == (Term(1.0, words="dog"),)


def test_a_picture_that_is_not_there_is_said_by_name() -> None:
    with pytest.raises(QueryError, match=r"\./no such dog\.jpg is not there"):
        Query.parse("beach + ./no such dog.jpg")


def test_words_from_a_stranger_open_no_file(home: Path) -> None:
    plain("red").save("dog.png")
    assert Query.words("./dog.png - people").terms == (Term(1.0, words="./dog.png - people"),)


def test_an_empty_query_is_refused() -> None:
    for text in ("", "   "):
        with pytest.raises(QueryError, match="empty"):
            Query.parse(text)


def test_terms_that_cancel_each_other_out_are_refused() -> None:
    with pytest.raises(QueryError, match="cancel"):
        _vector(Query.parse("red - red"))


def test_the_vector_leans_towards_what_is_added_and_away_from_what_is_taken_away() -> None:
    encoder = ColourEncoder()
    yellow, green = encoder.encode_texts(["yellow", "green"])
    both, without = _vector(Query.parse("yellow + green")), _vector(Query.parse("yellow - green"))
    assert both @ green > yellow @ green > without @ green
    assert np.linalg.norm(both) == pytest.approx(1.0, abs=1e-6)


@given(st.text(max_size=300))
def test_no_text_is_a_syntax_error(text: str) -> None:
    try:
        query = Query.parse(text)
    except QueryError:
        return
    assert query.terms


def test_a_query_without_end_is_refused() -> None:
    with pytest.raises(QueryError, match="Shorten"):
        Query.parse("x" * (MAX_LENGTH + 1))


@given(
    st.text(max_size=200) | st.sampled_from(['"', 'a"b', "a AND", "NEAR(", "words:x", "-x", "^", "x*", "\0", "\udcff"])
)
def test_no_text_is_a_syntax_error_to_the_keyword_search(text: str) -> None:
    if match := match_expression(text):
        _KEYWORDS.execute("SELECT rowid FROM keywords WHERE keywords MATCH ?", (match,)).fetchall()


def _vector(query: Query) -> np.ndarray:
    encoder = ColourEncoder()
    return query.vector(encoder.encode_texts, lambda _: encoder.encode_images([]), lambda _: encoder.encode_texts([]))


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    migrate(connection)
    return connection


_KEYWORDS = _connect()
