"""Caption tables: csv, tsv, jsonl or parquet with a path and a text column, read as a stream, row by row.

A parquet may hold the pictures themselves, as the data sets of Hugging Face do: a column of bytes, or of structs with
`bytes` and `path`. Who learns from pairs reads those.
"""

import codecs
import csv
import io
import json
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import IO, Any

from mmsearch.errors import SourceError
from mmsearch.facts import IMAGE_SUFFIXES
from mmsearch.sources.folders import reason, suffix_of

LINE_BYTES_MAX = 16 << 20
CAPTION_LENGTH_MAX = 131_072  # characters; as `csv` has it for a field
COLUMNS_MAX = 1000  # different keys of a jsonl that are remembered; of more, those that mean something here
PICTURE_BYTES_MAX = 250_000_000  # within a table, as of a file that comes on stdin


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of one picture, from a table."""

    path: str
    text: str
    row: int  # 1-based line of the file on which the row begins; of a parquet file, the row


@dataclass(frozen=True, slots=True)
class Row:
    """One picture of a table with all its captions, and the values of the columns beside them that were asked for."""

    image: str | bytes  # an absolute path, or the content of a file
    texts: tuple[str, ...]
    row: int
    beside: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a caption table that cannot be used."""

    table: str
    row: int  # as in Caption
    reason: str


_PATH_NAMES = (
    "path", "file_path", "filepath", "image_path", "img_path", "file", "filename", "file_name",
    "image_file", "image_name", "image_filename", "image", "img", "picture", "photo", "jpg",
)  # fmt: skip
_TEXT_NAMES = (
    "caption", "captions", "text", "texts", "description", "sentence", "sentences", "title",
    "alt", "alt_text", "prompt", "comment", "txt",
)  # fmt: skip
BESIDE = {
    "label": ("label", "match", "is_match", "class", "sentiment"),
    "weight": ("sample_weight", "pair_weight"),  # not "weight": in a table of products that is kilograms
    "group": ("group", "group_id", "product_id", "sku"),
    "split": ("split",),
}
_USUAL = frozenset(name for names in (_PATH_NAMES, _TEXT_NAMES, *BESIDE.values()) for name in names)
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def read_captions(
    table: str | os.PathLike[str], *, path_column: str | None = None, text_column: str | None = None
) -> Iterator[Caption | BadRow]:
    """The captions in a csv, tsv, jsonl or parquet file, read as a stream.

    The columns are found by their usual names (path, file_name, image; caption, text, description) unless named. A text
    may be a list of several captions (in csv and tsv, a JSON list). Relative paths are relative to the table's folder.
    A row that cannot be used is a BadRow and the rest goes on. Raises SourceError if the table cannot be read at all.
    """
    for row in read_rows(table, path_column=path_column, text_column=text_column):
        if isinstance(row, BadRow):
            yield row
        elif isinstance(row.image, str):
            for text in row.texts:
                yield Caption(row.image, text, row.row)


def read_rows(
    table: str | os.PathLike[str],
    *,
    path_column: str | None = None,
    text_column: str | None = None,
    beside: Mapping[str, str | None] = MappingProxyType({}),
    pictures: bool = False,
) -> Iterator[Row | BadRow]:
    """The rows of a caption table, as `read_captions` reads them.

    beside: further columns by what they are ("label"), each with the name that the user gave it; None: its usual names
    (BESIDE), if there is one such. pictures: whether those that lie in the table are read, and come before paths.
    """
    path = os.path.abspath(os.fsdecode(table))
    read = _TABLES.get(suffix_of(os.path.basename(path)))
    if read is None:
        raise SourceError(f"{path} is not a caption table: it has to be {', '.join(_TABLES)}.")
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise SourceError(f"{path} is not an ordinary file.")
    columns = Columns(path, path_column, text_column, beside, pictures)
    return _checked_rows(path, columns, read(path, columns))


