"""'beach + ./dog.jpg - people' -> a parsed query -> one unit vector.

The grammar is small, so that whatever a person types or pastes means something and nothing is a syntax error: terms
are parted by a plus or a minus with white space on both sides, a term may open with a weight (`0.5*snow`), and a term
in double quotes is words as they stand. A term that names a picture on this machine is that picture; words that come
from a stranger are read with `Query.words`, which opens no file.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np

from mmsearch.errors import QueryError
from mmsearch.facts import IMAGE_SUFFIXES, Decoded
from mmsearch.store.records import FloatArray

if TYPE_CHECKING:
    from PIL import Image

# A path, the bytes of a file, a picture in memory, or one that was decoded for the encoder elsewhere
Picture: TypeAlias = "str | bytes | Image.Image | Decoded"
Asked: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | BinaryIO | Query"

MAX_LENGTH = 10_000  # characters; what goes beyond no tower reads

# "More like this" refines words by pictures, whose cosines with each other spread two to three times as wide as those
# with words; at half the weight the words still count. Less is less, as in Rocchio 1971: it says what is not meant.
LIKE_WEIGHT, UNLIKE_WEIGHT = 0.5, -0.25
_OPERATOR = re.compile(r'"[^"]*"|(?:(?<=\s)|^)([+-])(?=\s)')
_WEIGHT = re.compile(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})\s*\*\s*(?=\S)")


@dataclass(frozen=True)
class Term:
    """One part of a query, with a signed weight: words, a picture, an item of the index by its id, or a vector."""

    weight: float
    words: str | None = None
    picture: "Picture | None" = None
    item: str | None = None
    vector: FloatArray | None = None  # (dim,)


@dataclass(frozen=True)
class Query:
    """What is looked for: a sum of terms."""

    terms: tuple[Term, ...]

    @classmethod
    def words(cls, text: str) -> "Query":
        """A query of one term: the text as it stands, whatever is in it."""
        return cls((Term(1.0, words=_bounded(text)),))

    @classmethod
    def parse(cls, text: str, *, opens_files: bool = True) -> "Query":
        """Read the grammar of this module. Raises QueryError for a picture that is not there, and for no terms.

        opens_files: whether a term may name a picture on this machine; not for what a stranger typed.
        """
        terms, sign, start = [], 1.0, 0
        text = _bounded(text)
        for operator in [*(found for found in _OPERATOR.finditer(text) if found.group(1)), None]:
            part = text[start : operator.start(1) if operator else None].strip()
            if part:
                terms.append(_term(part, sign, opens_files))
            if operator:
                sign, start = (-1.0 if operator.group(1) == "-" else 1.0), operator.end(1)
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
        return cls((Term(1.0, picture=shown),))

    @classmethod
    def of_item(cls, name: str) -> "Query":
        """A query of one item, by its id."""
        return cls((Term(1.0, item=name),))

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


def picture(asked: Any) -> Picture:
    """A path, bytes, an open file or a picture in memory, as the picture of a query."""
    if isinstance(asked, bytes | Decoded) or _is_image(asked):
        return asked
    if isinstance(asked, os.PathLike):
        path: str | bytes = os.fspath(asked)
        return os.fsdecode(path)
    if isinstance(asked, io.IOBase) or hasattr(asked, "read"):
        return bytes(asked.read())
    return str(asked)


def _is_image(asked: Any) -> "TypeGuard[Image.Image]":
    pillow = sys.modules.get("PIL.Image")  # imported by whoever made such a picture
    return pillow is not None and isinstance(asked, pillow.Image)


def _bounded(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise QueryError(f"The query has {len(text)} characters; {MAX_LENGTH} are the most. Shorten it.")
    return text


def _term(part: str, sign: float, opens_files: bool) -> Term:
    weight = _WEIGHT.match(part)
    factor = float(weight.group(1)) if weight else 1.0
    rest = part[weight.end() :] if weight else part
    if len(rest) >= 2 and rest[0] == rest[-1] == '"':
        return Term(sign * factor, words=rest[1:-1])
    found = _picture_path(rest) if opens_files else None
    return Term(sign * factor, picture=found) if found else Term(sign * factor, words=rest)


def _picture_path(term: str) -> str | None:
    """The path, if a term names a picture: a file with a picture's suffix, or anything written as a path."""
    if "\0" in term:
        return None
    path = Path(os.path.expanduser(term))
    written_as_path = term.startswith(("./", "../", "/", "~/", ".\\", "..\\")) and not term.endswith("/")
    suffixed = path.suffix.lower() in IMAGE_SUFFIXES
    try:
        is_file = (suffixed or written_as_path) and path.is_file()
    except OSError:  # too long for a name, say
        return None
    if is_file:
        return str(path)
    if written_as_path and suffixed:
        raise QueryError(f"{term} is not there. Check the path; put it in double quotes to look for the words.")
    return None
