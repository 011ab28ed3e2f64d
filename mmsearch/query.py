"""'beach + ./dog.jpg - people' -> a parsed query -> one unit vector.

The grammar is small, so that whatever a person types or pastes means something and nothing is a syntax error: terms
are parted by a plus or a minus with white space on both sides, a term may open with a weight (`0.5*snow`), and a term
in double quotes is words as they stand. A term that names a picture on this machine is that picture, whatever is in
the name: of all that could be read as a path, from the beginning of a term on, the longest that is there is taken, so
that "cat - Copy.jpg" is a file before it is a cat without Copy.jpg. Who means the latter writes "./" before each
picture, and double quotes around words. Words that come from a stranger are read with `Query.words`, which opens no
file.
"""

import math
import os
import re
import stat
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np

from mmsearch import arguments
from mmsearch.errors import QueryError, UsageError, in_a_line
from mmsearch.facts import IMAGE_SUFFIXES, Decoded
from mmsearch.store.records import FloatArray

if TYPE_CHECKING:
    from PIL import Image

# A path, the bytes of a file, a picture in memory, or one that was decoded for the encoder elsewhere
Picture: TypeAlias = "str | bytes | Image.Image | Decoded"
Asked: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | BinaryIO | Query"

MAX_LENGTH = 10_000  # characters; what goes beyond no tower reads
LONGEST_NAME = 255  # letters of a file's name, on every file system in use

# "More like this" refines words by pictures, whose cosines with each other spread two to three times as wide as those
# with words; at half the weight the words still count. Less is less, as in Rocchio 1971: it says what is not meant.
LIKE_WEIGHT, UNLIKE_WEIGHT = 0.5, -0.25
_OPERATOR = re.compile(r"(?:(?<=\s)|^)[+-](?=\s)")
_END_OF_WORDS = re.compile(rf'"[^"]*"|({_OPERATOR.pattern})')
LONGEST_WEIGHT = 100  # letters, with the blanks around it and the beginning of a path
_WEIGHT = re.compile(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})\s*\*\s*(?=\S)")


@dataclass(frozen=True)
class Term:
    """One part of a query, with a signed weight: words, a picture, an item of the index by its id, or a vector."""

    weight: float
    words: str | None = None
    picture: "Picture | None" = None
    item: str | None = None
    vector: FloatArray | None = None  # (dim,)

    def __post_init__(self) -> None:
        """Raises UsageError for what is no weight, and unless it is one thing."""
        object.__setattr__(self, "weight", arguments.number("weight", self.weight))
        given = [name for name in ("words", "picture", "item", "vector") if getattr(self, name) is not None]
        if len(given) != 1 or not math.isfinite(self.weight):
            raise UsageError("A term has a weight, and one of words, picture, item and vector.")
        if self.vector is not None:
            object.__setattr__(self, "vector", _numbers(self.vector))
        elif self.picture is not None:
            object.__setattr__(self, "picture", picture(self.picture))
        else:
            arguments.text(given[0], getattr(self, given[0]))