@dataclass
class Columns:
    """The columns that a table is asked for, and those that are chosen of what it has."""

    table: str
    path: str | None
    text: str | None
    beside: Mapping[str, str | None]
    pictures: bool  # whether those that lie in the table are read
    embedded: tuple[str, ...] = ()  # columns that hold such
    found: tuple[str, ...] = ()  # of those beside, what they are, in the order in which their values come

    def choose(self, present: Sequence[str]) -> tuple[str, ...]:
        """The names of the path column, the text column, and those beside them that are there."""
        usual_image = next((name for name in self.embedded if _plain(name) in _PATH_NAMES), None)
        path = self._one(present, self.path or usual_image, _PATH_NAMES, "path", "path_column")
        by_plain_name = {_plain(name): name for name in reversed(present)}
        chosen = {}
        for what, asked in self.beside.items():
            if asked == "":
                continue  # its usual names mean something else here
            if asked is not None:
                chosen[what] = self._one(present, asked, (), what, f"{what}_column")
            elif usual := next((by_plain_name[name] for name in BESIDE[what] if name in by_plain_name), None):
                chosen[what] = usual
        texts: Sequence[str] = _TEXT_NAMES
        if self.text is None and "label" in chosen and not {*_TEXT_NAMES} & {*by_plain_name}:
            texts = (_plain(chosen["label"]),)  # classes are all that is said of these pictures
        self.found = tuple(chosen)
        return (path, self._one(present, self.text, texts, "text", "text_column"), *chosen.values())

    def may_be(self, name: str) -> bool:
        """Whether a column of this name could be chosen."""
        asked = (self.path, self.text, *self.beside.values())
        return name in asked or _plain(name) in _USUAL

    def _one(self, present: Sequence[str], asked: str | None, usual: Sequence[str], what: str, how: str) -> str:
        if asked is not None:
            if asked in present:
                return asked
            raise SourceError(f"{self.table} has no column {asked!r}; it has {_listed(present)}.")
        by_plain_name = {_plain(name): name for name in reversed(present)}
        for name in usual:
            if name in by_plain_name:
                return by_plain_name[name]
        option = "--" + how.replace("_", "-")
        raise SourceError(
            f"{self.table} has no {what} column that mmsearch knows; it has {_listed(present)}. "
            f"Say which one it is with {option} ({how})."
        )


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:20])
    return (shown or "no columns") + (", …" if len(names) > 20 else "")


_Row = tuple[int, Sequence[Any]]  # row; path, text or texts, and what is beside them; unchecked


def _checked_rows(table: str, columns: Columns, rows: Iterator[_Row | BadRow]) -> Iterator[Row | BadRow]:
    folder = os.path.dirname(table)
    for row in _readable(table, rows):
        if isinstance(row, BadRow):
            yield row
            continue
        number, (path, value, *others) = row
        texts = _texts(value)
        image = _image(path) if columns.pictures else path
        problem = (None if isinstance(image, bytes) else _path_problem(image)) or _text_problem(texts)
        if isinstance(image, bytes) and len(image) > PICTURE_BYTES_MAX:
            problem = f"has a picture of {len(image) // 10**6} MB"
        if problem:
            yield BadRow(table, number, problem)
            continue
        if isinstance(image, str):
            image = os.path.normpath(os.path.join(folder, image))
        beside = dict(zip(columns.found, others, strict=True))
        yield Row(image, tuple(text.strip() for text in texts), number, beside)


def _readable(table: str, rows: Iterator[_Row | BadRow]) -> Iterator[_Row | BadRow]:
    try:
        yield from rows
    except OSError as error:
        raise SourceError(f"{table} cannot be read: {reason(error)}.") from error


