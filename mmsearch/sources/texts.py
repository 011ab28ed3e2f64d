"""Text files: read whatever their encoding, and cut into passages of a size that the text tower can read."""

import codecs
import os
import re
import stat
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mmsearch.errors import SourceError
from mmsearch.sources.folders import reason

TEXT_BYTES_MAX = 64 << 20
# Characters. No tower reads more, and a tokenizer may take a letter without an end for one token, or take the square
# of its length for it.
PASSAGE_LENGTH_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text that the text tower can read; `text == whole[offset : offset + len(text)]`."""

    text: str
    line: int  # 1-based line on which it begins
    offset: int  # characters


def read_text(path: str) -> str:
    """The text of a file, line ends as \\n.

    UTF-8 (with or without a byte order mark), UTF-16 and UTF-32 with one, else Windows-1252. Raises SourceError, whose
    message is the reason alone, if the file is binary, larger than 64 MB, no ordinary file, or cannot be read.
    """
    text, is_whole = read_beginning(path)
    if not is_whole:
        raise SourceError(f"is larger than {TEXT_BYTES_MAX >> 20} MB")
    return text


def read_beginning(path: str) -> tuple[str, bool]:
    """The text of a file as `read_text` gives it, of its first 64 MB alone; and whether that is all of it."""
    # Without O_NONBLOCK, opening a FIFO would wait for somebody to write into it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SourceError("is not an ordinary file")
            data = file.read(TEXT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise SourceError(reason(error)) from error
    is_whole = len(data) <= TEXT_BYTES_MAX
    text = _decode(data if is_whole else data[:TEXT_BYTES_MAX], is_whole)
    if "\0" in text or len(_CONTROL.findall(text[:65536])) > 0.02 * min(len(text), 65536):
        raise SourceError("is not text")
    return text.replace("\r\n", "\n").replace("\r", "\n"), is_whole


_CONTROL = re.compile(r"[\x01-\x07\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")  # not tab, line ends, page breaks, escape
_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _decode(data: bytes, is_whole: bool) -> str:
    """is_whole: whether a character may not be cut off at the end."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return codecs.getincrementaldecoder(encoding)().decode(data, is_whole)
            except UnicodeDecodeError as error:
                raise SourceError("is not text") from error
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return codecs.getincrementaldecoder(encoding)().decode(data, is_whole)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")  # for the five bytes that Windows-1252 has no letter for


# Where a text may be cut: what ends a piece. Possessive, and begun where nothing of the same stands before, so that a
# megabyte of full stops costs no more than words.
_PARAGRAPH_END = re.compile(r"\n(?:[ \t\f\v\r]*+\n)++")
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”\u2019)\]]*+(?=\s)|[。\uff01\uff1f]++[\"'”\u2019)\]」』]*+")
_LINE_END = re.compile(r"\n")
_WORD_END = re.compile(r"\s++|[、\uff0c\uff1b\uff1a]++")  # the comma, semicolon and colon of Chinese
_INK = re.compile(r"\S")
_HEADING = re.compile(r"[ \t]*(?:#{1,6}[ \t]|(?:=+|-+)[ \t]*\Z)")  # Markdown's two kinds; stays with what follows


def passages(text: str, fits: Callable[[str], bool]) -> Iterator[Passage]:
    """A text in pieces that fit, as long as they can be: whole paragraphs, else sentences, lines, words, characters.

    fits: whether the text tower can read a piece whole; longer pieces are taken to fit less. It is asked a few times a
    passage, never about much more than fits. Nothing but white space between the passages is left out.
    """
    line, counted = 1, 0
    for start, end in _Cutter(text, fits).cut():
        line += text.count("\n", counted, start)
        counted = start
        yield Passage(text[start:end], line, start)


@dataclass(frozen=True)
class _Pieces:
    """Consecutive pieces of a text, with no white space at either end."""

    starts: Sequence[int]
    ends: Sequence[int]
    level: int  # index into _CUTS of what cut them


_CUTS = (_PARAGRAPH_END, _SENTENCE_END, _LINE_END, _WORD_END, None)


class _Cutter:
    def __init__(self, text: str, fits: Callable[[str], bool]) -> None:
        self._text = text
        self._fits = fits
        self._usual = 256  # characters that a passage has had of late; where the search for the next one's end begins

    def cut(self) -> Iterator[tuple[int, int]]:
        yield from self._pack(self._pieces(0, len(self._text), 0))

    def _pieces(self, start: int, end: int, level: int) -> _Pieces:
        pattern = _CUTS[level]
        if pattern is None:
            return _Pieces(range(start, end), range(start + 1, end + 1), level)
        starts, ends = array("q"), array("q")
        continues = False
        for cut in self._cuts(pattern, start, end):
            ink = _INK.search(self._text, start, cut)
            start = cut
            if ink is None:
                continue
            stop = self._stripped(ink.start(), cut)
            if continues:
                ends[-1] = stop
            else:
                starts.append(ink.start())
                ends.append(stop)
            continues = pattern is _PARAGRAPH_END and self._ends_with_heading(ink.start(), stop)
        return _Pieces(starts, ends, level)

    def _cuts(self, pattern: re.Pattern[str], start: int, end: int) -> Iterator[int]:
        for match in pattern.finditer(self._text, start, end):
            yield match.end()
        yield end

    def _ends_with_heading(self, start: int, end: int) -> bool:
        last_line = max(self._text.rfind("\n", start, end) + 1, start)
        return _HEADING.match(self._text, last_line, end) is not None

    def _pack(self, pieces: _Pieces) -> Iterator[tuple[int, int]]:
        first, count = 0, len(pieces.starts)
        while first < count:
            start = pieces.starts[first]
            after = self._longest(pieces, first)
            if after > first:
                end = pieces.ends[after - 1]
                self._usual = end - start
                yield start, end
                first = after
            elif pieces.level + 1 == len(_CUTS):
                yield start, pieces.ends[first]  # one character, and even that is too much
                first += 1
            else:
                yield from self._pack(self._pieces(start, pieces.ends[first], pieces.level + 1))
                first += 1

    def _longest(self, pieces: _Pieces, first: int) -> int:
        """The largest `after` for which pieces[first:after] fit as one; `first` if not even one does."""
        starts, ends, count = pieces.starts, pieces.ends, len(pieces.starts)
        start = starts[first]

        def fit(after: int) -> bool:
            return self._fit(start, ends[after - 1])

        after = min(max(bisect_right(ends, start + self._usual, first, count), first + 1), count)
        step = 1
        if fit(after):
            good = after
            while True:
                if good == count:
                    return count
                bad = min(good + step, count)
                if not fit(bad):
                    break
                good, step = bad, step * 2
        else:
            bad = after
            while True:
                good = max(bad - step, first)
                if good == first or fit(good):
                    break
                bad, step = good, step * 2
        while bad - good > 1:
            middle = (good + bad) // 2
            if fit(middle):
                good = middle
            else:
                bad = middle
        return good

    def _fit(self, start: int, end: int) -> bool:
        """Whether a piece fits; if its beginning does not, it is not asked about, however long it is."""
        if end - start > PASSAGE_LENGTH_MAX:
            return False
        beginning = 4 * max(self._usual, 64)
        while start + beginning < end:
            if not self._fits(self._text[start : start + beginning]):
                return False
            beginning *= 4
        return self._fits(self._text[start:end])

    def _stripped(self, start: int, end: int) -> int:
        while end > start + 1 and self._text[end - 1].isspace():
            end -= 1
        return end
