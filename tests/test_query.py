"""What a person may type, and what it means."""

import contextlib
import sqlite3
import sys
import tempfile
import time
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


# What file names are made of that the grammar might take apart
_PIECES = st.sampled_from(
    (
        *" -+*\"'@:~\n\t\\#?=a\u00e9\udce9",
        " - ",
        " + ",
        "- ",
        "+ ",
        "0.5*",
        "2 * ",
        "~/",
        "./",
        "../",
        "dog.jpg",
        ".jpg - ",
    )
)
_SUFFIXES = st.sampled_from([".jpg", ".JPG", ".png", ".heic", ".tar.webp"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse most of these names")
@given(st.lists(_PIECES, min_size=1, max_size=8).map("".join), _SUFFIXES, st.sampled_from(["", "./", "sub - x/", "/"]))
def test_a_path_is_a_path_whatever_is_in_the_name(name: str, suffix: str, folder: str) -> None:
    name = name.replace("/", "_") + suffix
    with tempfile.TemporaryDirectory() as somewhere, contextlib.chdir(somewhere):
        folder = f"{somewhere}/" if folder == "/" else folder
        Path(folder or ".").mkdir(exist_ok=True)
        Path(folder + name).touch()
        alone = (Term(1.0, picture=str(Path(folder + name))),)
        assert Query.parse(folder + name).terms == alone
        if (folder + name) == (folder + name).strip():
            assert Query.parse(f"  {folder}{name} \n").terms == alone
        path = folder + name if folder else f"./{name}"
        assert Query.parse(f"{path} + snow").terms == (*alone, Term(1.0, words="snow"))
        assert Query.parse(f"snow - 0.5*{path}").terms == (
            Term(1.0, words="snow"),
            Term(-0.5, picture=alone[0].picture),
        )
        assert Query.parse(f"{path} - {path}").terms == (*alone, Term(-1.0, picture=alone[0].picture))
        assert not Query.words(folder + name).pictures
        assert not Query.parse(folder + name, opens_files=False).pictures


def test_blanks_at_the_ends_of_a_name_are_of_the_name(home: Path) -> None:
    for name in (" a.jpg", "./b.jpg ", "./c.jpg\n"):
        Path(name).touch()
        assert Query.parse(name).terms == (Term(1.0, picture=str(Path(name))),)
    Path("b.jpg").touch()
    assert Query.parse("./b.jpg + x").terms[0].picture == "b.jpg"


def test_the_longest_path_that_is_there_wins_and_each_reading_has_a_spelling(home: Path) -> None:
    for name in ("cat.jpg", "cat.jpg - dog.jpg", "dog.jpg", "0.5*dog.jpg"):
        Path(name).touch()
    assert Query.parse("cat.jpg - dog.jpg + snow").terms == (
        Term(1.0, picture="cat.jpg - dog.jpg"),
        Term(1.0, words="snow"),
    )
    both = (Term(1.0, picture="cat.jpg"), Term(-1.0, picture="dog.jpg"))
    assert Query.parse("./cat.jpg - ./dog.jpg").terms == both
    assert Query.parse('"cat.jpg - dog.jpg"').terms == (Term(1.0, words="cat.jpg - dog.jpg"),)
    assert Query.parse("0.5*dog.jpg").terms == (Term(1.0, picture="0.5*dog.jpg"),)
    assert Query.parse("0.5*./dog.jpg").terms == (Term(0.5, picture="dog.jpg"),)


def test_a_path_with_an_operator_in_it_that_is_not_there_is_said_by_name(home: Path) -> None:
    for text in ("./01 - January/a.jpg", "snow + ./01 - January/a.jpg"):
        with pytest.raises(QueryError, match=r"^\./01 - January/a\.jpg is not there"):
            Query.parse(text)


def test_many_operators_take_no_time(home: Path) -> None:
    for part in ("./a.b - ", "a + ", "/ - ", '" + '):
        started = time.monotonic()
        Query.parse((part * MAX_LENGTH)[:MAX_LENGTH])
        assert time.monotonic() - started < 3


def test_a_word_that_is_also_a_folder_is_a_word(home: Path) -> None:
    Path("dog").mkdir()
    assert Query.parse("dog").terms == (Term(1.0, words="dog"),)


@pytest.mark.parametrize("text", ["./dog", "./dog.jpg", "snow + ./dog", "0.5*./dog.jpg", "./dog - snow"])
def test_a_folder_written_as_a_path_is_said_to_be_a_folder(home: Path, text: str) -> None:
    Path("dog").mkdir()
    Path("dog.jpg").mkdir()
    with pytest.raises(QueryError, match=r"^\./dog(\.jpg)? is a folder; name an image in it\. Put it in double quotes"):
        Query.parse(text)


def test_an_image_whose_name_begins_like_that_of_a_folder_is_that_image(home: Path) -> None:
    Path("dog").mkdir()
    Path("dog - cat.jpg").touch()
    assert Query.parse("./dog - cat.jpg").terms == (Term(1.0, picture="dog - cat.jpg"),)
    with pytest.raises(QueryError, match=r"^\./dog - mat\.jpg is not there"):
        Query.parse("./dog - mat.jpg")


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
