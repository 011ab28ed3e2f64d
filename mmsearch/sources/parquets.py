"""Caption tables in parquet, read in batches of a bounded size.

A parquet of a kilobyte may stand for gigabytes: a dictionary holds a long text once, and rows name it by number; runs
of numbers take no room at all. So the size of a batch follows from the largest value that its columns can hold, and a
table that says more than a file of its size can is refused.
"""

import os
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from mmsearch.errors import SourceError, in_a_line
from mmsearch.sources.tables import BadRow, Columns, namesakes

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

BATCH_BYTES_MAX = 64 << 20
ROWS_AT_ONCE = 1024
LISTS_AT_ONCE = 4096  # each batch of them holds its dictionary anew
# What a file may stand for: captions and paths pack to a tenth, images not at all
VALUES_LEAST, VALUES_PER_BYTE = 1_000_000, 10
DECODED_LEAST, DECODED_PER_BYTE = 64 << 20, 200
_PAGE_HEAD = 64  # bytes, in which the sizes of a page stand


def rows_of(table: str, columns: Columns) -> Iterator[tuple[int, Sequence[Any]] | BadRow]:
    """The rows of a parquet: what `columns` chooses of each. Raises SourceError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise SourceError(f"{table}: reading parquet needs pyarrow; install it with: pip install pyarrow") from error
    try:
        with open(table, "rb") as raw, parquet.ParquetFile(table) as file:
            names, leaves = _chosen(file, columns)
            present = file.schema_arrow.names
            yield from namesakes(table, present, names)
            _check_claims(file, leaves, os.fstat(raw.fileno()).st_size)
            yield from _Reading(table, names, leaves, os.fstat(raw.fileno()).st_size).rows(raw, file)
    except (pyarrow.ArrowException, KeyError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise SourceError(f"{table} cannot be read as parquet: {in_a_line(error)}.") from error


def _chosen(file: "parquet.ParquetFile", columns: Columns) -> tuple[tuple[str, ...], list[str]]:
    """The columns that are read, and the names of the parquet's own columns below them.

    Raises SourceError where one is of a type that means nothing here.
    """
    from pyarrow import types

    fields = {field.name: field.type for field in reversed(list(file.schema_arrow))}
    embedded = [
        name
        for name, type_ in fields.items()
        if types.is_binary(type_) or types.is_large_binary(type_) or _is_image(type_)
    ][::-1]
    plain = [field.name for field in file.schema_arrow if not types.is_struct(field.type)]
    columns.embedded = tuple(embedded) if columns.pictures else ()
    names = columns.choose([*plain, *(name for name in columns.embedded if name not in plain)])
    leaves = []
    for name in dict.fromkeys(names):
        type_ = fields[name]
        if _is_image(type_):
            leaves += [f"{name}.{part.name}" for part in type_ if part.name in ("bytes", "path")]
        elif types.is_nested(type_) and not (
            (types.is_list(type_) or types.is_large_list(type_)) and not types.is_nested(type_.value_type)
        ):
            raise SourceError(f"{columns.table}: the column {name[:60]!r} holds {str(type_)[:60]}, and no texts.")
        else:
            leaves.append(name)
    return names, leaves


def _is_image(type_: Any) -> bool:
    from pyarrow import types

    if not types.is_struct(type_):
        return False
    parts = {part.name: part.type for part in type_}
    return "bytes" in parts and not any(types.is_nested(parts[each]) for each in ("bytes", "path") if each in parts)


def _is_below(path: str, leaf: str) -> bool:
    return path == leaf or path.startswith(leaf + ".")


def _check_claims(file: "parquet.ParquetFile", leaves: Sequence[str], size: int) -> None:
    """Raises ValueError where the columns say that they hold more than a file of this size can."""
    says = file.metadata
    values, decoded = says.num_rows, 0
    for number in range(says.num_row_groups):
        for chunk in _chunks(says.row_group(number), leaves):
            values = max(values, chunk.num_values)
            decoded += chunk.total_uncompressed_size
    if values > VALUES_LEAST + VALUES_PER_BYTE * size:
        raise ValueError(f"it claims {values:,} values in {size:,} bytes")
    if decoded > DECODED_LEAST + DECODED_PER_BYTE * size:
        raise ValueError(f"it claims {decoded / 10**6:,.0f} MB in {size:,} bytes")


def _chunks(group: Any, leaves: Sequence[str]) -> Iterator[Any]:
    for place in range(group.num_columns):
        chunk = group.column(place)
        if any(_is_below(chunk.path_in_schema, leaf) for leaf in leaves):
            yield chunk


class _Reading:
    """One parquet being read."""

    def __init__(self, table: str, names: Sequence[str], leaves: Sequence[str], size: int) -> None:
        self._table, self._names, self._leaves = table, names, leaves
        self._left = DECODED_LEAST + DECODED_PER_BYTE * size  # bytes
        self._row = 0

    def rows(self, raw: IO[bytes], file: "parquet.ParquetFile") -> Iterator[tuple[int, Sequence[Any]] | BadRow]:
        from pyarrow import parquet

        leaves = [
            column
            for column in (file.schema.column(place) for place in range(len(file.schema)))
            if any(_is_below(column.path, leaf) for leaf in self._leaves)
        ]
        lists = any(column.max_repetition_level for column in leaves)
        # Of lists no batch is small enough: one row may name a text a million times. Images are left as they are.
        numbered = [column.path for column in leaves if lists and column.logical_type.type == "STRING"]
        with parquet.ParquetFile(self._table, read_dictionary=numbered, buffer_size=1 << 20) as reader:
            for number in range(reader.metadata.num_row_groups):
                chunks = _chunks(reader.metadata.row_group(number), self._leaves)
                largest = max(
                    (_largest(raw, each) for each in chunks if each.path_in_schema not in numbered), default=1
                )
                at_once = min(LISTS_AT_ONCE if lists else ROWS_AT_ONCE, BATCH_BYTES_MAX // max(largest, 1))
                for batch in reader.iter_batches(max(at_once, 1), row_groups=[number], columns=self._leaves):
                    yield from self._of_batch(batch)

    def _of_batch(self, batch: "pyarrow.RecordBatch") -> Iterator[tuple[int, Sequence[Any]] | BadRow]:
        size = sum(_decoded_bytes(column) for column in batch.columns)
        if size > BATCH_BYTES_MAX and len(batch) > 1:
            half = len(batch) // 2
            yield from self._of_batch(batch.slice(0, half))
            yield from self._of_batch(batch.slice(half))
            return
        self._left -= size
        if self._left < 0:
            raise ValueError(f"its rows from {self._row + 1:,} on are larger than a file of its size can hold")
        if size > 4 * BATCH_BYTES_MAX:
            self._row += 1
            yield BadRow(self._table, self._row, f"is of {size // 10**6:,} MB")
            return
        places = [batch.schema.names.index(name) for name in self._names]
        values = {place: _values(batch.column(place)) for place in dict.fromkeys(places)}
        for row in zip(*(values[place] for place in places), strict=True):
            self._row += 1
            yield self._row, row


def _largest(raw: IO[bytes], chunk: Any) -> int:
    """The most bytes that a value of a column's part can take once it is decoded."""
    if chunk.physical_type != "BYTE_ARRAY":
        return 16
    if any(name.startswith("DELTA") for name in chunk.encodings):  # a value may repeat what the one before it held
        return int(chunk.total_uncompressed_size)
    usual = 2 * chunk.total_uncompressed_size // max(chunk.num_values, 1)
    if not chunk.has_dictionary_page:
        return int(usual)
    raw.seek(chunk.dictionary_page_offset)
    return max(int(usual), _page_bytes(raw.read(_PAGE_HEAD)))