def _image(value: Any) -> Any:
    """The bytes in a struct of bytes and a path; the path where there are none."""
    return (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value


def _texts(value: Any) -> list[Any]:
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        if isinstance(listed, list) and all(isinstance(text, str) for text in listed):
            value = listed
    return value if isinstance(value, list) else [value]


def _path_problem(path: Any) -> str | None:
    if path is None or path == "":
        return "has no path"
    if not isinstance(path, str):
        return "its path is not a text"
    if _ADDRESS.match(path):
        return f"{path[:200]!r} is an address, not a file"
    if "\0" in path:
        return "its path holds a NUL byte"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "its path is not valid Unicode"
    return None


def _text_problem(texts: Sequence[Any]) -> str | None:
    if not texts or any(text is None or (isinstance(text, str) and not text.strip()) for text in texts):
        return "has no text"
    for text in texts:
        if not isinstance(text, str):
            return "its caption is not a text"
        if len(text) > CAPTION_LENGTH_MAX:
            return f"its caption has {len(text):,} characters, a field larger than {CAPTION_LENGTH_MAX:,}"
        if "\0" in text:
            return "its caption holds a NUL byte"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "its caption is not UTF-8"
    return None


def _lines(table: str, file: IO[bytes]) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 become surrogates: right in a path, a bad row in a caption."""
    head = file.read(1 << 16)
    file.seek(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head.split(b"\n", 1)[0]:
        raise SourceError(f"{table}: line 1 is not UTF-8; save the table as UTF-8.")
    end = "\r" if b"\r" in head and b"\n" not in head else "\n"  # as Macs once wrote them, and Excel there may still
    lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=end)
    number = 0
    while line := lines.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise SourceError(f"{table}: line {number} is longer than {LINE_BYTES_MAX >> 20} MB.")
        yield line.removeprefix("\ufeff") if number == 1 else line


def _read_csv(table: str, columns: Columns) -> Iterator[_Row | BadRow]:
    with open(table, "rb") as file:
        lines = _lines(table, file)
        first = next(lines, "")
        delimiter = max(",;\t", key=first.count)  # spreadsheets write ";" where the comma is for decimals
        yield from _read_delimited(table, columns, _CsvRows(table, chain([first], lines), delimiter).rows())


_Fields = tuple[int, list[str]]  # the line on which a row begins, and what is in it


class _CsvRows:
    """The rows of a csv, of which a quote that is not closed costs its own row alone.

    RFC 4180 lets a quoted field go on over lines. A quote that was never meant so would take all up to the next one
    with it: where what follows shows that, its line is named, and reading goes on with the line after it.
    """

    def __init__(self, table: str, lines: Iterator[str], delimiter: str) -> None:
        self._table, self._lines, self._delimiter = table, lines, delimiter
        mark = re.escape(delimiter)
        self._field = re.compile(rf'"((?:[^"]|"")*+)"(?={mark}|$)|([^{mark}]*)')
        self._again: deque[str] = deque()  # lines to be read once more
        self._alone = 0  # of these, how many no quote goes beyond: they lay within one that was not closed
        self._taken: list[str] = []  # of the row at hand
        self._size = 0  # of these, in characters
        self._number = 1  # of the line on which it begins
        self._columns = 0
        self._reader = self._new_reader()

    def _new_reader(self) -> Any:  # one that has seen the end of its lines sees no more of them
        return csv.reader(iter(self._next_line, None), delimiter=self._delimiter, strict=True)

    def rows(self) -> Iterator[_Fields | BadRow]:
        """Each row, or why there is none."""
        while True:
            self._taken, self._size = [], 0
            row: list[str] | str | None
            if self._alone:
                self._alone -= 1
                self._next_line()
                row = self._one_line()
            else:
                row = self._fields()
            if row is None:
                return
            if isinstance(row, list):
                self._columns = self._columns or len(row)
                yield self._number, row
            else:
                yield BadRow(self._table, self._number, row)
            self._number += len(self._taken)

    def _next_line(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is not None:
            self._size += len(line)
            if self._taken and self._size > LINE_BYTES_MAX:  # it is looked at once more, in a row of its own
                self._again.appendleft(line)
                return None
            self._taken.append(line)
        return line

    def _fields(self) -> list[str] | str | None:
        """The row that begins at the next line, or why there is none; None at the end."""
        try:
            fields: list[str] = next(self._reader)
        except StopIteration:
            return None
        except csv.Error:  # also for a field above csv.field_size_limit(), 131072 characters
            return self._first_line()
        if len(self._taken) > 1 and self._columns and self._holds_rows(fields):
            return self._first_line()
        return fields

    def _holds_rows(self, fields: Sequence[str]) -> bool:
        """Whether a row of several lines is one that took others in: by its columns, or by a line that names an image
        where it does itself."""
        if len(fields) != self._columns:
            return True
        place = next((at for at, field in enumerate(fields) if suffix_of(field) in IMAGE_SUFFIXES), None)
        if place is None:
            return False
        within = (self._split(line)[0] for line in self._taken[1:])
        return any(len(row) == self._columns and suffix_of(row[place]) in IMAGE_SUFFIXES for row in within)

    def _first_line(self) -> list[str] | str:
        """Takes the first line for a row of its own, and gives back the others."""
        self._reader = self._new_reader()
        others = self._taken[1:]
        if others:
            self._again.extendleft(reversed(others))
            self._alone = len(others) - 1  # not the last, which showed that the quote is none, and may begin another
            self._taken = self._taken[:1]
        return self._one_line()

    def _one_line(self) -> list[str] | str:
        """The fields of one line, or why there are none."""
        fields, is_open = self._split(self._taken[0])
        return "begins a quote that is not closed" if is_open else fields

    def _split(self, line: str) -> tuple[list[str], bool]:
        """The fields of a line by itself, and whether a quote is open at its end.

        A quote that does not go from end to end of a field is a letter, as in a tsv.
        """
        line = line.rstrip("\r\n")
        fields, at = list[str](), 0
        while at <= len(line) and (match := self._field.match(line, at)) is not None:
            if match[1] is None and match[2].startswith('"') and '"' not in line[at + 1 :]:
                return [*fields, line[at:]], True
            fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
            at = match.end() + 1
        return fields, False


def _read_tsv(table: str, columns: Columns) -> Iterator[_Row | BadRow]:
    """One line, one row, as CC3M and most sets on the web have it; a quote within a field is just a quote."""
    with open(table, "rb") as file:
        lines = (line.rstrip("\r\n") for line in _lines(table, file))
        rows = ((number, [_unquoted(field) for field in line.split("\t")]) for number, line in enumerate(lines, 1))
        yield from _read_delimited(table, columns, rows)


def _unquoted(field: str) -> str:
    quoted = _QUOTED.fullmatch(field)
    return quoted[1].replace('""', '"') if quoted else field


def _read_delimited(table: str, columns: Columns, rows: Iterator[_Fields | BadRow]) -> Iterator[_Row | BadRow]:
    header = next(rows, None)
    names = header[1] if isinstance(header, tuple) else []
    if isinstance(header, BadRow):
        raise SourceError(f"{table}: line 1, which names the columns, {header.reason}.")
    chosen = columns.choose(names)
    yield from namesakes(table, names, chosen)
    places = [names.index(name) for name in chosen]
    least = max(places) + 1
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        number, fields = row
        if not any(fields):
            continue
        # Spreadsheets leave out empty cells at the end of a row, or put in some
        if len(fields) < least or any(fields[len(names) :]):
            yield BadRow(table, number, f"has {len(fields)} columns where the header has {len(names)}")
            continue
        yield number, [fields[place] for place in places]


def namesakes(table: str, names: Sequence[str], chosen: Sequence[str]) -> Iterator[BadRow]:
    """A word on each column that is read and has a namesake, which is not."""
    for name in dict.fromkeys(chosen):
        if (count := names.count(name)) > 1:
            yield BadRow(table, 1, f"names {count} columns {name[:60]!r}; the first is read")


def _read_jsonl(table: str, columns: Columns) -> Iterator[_Row | BadRow]:
    names: tuple[str, ...] = ()
    with open(table, "rb") as file:
        present = dict[str, None]()  # of all rows: any of them may lack what others have
        for _, row in _json_rows(table, file):
            if isinstance(row, dict) and not row.keys() <= present.keys():
                present.update((name, None) for name in row if len(present) < COLUMNS_MAX or columns.may_be(name))
        if present:
            names = columns.choose(list(present))
        del present
    with open(table, "rb") as file:
        for number, row in _json_rows(table, file):
            if isinstance(row, dict):
                yield number, [row.get(name) for name in names]
            else:
                yield BadRow(table, number, row)


def _json_rows(table: str, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line that is not blank, by its number: the object in it, or what it is instead."""
    for number, line in enumerate(_lines(table, file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            yield number, f"is not JSON: {error.msg} (character {error.pos + 1})"
            continue
        except RecursionError:
            yield number, "is JSON that is nested too deeply"
            continue
        except ValueError:  # json turns digits into a number of any length, and Python sets an end to that
            yield number, "has a number of more than 4,300 digits"
            continue
        yield number, row if isinstance(row, dict) else "is not a JSON object"


def _read_parquet(table: str, columns: Columns) -> Iterator[_Row | BadRow]:
    from mmsearch.sources.parquets import rows_of  # here: it reads the types of this module

    return rows_of(table, columns)


_TABLES: dict[str, Callable[[str, Columns], Iterator[_Row | BadRow]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