@dataclass(frozen=True)
class Query:
    """What is looked for: a sum of terms."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Raises UsageError unless it is of terms."""
        terms = arguments.several("terms", self.terms, "Terms")
        if wrong := [term for term in terms if not isinstance(term, Term)]:
            raise UsageError(f"A query is a sum of Terms; one of them is {arguments.shown(wrong[0])}.")
        object.__setattr__(self, "terms", tuple(terms))

    @classmethod
    @arguments.checked(text=arguments.text)
    def words(cls, text: str) -> "Query":
        """A query of one term: the text as it stands, whatever is in it."""
        return cls((Term(1.0, words=_bounded(text)),))

    @classmethod
    @arguments.checked(text=arguments.text, opens_files=arguments.truth)
    def parse(cls, text: str, *, opens_files: bool = True) -> "Query":
        """Read the grammar of this module. Raises QueryError for a picture that is not there, and for no terms.

        opens_files: whether a term may name a picture on this machine; not for what a stranger typed.
        """
        text = _bounded(text)
        ends = [*(found.start() for found in _OPERATOR.finditer(text)), len(text)]
        with_suffix = [end for end in ends if _has_suffix(text[:end].rstrip())]
        terms, sign, start = [], 1.0, 0
        while start < len(text):
            found = _longest_path(text, start, ends, with_suffix) if opens_files else None
            if found is not None:
                factor, path, end = found
                terms.append(Term(sign * factor, picture=path))
            else:
                operators = (found.start() for found in _END_OF_WORDS.finditer(text, start) if found.group(1))
                end = next(operators, len(text))
                if part := text[start:end].strip():
                    terms.append(_words(part, sign))
            sign, start = (-1.0 if text[end : end + 1] == "-" else 1.0), end + 1
        if not terms:
            raise QueryError("The query is empty. Say what to look for in words, or name a picture.")
        return cls(tuple(terms))

    @classmethod
    def of(cls, asked: Asked) -> "Query":
        """A query from whatever a library user hands over: words, a path, a picture, a query."""
        if isinstance(asked, Query):
            return asked
        if isinstance(asked, str):
            return cls.parse(asked)
        return cls.of_picture(picture(asked))

    @classmethod
    def of_picture(cls, shown: Picture) -> "Query":
        """A query of one picture."""
        return cls((Term(1.0, picture=picture(shown)),))

    @classmethod
    @arguments.checked(name=arguments.text)
    def of_item(cls, name: str) -> "Query":
        """A query of one item, by its id."""
        return cls((Term(1.0, item=name),))

    @arguments.checked(like=arguments.texts, unlike=arguments.texts)
    def refined(self, *, like: Sequence[str] = (), unlike: Sequence[str] = ()) -> "Query":
        """The query drawn towards some items, and away from others, by their ids."""
        more = [Term(LIKE_WEIGHT, item=name) for name in like]
        return Query((*self.terms, *more, *(Term(UNLIKE_WEIGHT, item=name) for name in unlike)))

    @property
    def text(self) -> str:
        """The wanted words alone, for keyword search."""
        return " ".join(term.words for term in self.terms if term.words and term.weight > 0)

    @property
    def pictures(self) -> list[Picture]:
        """The pictures among the terms."""
        return [term.picture for term in self.terms if term.picture is not None]

    @property
    def items(self) -> list[str]:
        """The ids of the items among the terms."""
        return [term.item for term in self.terms if term.item is not None]

    def vector(
        self,
        encode_texts: Callable[[Sequence[str]], FloatArray],
        encode_pictures: Callable[[Sequence[Picture]], FloatArray],
        look_up_items: Callable[[Sequence[str]], FloatArray],
    ) -> FloatArray:
        """(dim,) float32 of length 1: the weighted sum of the terms' unit vectors.

        As in word2vec's analogies (Mikolov et al. 2013). Raises QueryError where the terms cancel each other out.
        """
        words = [term for term in self.terms if term.words is not None]
        shown = [term for term in self.terms if term.picture is not None]
        known = [term for term in self.terms if term.item is not None]
        given = [term for term in self.terms if term.vector is not None]
        rows = []
        if words:
            rows.append(encode_texts([term.words or "" for term in words]))
        if shown:
            rows.append(encode_pictures(self.pictures))
        if known:
            rows.append(look_up_items(self.items))
        if given:
            rows.append(np.stack([_unit(term.vector) for term in given if term.vector is not None]))
        if not rows:
            raise QueryError("The query is empty. Say what to look for in words, or name a picture.")
        if len({array.shape[1] for array in rows}) > 1:
            raise QueryError("A vector of the query has not as many numbers as those of the index. Use its own model.")
        weights = np.array([term.weight for term in (*words, *shown, *known, *given)], np.float32)
        total = weights @ np.concatenate(rows)  # (dim,)
        length = float(np.linalg.norm(total))
        if not length > 1e-6:
            raise QueryError("The terms of the query cancel each other out. Change a weight or leave one out.")
        return (total / length).astype(np.float32)


def _unit(vector: FloatArray) -> FloatArray:
    length = float(np.linalg.norm(np.asarray(vector, np.float64)))
    if not (length > 1e-6 and np.isfinite(length)):
        raise QueryError("A vector of the query has no direction: it is zero, or has numbers that are not finite.")
    return (vector / length).astype(np.float32)


def _numbers(vector: Any) -> FloatArray:
    try:
        numbers = np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty((0, 0), np.float32)
    if numbers.ndim != 1 or not len(numbers):
        raise UsageError(f"A vector is a row of numbers, not {arguments.shown(vector)}.")
    return numbers


def picture(asked: Any) -> Picture:
    """A path, bytes, an open file or a picture in memory, as the picture of a query. Raises UsageError.

    An array is one of (height, width, 3) or (height, width) uint8, or with a fourth channel that says what is opaque.
    """
    if isinstance(asked, bytes | Decoded) or _is_image(asked):
        return asked
    if isinstance(asked, bytearray | memoryview):
        return bytes(asked)
    if isinstance(asked, np.ndarray):
        return arguments.image("a picture", asked)  # type: ignore[no-any-return]
    if isinstance(asked, str | os.PathLike) and not isinstance(asked, type):
        return arguments.path("the path of a picture", asked)
    if hasattr(asked, "read") and not isinstance(asked, type):
        return _content(asked)
    raise UsageError(
        "A picture is a path, the bytes of a file, an open file, a PIL image or an array of uint8, not "
        f"{arguments.shown(asked)}."
    )


def each_picture(images: Any) -> "Iterator[Picture]":
    """The pictures of a list or an iterator, one by one. Raises UsageError."""
    if isinstance(images, np.ndarray) and images.ndim not in (1, 4):  # one picture, and no list
        raise UsageError("images is a list of pictures; for one array, give [array].")
    return (picture(one) for one in arguments.each("images", images, "pictures"))


