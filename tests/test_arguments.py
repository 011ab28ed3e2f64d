"""What is of the wrong type is refused in one sentence, whatever it is and wherever it is given."""

import array
import datetime
import decimal
import inspect
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmsearch
from mmsearch import Client, Index, IngestOptions, Query, load_encoder
from mmsearch.errors import QueryError, UsageError
from mmsearch.query import Term
from tests.colours import ColourEncoder, plain

RED = np.full((9, 9, 3), (200, 20, 20), np.uint8)


class Odd:
    """Has of everything a little, and nothing right."""

    name = 3
    dim = "x"

    def __fspath__(self) -> Any:
        return 3

    def __iter__(self) -> Any:
        return 3

    def __len__(self) -> int:
        return -1

    def read(self) -> Any:
        return 3


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "number": lambda: 3,
    "negative": lambda: -7,
    "huge": lambda: 10**400,
    "fraction": lambda: 2.5,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "complex": lambda: 1j,
    "decimal": lambda: decimal.Decimal("1.5"),
    "truth": lambda: True,
    "string": lambda: "red",
    "empty string": lambda: "",
    "long string": lambda: "y" * 5000,
    "nul": lambda: "a\0b",
    "surrogate": lambda: "\ud800",
    "bytes": lambda: b"\xff\xd8 no picture",
    "bytearray": lambda: bytearray(100_000),
    "memoryview": lambda: memoryview(b"abc"),
    "list of numbers": lambda: [1, 2],
    "list of strings": lambda: ["red", "blue"],
    "mixed list": lambda: ["a", 3, None],
    "nested list": lambda: [["a"]],
    "empty list": list,
    "set": lambda: {"a"},
    "dict": lambda: {"a": 1},
    "dict of numbers": lambda: {1: object()},
    "list of dicts": lambda: [{"a": object()}],
    "iterator": lambda: iter(["a", "b"]),
    "range": lambda: range(3),
    "object": object,
    "odd": Odd,
    "class": lambda: Odd,
    "type": lambda: str,
    "function": lambda: len,
    "module": lambda: np,
    "array": lambda: np.zeros((9, 9, 3)),
    "pixels": lambda: np.zeros((3000, 3000, 3), np.uint8),
    "batch": lambda: np.zeros((2, 9, 9, 3), np.uint8),
    "no dimensions": lambda: np.array("x"),
    "objects": lambda: np.array([object(), None]),
    "row": lambda: np.zeros(5, np.float32),
    "array.array": lambda: array.array("d", [1.0, 2.0]),
    "image": lambda: Image.new("RGB", (9, 9)),
    "no image": lambda: Image.new("RGB", (0, 0)),
    "text file": lambda: io.StringIO("abc"),
    "closed file": lambda: _closed(),
    "date": lambda: datetime.date(2020, 1, 2),
    "time": lambda: datetime.time(1, 2),
    "numpy integer": lambda: np.int64(3),
    "numpy string": lambda: np.str_("red"),
    "path": lambda: Path("no such file"),
    "query": lambda: Query.words("red"),
    "encoder": ColourEncoder,
    "ellipsis": lambda: ...,
}

