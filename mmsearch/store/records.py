"""What travels between the store and the rooms above it: frozen records, made once.

They name the columns of index.db, so that a room that reads or fills them needs neither SQL nor a connection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["image", "text"]
FileKind: TypeAlias = Literal["image", "text", "caption", "captions"]
FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
Block: TypeAlias = tuple[IntArray, FloatArray]  # ids (n,), vectors (n, dim)
HalfArray: TypeAlias = npt.NDArray[np.float16]
StoredBlock: TypeAlias = tuple[IntArray, HalfArray]  # the same as the store has them
# Vectors (n, dim) by the model's own heads, and features (n, features) -> vectors (n, dim) by other heads
Projection: TypeAlias = Callable[["Kind", FloatArray, FloatArray], FloatArray]

KINDS: tuple[Kind, ...] = ("image", "text")


class FileRow(NamedTuple):  # a run reads as many as there are files, and a frozen dataclass takes longer to make
    """A file as the store knows it."""

    id: int
    path: str
    kind: FileKind
    size_bytes: int
    modified_ns: float | None  # None: look at it again whatever its time says
    content_hash: str | None
    skipped: str | None  # the reason, if nothing could be read from it
    reader: str | None = None  # of a file that was left out: which version of the readers gave the reason
    tries: int = 0  # how often it broke its decoder
    away: bool = False  # kept, although it was not found, since its folder was away


class FolderRow(NamedTuple):
    """A folder from which there are files."""

    identity: str | None  # its file system and its number in that, when it was last read
    away: bool  # whether its files are kept although they were not found


@dataclass(frozen=True)
class PictureRow:
    """A picture and its file, where it has one."""

    item: int
    id: str  # the user's own, or made of the number
    path: str | None
    content_hash: str | None
    width: int | None
    height: int | None
    size_bytes: int | None


@dataclass(frozen=True)
class NewFile:
    """A file to be written with the items that were read from it."""

    path: str
    kind: FileKind
    size_bytes: int
    modified_ns: float | None
    content_hash: str | None = None
    skipped: str | None = None
    reader: str | None = None
    tries: int = 0


@dataclass(frozen=True)
class NewItem:
    """An item to be written, with its vector."""

    kind: Kind
    vector: FloatArray  # (dim,) unit length
    feature: FloatArray | None = None  # (features,)
    name: str | None = None  # the user's own id
    caption_of: int | None = None
    text: str | None = None
    line: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    taken_at: str | None = None
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    content_hash: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """A FAISS file: the vectors of one kind with after_id < id <= through_id that were alive when it was built."""

    file: str
    after_id: int
    through_id: int
    count: int
    size_bytes: int
    cells: str | None = None  # how its cells are searched, as JSON; None where every row is read
    checksum: int | None = None  # of what is checked before FAISS reads the file; None of an older version's


@dataclass(frozen=True)
class HeadsRow:
    """Projection heads that were trained for an index, without their tensors."""

    name: str
    hash: str
    report: str  # JSON
    made_at: str  # UTC, ISO 8601
    in_use: bool


@dataclass(frozen=True)
class Judgement:
    """What a person said of an item as an answer to some words."""

    query: str
    item: int
    match: bool


@dataclass(frozen=True)
class Condition:
    """What a hit has to be, in SQL on items `i` and, where `in_files`, on files `f`; bound to the same values.

    `check` is quick for an item that is given, `find` for finding all of them.
    """

    check: str
    find: str
    values: tuple[object, ...]
    in_files: bool


@dataclass(frozen=True)
class Root:
    """A folder, file or caption table that was once put into the index, with the options it was scanned with."""

    path: str
    options: Mapping[str, Any]
    updated_at: str | None