def _content(file: Any) -> bytes:
    try:
        content = file.read()
    except OSError as error:
        raise QueryError(f"A picture cannot be read from a file: {error.strerror or error}.") from error
    except (TypeError, ValueError) as error:  # no such method; a text file that holds a picture; a closed one
        raise UsageError(f"A picture cannot be read from {arguments.shown(file)}: {in_a_line(error)}.") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UsageError('A file with a picture is opened for bytes: open(path, "rb").')
    return bytes(content)


def _is_image(asked: Any) -> "TypeGuard[Image.Image]":
    pillow = sys.modules.get("PIL.Image")  # imported by whoever made such a picture
    return pillow is not None and isinstance(asked, pillow.Image)


def _bounded(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise QueryError(f"The query has {len(text)} characters; {MAX_LENGTH} are the most. Shorten it.")
    return text


def _words(part: str, sign: float) -> Term:
    factor, rest = _weighed(part)
    if len(rest) >= 2 and rest[0] == rest[-1] == '"':
        rest = rest[1:-1]
    return Term(sign * factor, words=rest)


def _weighed(part: str) -> tuple[float, str]:
    """The weight that a term opens with, and the rest."""
    weight = _WEIGHT.match(part)
    return (float(weight.group(1)), part[weight.end() :]) if weight else (1.0, part)


def _longest_path(
    text: str, start: int, ends: Sequence[int], with_suffix: Sequence[int]
) -> tuple[float, str, int] | None:
    """The longest path of a picture that is there and begins where a term does: its weight, itself, and its end.

    ends: where terms may end. with_suffix: those behind a picture's suffix; what is not written as a path ends there.
    Raises QueryError for what can only be the path of a picture that is not there, and for that of a folder.
    """
    longest: tuple[float, str, int] | None = None
    folder: str | None = None
    missing: str | None = None
    written_as_path = any(_is_written_as_path(name + "x") for _, name in _readings(text[start:][:LONGEST_WEIGHT]))
    if not written_as_path:
        ends = with_suffix
    for end in ends[bisect_left(ends, start) :]:
        written = text[start:end]
        if start > 0:
            written = written[1:]  # the blank behind an operator
        if end < len(text):
            written = written[:-1]  # and that before the next
        for weight, name in _readings(written):
            if (path := _picture_path(name)) is not None:
                longest = weight, path, end
                break
            if folder is None and _is_folder(name):
                folder = name
            elif missing is None and _is_missing(name):
                missing = name
        if end < len(text) and not any(_may_go_on(name) for _, name in _readings(written)):
            break
    if longest is None and folder is not None and missing is None:
        raise QueryError(f"{folder} is a folder; name an image in it. Put it in double quotes to look for the words.")
    if longest is None and missing is not None:
        raise QueryError(f"{missing} is not there. Check the path; put it in double quotes to look for the words.")
    return longest


def _readings(written: str) -> list[tuple[float, str]]:
    """What a term may be as a path, with its weight: as it stands, without blanks around it, without its weight."""
    bare = dict.fromkeys((written, written.removesuffix("\n"), written.strip()))
    return [*((1.0, name) for name in bare), *(weighed for name in bare if (weighed := _weighed(name))[1] != name)]


def _is_folder(name: str) -> bool:
    """Whether a name is written as a path, and is that of a folder."""
    return "\0" not in name and _is_written_as_path(name) and os.path.isdir(os.path.expanduser(name))


def _is_missing(name: str) -> bool:
    """Whether a name that is not there can only have been meant as a picture's path."""
    last = _OPERATOR.split(name)[-1].strip()
    alone = last == name.strip() or not (_is_written_as_path(last) or _picture_path(last))
    return alone and _is_written_as_path(name) and _has_suffix(name)


def _picture_path(name: str) -> str | None:
    """The path, if a name is that of a picture: a file with a picture's suffix, or anything written as a path."""
    if "\0" in name or not (_has_suffix(name) or _is_written_as_path(name)):
        return None
    for path in dict.fromkeys((name, os.path.expanduser(name))):
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):  # what is no regular file is said when it is opened
                return str(Path(path))
        except (OSError, ValueError):  # not there; too long for a name
            continue
    return None


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_written_as_path(name: str) -> bool:
    return name.startswith(("./", "../", "/", "~/", ".\\", "..\\")) and not name.endswith("/")


def _may_go_on(beginning: str) -> bool:
    """Whether there can be a file whose path begins so: its folder is there, and its name is not too long."""
    folder, _, name = beginning.rpartition("/")
    if len(name) > LONGEST_NAME:
        return False
    return not folder or any(os.path.isdir(path + "/") for path in (folder, os.path.expanduser(folder)))