# What makes a call whole, by the names of its arguments
RIGHT: dict[str, Any] = {
    "query": "red",
    "asked": "red",
    "text": "red",
    "texts": ["red"],
    "image": plain("red"),
    "images": [plain("red")],
    "shown": plain("red"),
    "labels": ["red", "blue"],
    "id": "a",
    "name": "a",
    "into": "nowhere",
    "folder": "nowhere",
    "pixels": np.zeros((1, 224, 224, 3), np.uint8),
    "features": np.zeros((1, 8), np.float32),
    "url": "http://127.0.0.1:9",
    "device": "cpu",
    "count": 1,
    "weight": 1.0,
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with Index(tmp_path_factory.mktemp("index") / "colours", encoder=ColourEncoder()) as index:
        index.add_images([plain("red"), plain("blue")], ids=["a", "b"])
        yield index


@pytest.fixture(scope="module")
def lite() -> Any:
    return load_encoder("lite")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _methods(kind: type) -> list[str]:
    found = [name for name, _ in inspect.getmembers(kind, inspect.isroutine) if not name.startswith("_")]
    return [name for name in found if name not in ("close", "vector", "open")]


@pytest.mark.parametrize("method", _methods(Index))
def test_no_method_of_an_index_fails_from_inside(index: Index, method: str) -> None:
    _refuses(getattr(index, method))


@pytest.mark.parametrize("method", _methods(Client))
def test_no_method_of_a_client_fails_from_inside(method: str) -> None:
    with Client("http://127.0.0.1:9") as client:
        _refuses(getattr(client, method))


@pytest.mark.parametrize("method", _methods(Query))
def test_no_method_of_a_query_fails_from_inside(method: str) -> None:
    _refuses(getattr(Query.words("red"), method))


OF_A_MODEL = ("encode_images", "encode_texts", "count_tokens", "image_features", "text_features", "project_images")


@pytest.mark.parametrize("method", [*OF_A_MODEL, "project_texts", "uses_gpu_for", "on"])
def test_no_method_of_the_built_in_model_fails_from_inside(lite: Any, method: str) -> None:
    _refuses(getattr(lite, method))


@pytest.mark.parametrize(
    "kind", [Index, Client, Query, Term, IngestOptions, load_encoder], ids=lambda kind: kind.__name__
)
def test_nothing_is_made_of_what_is_wrong(kind: Callable[..., Any]) -> None:
    _refuses(kind)


def _refuses(function: Callable[..., Any]) -> None:
    """Whatever is given for one argument, the rest being right, works or is refused in a sentence."""
    parameters = inspect.signature(function).parameters
    needed = {
        name: RIGHT[name]
        for name, one in parameters.items()
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and name in RIGHT
    }
    failures: list[str] = []
    for parameter in parameters.values():
        for what, wrong in WRONG.items():
            if callable(wrong()) and callable(parameter.default):
                continue  # what it raises is its own affair
            if parameter.kind == parameter.VAR_POSITIONAL:
                args, kwargs = [wrong()], needed
            else:
                args, kwargs = [], needed | {parameter.name: wrong()}
            try:
                made = function(*args, **kwargs)
            except mmsearch.Error as error:
                said = str(error)
                if not 0 < len(said) < 300 or "\n" in said or "0x" in said:
                    failures.append(f"{parameter.name} = {what}: {len(said)} letters: {said[:200]}")
            except Exception as error:
                failures.append(f"{parameter.name} = {what}: {type(error).__name__}: {error}"[:300])
            else:
                if isinstance(made, Index | Client):
                    made.close()
    assert not failures, "\n".join(failures)


def test_what_is_as_good_as_the_right_type_is_taken(index: Index) -> None:
    hits = index.search("red", k=2)
    for k in (np.int64(2), np.uint8(2)):
        assert index.search("red", k=k) == hits
    assert index.search("red", k=2, min_score=np.float32(-1)) == hits
    day = datetime.date(2023, 7, 14)
    for after in (day, datetime.datetime(2023, 7, 14, 3), np.datetime64("2023-07-14")):
        assert index.search("red", after=after) == index.search("red", after="2023-07-14")
    assert index.search("red", near=[48, np.float64(2), 3]) == index.search("red", near=(48.0, 2.0, 3.0))
    assert index.search("red", where={"n": np.int64(3)}) == index.search("red", where={"n": 3})
    assert index.search("red", under=iter([Path("/x")])) == index.search("red", under="/x")
    assert index.add_texts((text for text in ("x", "y")), ids=iter(("t1", "t2"))) == ["t1", "t2"]
    assert index.remove(ids={"t1", "t2"}) == 2


def test_pixels_are_a_picture_in_whatever_they_come(index: Index, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, "PNG")
    data = buffer.getvalue()
    (tmp_path / "red.png").write_bytes(data)
    expected = index.encode(Image.fromarray(RED))
    for picture in (RED, data, bytearray(data), memoryview(data), io.BytesIO(data), Path("red.png"), "red.png"):
        np.testing.assert_array_equal(index.encode(picture), expected)
    np.testing.assert_array_equal(index.encode(RED[:, :, 0]), index.encode(Image.fromarray(RED[:, :, 0])))
    names = index.add_images(np.stack([RED, RED]))
    assert index.remove(ids=names) == 2


def test_nothing_is_taken_apart_in_letters(index: Index, lite: Any) -> None:
    for refused in (
        lambda: index.add_texts("ab"),
        lambda: index.add_images([RED, RED], captions="ab"),
        lambda: index.add_images([RED, RED], ids="cd"),
        lambda: index.classify(RED, "ab"),
        lambda: index.remove(ids="ab"),
        lambda: index.add_feedback("red", like="ab"),
        lambda: lite.encode_texts("cat"),
        lambda: lite.encode_texts(b"cat"),
        lambda: IngestOptions(exclude="*.gif"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match="is a list of"):
            refused()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("shape", [(9, 9, 3, 1), (9,), (9, 9, 2), (0, 9, 3)])
def test_an_array_that_is_no_picture_is_said_to_be_none(index: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="array has the shape"):
        index.search(np.zeros(shape, np.uint8))
    with pytest.raises(UsageError, match="type uint8"):
        index.search(np.zeros((9, 9, 3)))


def test_a_vector_that_is_none_is_refused(index: Index) -> None:
    for vector in ("x", [["a"]], np.zeros((2, 2)), []):
        with pytest.raises(UsageError, match="row of numbers"):
            Query((Term(1.0, vector=vector),))  # type: ignore[arg-type]
    with pytest.raises(QueryError):
        index.search(Query((Term(1.0, vector=np.ones(77, np.float32)),)))


def _closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file
