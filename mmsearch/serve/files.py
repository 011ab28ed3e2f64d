"""Files by the id of their item, never by a path; one alone, or several as a zip.

A browser is told what a file is by its first bytes, not by its name, and shows only pictures made of pixels: an SVG or
HTML file runs scripts. A text goes out only as it was when it was indexed, so that nobody who may write to an indexed
folder can put a link there afterwards that leads to a file of its owner's.
"""

import contextlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote

from mmsearch.errors import MediaError
from mmsearch.items import Item
from mmsearch.media import sniff
from mmsearch.present import printable
from mmsearch.serve.problems import ProblemError
from mmsearch.sources.folders import time_of_change
from mmsearch.store.paths import readable

CHUNK_BYTES = 2**18
SHOWN = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}  # what browsers draw; all else is downloaded
DOWNLOADED = {"HEIC": "image/heic", "TIFF": "image/tiff", "JPEG2000": "image/jp2"}


@dataclass(frozen=True)
class OpenFile:
    """A file to be sent, with what its headers say."""

    stream: IO[bytes]
    size_bytes: int
    media_type: str
    disposition: str

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, as many as its header said; closes it."""
        left = self.size_bytes
        with self.stream as stream:
            while left > 0 and (chunk := stream.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk


def open_item(item: Item) -> OpenFile:
    """The file of an item. Raises ProblemError where there is none, or none that may be sent."""
    if item.path is None:
        raise ProblemError("not-found", f"'{item.id}' came from memory; there is no file of it.")
    stream, facts = _open(item.path)
    try:
        if item.kind == "text":
            if (facts.st_size, time_of_change(facts)) != (item.size_bytes, item.modified_ns):
                raise ProblemError("gone", f"{item.path} has changed since it was indexed. Index it again.")
            return OpenFile(stream, facts.st_size, "text/plain; charset=utf-8", _disposition("attachment", item.path))
        try:
            format_ = sniff(stream)
        except MediaError as error:
            raise ProblemError("gone", f"{item.path} {error}; it was a picture when it was indexed.") from None
        stream.seek(0)
        if format_ in SHOWN:
            return OpenFile(stream, facts.st_size, SHOWN[format_], _disposition("inline", item.path))
        return OpenFile(stream, facts.st_size, DOWNLOADED[format_], _disposition("attachment", item.path))
    except BaseException:
        stream.close()
        raise


def is_there(item: Item) -> bool | None:
    """Whether an item's file can be read; None where it has none."""
    return None if item.path is None else os.access(item.path, os.R_OK)


def zipped(items: Sequence[Item], most_bytes: int) -> Iterator[bytes]:
    """A zip of the items' files, each once, as it grows. Raises ProblemError, before the first byte, for too many.

    Pictures are compressed already, so they are stored as they are. What cannot be read is listed in `missing.txt`.
    """
    by_path = {item.path: item for item in items if item.path is not None}
    total = 0
    for path in by_path:
        with contextlib.suppress(OSError, ValueError):
            total += os.stat(path).st_size
    if total > most_bytes:
        raise ProblemError("too-large", f"The files have {total / 1e9:.1f} GB; {most_bytes / 1e9:g} GB are the most.")
    return _zipped(list(by_path.values()))


def _zipped(items: Sequence[Item]) -> Iterator[bytes]:
    out = _Outbox()
    missing = []
    names: set[str] = set()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for item in items:
            try:
                file = open_item(item)
            except ProblemError as error:
                missing.append(f"{printable(item.path or item.id)}: {printable(str(error))}")
                continue
            entry = zipfile.ZipInfo(_free_name(item.path or item.id, names))
            with archive.open(entry, "w", force_zip64=True) as into:
                for chunk in file.chunks():
                    into.write(chunk)
                    yield from out.taken()
        if missing:
            archive.writestr("missing.txt", "\n".join(missing) + "\n")
    yield from out.taken()


class _Outbox(io.RawIOBase):
    """A stream that zipfile writes to, and that is emptied as it goes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        chunk = bytes(data)
        self._chunks.append(chunk)
        return len(chunk)

    def taken(self) -> list[bytes]:
        chunks, self._chunks = self._chunks, []
        return chunks


def _open(path: str) -> tuple[IO[bytes], os.stat_result]:
    """A regular file; nobody waits for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror or "cannot be opened" if isinstance(error, OSError) else "cannot be opened"
        raise ProblemError("gone", f"{path}: {reason.lower()}. Index its folder again.") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise ProblemError("gone", f"{path} is not a file any more. Index its folder again.")
    return os.fdopen(descriptor, "rb"), facts


def _disposition(kind: str, path: str) -> str:
    return f"{kind}; filename*=UTF-8''{quote(_name(path), safe='')}"


def _name(path: str) -> str:
    """The last part of a path, with nothing that an unpacking program could take for a folder or a command."""
    name = printable(readable(os.path.basename(path))).replace("\\", "_").replace("/", "_").strip()
    return "file" if name in ("", ".", "..") else name


def _free_name(path: str, taken: set[str]) -> str:
    name = _name(path)
    stem, suffix = os.path.splitext(name)
    number = 2
    while name.lower() in taken:
        name, number = f"{stem} ({number}){suffix}", number + 1
    taken.add(name.lower())
    return name
