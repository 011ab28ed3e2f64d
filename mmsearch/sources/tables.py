"""Caption tables: csv, tsv, jsonl or parquet with a path and a text column, read as a stream, row by row.

A parquet may hold the pictures themselves, as the data sets of Hugging Face do: a column of bytes, or of structs with
`bytes` and `path`. Who learns from pairs reads those.
"""

import codecs
import csv
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

from mmsearch.errors import SourceError
from mmsearch.sources.folders import reason, suffix_of

LINE_BYTES_MAX = 16 << 20
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
    columns = _Columns(path, path_column, text_column, beside, pictures)
    return _checked_rows(path, columns, read(path, columns))


@dataclass
class _Columns:
    table: str
    path: str | None
    text: str | None
    beside: Mapping[str, str | None]
    pictures: bool
    found: tuple[str, ...] = ()  # of those beside, what they are, in the order in which their values come

    def choose(self, present: Sequence[str]) -> tuple[str, ...]:
        """The names of the path column, the text column, and those beside them that are there."""
        path = self._one(present, self.path, _PATH_NAMES, "path", "path_column")
        by_plain_name = {_plain(name): name for name in reversed(present)}
        chosen = {}
        for what, asked in self.beside.items():
            if asked is not None:
                chosen[what] = self._one(present, asked, (), what, f"{what}_column")
            elif usual := next((by_plain_name[name] for name in BESIDE[what] if name in by_plain_name), None):
                chosen[what] = usual
        texts: Sequence[str] = _TEXT_NAMES
        if self.text is None and "label" in chosen and not {*_TEXT_NAMES} & {*by_plain_name}:
            texts = (_plain(chosen["label"]),)  # classes are all that is said of these pictures
        self.found = tuple(chosen)
        return (path, self._one(present, self.text, texts, "text", "text_column"), *chosen.values())

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


def _checked_rows(table: str, columns: _Columns, rows: Iterator[_Row | BadRow]) -> Iterator[Row | BadRow]:
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
        if "\0" in text:
            return "its caption holds a NUL byte"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "its caption is not UTF-8"
    return None


def _lines(table: str, file: IO[bytes]) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 become surrogates: right in a path, a bad row in a caption."""
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise SourceError(f"{table}: line {number} is longer than {LINE_BYTES_MAX >> 20} MB.")
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line:
                raise SourceError(f"{table}: line 1 is not UTF-8; save the table as UTF-8.")
            line = line.removeprefix(codecs.BOM_UTF8)
        yield line.decode("utf-8", "surrogateescape")


def _read_csv(table: str, columns: _Columns) -> Iterator[_Row | BadRow]:
    with open(table, "rb") as file:
        lines = _lines(table, file)
        first = next(lines, "")
        delimiter = max(",;\t", key=first.count)  # spreadsheets write ";" where the comma is for decimals
        reader = csv.reader(_again(first, lines), delimiter=delimiter)
        yield from _read_delimited(table, columns, _numbered(table, reader))


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _numbered(table: str, reader: Any) -> Iterator[tuple[int, list[str]] | BadRow]:
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # also a field above csv.field_size_limit(), 131072 characters: a quote left open
            yield BadRow(table, number, f"cannot be read: {error}")


def _read_tsv(table: str, columns: _Columns) -> Iterator[_Row | BadRow]:
    """One line, one row, as CC3M and most sets on the web have it; a quote within a field is just a quote."""
    with open(table, "rb") as file:
        lines = (line.rstrip("\r\n") for line in _lines(table, file))
        rows = ((number, [_unquoted(field) for field in line.split("\t")]) for number, line in enumerate(lines, 1))
        yield from _read_delimited(table, columns, rows)


def _unquoted(field: str) -> str:
    quoted = _QUOTED.fullmatch(field)
    return quoted[1].replace('""', '"') if quoted else field


def _read_delimited(
    table: str, columns: _Columns, rows: Iterator[tuple[int, list[str]] | BadRow]
) -> Iterator[_Row | BadRow]:
    header = next(rows, None)
    names = header[1] if isinstance(header, tuple) else []
    places = [names.index(name) for name in columns.choose(names)]
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        number, fields = row
        if not any(fields):
            continue
        if len(fields) != len(names):
            yield BadRow(table, number, f"has {len(fields)} columns where the header has {len(names)}")
            continue
        yield number, [fields[place] for place in places]


def _read_jsonl(table: str, columns: _Columns) -> Iterator[_Row | BadRow]:
    names: tuple[str, ...] | None = None
    with open(table, "rb") as file:
        for number, line in enumerate(_lines(table, file), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadRow(table, number, f"is not JSON: {error}")
                continue
            if not isinstance(row, dict):
                yield BadRow(table, number, "is not a JSON object")
                continue
            names = names or columns.choose(list(row))
            yield number, [row.get(name) for name in names]


def _read_parquet(table: str, columns: _Columns) -> Iterator[_Row | BadRow]:
    try:
        from pyarrow import ArrowException, parquet, types
    except ModuleNotFoundError as error:
        raise SourceError(f"{table}: reading parquet needs pyarrow; install it with: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(table) as file:
            embedded = [
                field.name
                for field in file.schema_arrow
                if types.is_binary(field.type)
                or types.is_large_binary(field.type)
                or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
            ]
            plain = [field.name for field in file.schema_arrow if not types.is_struct(field.type)]
            if columns.pictures and columns.path is None:
                columns.path = next((name for name in embedded if _plain(name) in _PATH_NAMES), None)
            names = columns.choose([*plain, *embedded] if columns.pictures else plain)
            number = 0
            size = 16 if names[0] in embedded else 1024  # pictures of some MB each
            for batch in file.iter_batches(batch_size=size, columns=list(dict.fromkeys(names))):
                for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                    number += 1
                    yield number, values
    except (ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{table} cannot be read as parquet: {error}") from error


_TABLES: dict[str, Callable[[str, _Columns], Iterator[_Row | BadRow]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