def _page_bytes(head: bytes) -> int:
    """The unpacked size of a page by its header (parquet.thrift: PageHeader, field 2, in Thrift's compact protocol)."""
    values, at = [], 0
    for _ in range(2):
        if at >= len(head) or head[at] != 0x15:  # the next field, an i32
            raise ValueError("a page has a header that makes no sense")
        at += 1
        value = shift = 0
        while True:
            if at >= len(head) or shift > 63:
                raise ValueError("a page has a header that makes no sense")
            value |= (head[at] & 0x7F) << shift
            shift += 7
            at += 1
            if not head[at - 1] & 0x80:
                break
        values.append(value >> 1)  # zigzag; none is below zero
    return values[1]


def _decoded_bytes(column: "pyarrow.Array") -> int:
    """What the values of a column take when each stands for itself."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_list(column.type) or types.is_large_list(column.type):
        column = column.flatten()
    if isinstance(column, pyarrow.DictionaryArray):
        if not len(column.dictionary) or not (
            types.is_string(column.dictionary.type) or types.is_binary(column.dictionary.type)
        ):
            return int(column.nbytes)
        lengths = compute.binary_length(column.dictionary).cast(pyarrow.int64())
        total = compute.sum(lengths.take(column.indices)).as_py()
        return int(total or 0) + 4 * len(column)
    return int(column.nbytes)


def _values(column: "pyarrow.Array") -> list[Any]:
    """The values as Python has them; texts that are not UTF-8 with surrogates for the wrong bytes."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if isinstance(column, pyarrow.DictionaryArray):
        column = column.dictionary_decode()
        kind = column.type
    elif (types.is_list(kind) or types.is_large_list(kind)) and types.is_dictionary(kind.value_type):
        kind = pyarrow.large_list(kind.value_type.value_type)
        column = column.cast(kind)
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if types.is_struct(kind):
            raise
        is_list = types.is_list(kind) or types.is_large_list(kind)
        as_bytes = column.cast(pyarrow.large_list(pyarrow.large_binary()) if is_list else pyarrow.large_binary())
        return [_text(value) for value in as_bytes.to_pylist()]


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(each) for each in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
