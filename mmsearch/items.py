"""One item and all that is known about it: what a hit says, its captions, and its file as it was when it was read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmsearch.arguments import shown
from mmsearch.embedding import encodable
from mmsearch.errors import SourceError
from mmsearch.store.reader import Reader
from mmsearch.store.records import Kind


@dataclass(frozen=True)
class Item:
    """An indexed thing. What it shares with a Hit means the same."""

    kind: Kind
    id: str
    path: str | None
    text: str | None
    line: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    taken_at: str | None = None
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    captions: tuple[str, ...] = ()  # of a picture, in the order in which they were put in
    size_bytes: int | None = None  # of the file, when it was read
    modified_ns: float | None = None  # its time of change then, since 1970
    content_hash: str | None = None  # of all that it held then (mmsearch.hashing)


def item(reader: Reader, number: int) -> Item:
    """The item of a number that the reader's snapshot has."""
    row = reader.items([number])[number]
    file = None if row["path"] is None else reader.file(row["path"])
    return Item(
        kind=row["kind"],
        id=row["id"],
        path=row["path"],
        text=row["text"],
        line=row["line"],
        width=row["width"],
        height=row["height"],
        format=row["format"],
        taken_at=row["taken_at"],
        camera=row["camera"],
        latitude_deg=row["latitude_deg"],
        longitude_deg=row["longitude_deg"],
        facts=row["facts"],
        captions=reader.captions(number),
        size_bytes=None if file is None else file.size_bytes,
        modified_ns=None if file is None else file.modified_ns,
        content_hash=None if file is None else file.content_hash,
    )


def number_of(reader: Reader, name: str) -> int | None:
    """The item that an id means: the user's own, or `mm-12`."""
    if re.fullmatch("mm-[0-9]{1,18}", name):  # SQLite's numbers end at 19 digits
        number = int(name[3:])
        return number if number in reader.items([number]) else None
    return reader.item_named(name) if name == encodable(name) else None


def existing(reader: Reader, name: str) -> int:
    """The item that an id means. Raises SourceError."""
    number = number_of(reader, name)
    if number is None:
        raise SourceError(f"The index holds no item with the id {shown(name)}.")
    return number
