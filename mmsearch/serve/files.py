"""Files by the id of their item, never by a path; one alone, or several as a zip.

A browser is told what a file is by its first bytes, not by its name, and shows only pictures made of pixels: an SVG or
HTML file runs scripts. Nobody who may write to an indexed folder can put a link there afterwards that leads to a file
of its owner's: what is reached through a link, is one of several hard links, or is a text, goes out only while it holds
to the byte what was indexed. What is checked is the open file, which nobody can exchange any more.
"""

import contextlib
import io
import os
import shutil
import stat
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote

from mmsearch.errors import MediaError
from mmsearch.hashing import hashed
from mmsearch.items import Item
from mmsearch.media import sniff
from mmsearch.names import open_directly
from mmsearch.present import printable
from mmsearch.serve.problems import ProblemError
from mmsearch.store.paths import readable

CHUNK_BYTES = 2**18
FIRST_S, LAST_S = 316_000_000, 4_354_000_000  # 1980 to 2107, which is all the time that a zip knows
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
    modified_s: float
    media_type: str
    disposition: str

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, as many as its header said; closes it. Raises CutShortError where it has fewer by now."""
        left = self.size_bytes
        with self.stream as stream:
            while left > 0:
                try:
                    chunk = stream.read(min(CHUNK_BYTES, left))
                except OSError as error:
                    raise CutShortError(f"Reading a file failed: {error.strerror or error}.") from error
                if not chunk:
                    raise CutShortError("A file became shorter while it was sent.")
                left -= len(chunk)
                yield chunk


class CutShortError(Exception):
    """An answer that has begun cannot be brought to its end."""


@contextlib.contextmanager
def checked(item: Item) -> Iterator[tuple[IO[bytes], os.stat_result, Callable[[], None]]]:
    """The file of an item, open, with its facts, and what checks that it may be shown.

    The check may read the whole file. Raises ProblemError, as the check does.
    """
    if item.path is None:
        raise ProblemError("not-found", f"'{item.id}' came from memory; there is no file of it.")
    stream, facts, is_direct = _open(item.path)

    def check() -> None:
        if item.kind == "text" or not is_direct or facts.st_nlink > 1:
            _check_content(item, stream)

    try:
        yield stream, facts, check
    except BaseException:
        stream.close()
        raise


def open_item(item: Item) -> OpenFile:
    """The file of an item. Raises ProblemError where there is none, or none that may be sent."""
    with checked(item) as (stream, facts, check):
        check()
        assert item.path is not None
        media_type, how = "text/plain; charset=utf-8", "attachment"
        if item.kind == "image":
            media_type, how = _shown(item.path, stream)
        disposition = f"{how}; filename*=UTF-8''{quote(_name(os.path.basename(item.path)), safe='')}"
        stream.seek(0)
        return OpenFile(stream, facts.st_size, facts.st_mtime, media_type, disposition)


def _check_content(item: Item, stream: IO[bytes]) -> None:
    """Raises ProblemError unless a file holds what the index read from it."""
    stream.seek(0)
    try:
        content = hashed(iter(lambda: stream.read(CHUNK_BYTES), b""))
    except OSError as error:
        raise ProblemError("gone", f"{item.path}: {(error.strerror or 'cannot be read').lower()}.") from None
    if content != item.content_hash:
        raise ProblemError("gone", f"{item.path} has changed since it was indexed. Index it again.")
    stream.seek(0)


def _shown(path: str, stream: IO[bytes]) -> tuple[str, str]:
    """The media type of a picture, and whether a browser shows it or saves it. Raises ProblemError."""
    try:
        format_ = sniff(stream)
    except MediaError as error:
        raise ProblemError("gone", f"{path} {error}; it was a picture when it was indexed.") from None
    return (SHOWN[format_], "inline") if format_ in SHOWN else (DOWNLOADED[format_], "attachment")


def is_there(item: Item) -> bool | None:
    """Whether an item's file can be read; None where it has none."""
    return None if item.path is None else os.access(item.path, os.R_OK)


def zipped(items: Sequence[Item], most_bytes: int) -> Iterator[bytes]:
    """A zip of the items' files, each once, as it grows. Raises ProblemError, before the first byte, for too many.

    Files lie in their folders, from the lowest folder on that holds them all, and keep their time of change. Pictures
    are compressed already, so they are stored as they are. What cannot be read is listed in `missing.txt`.
    """
    by_path = {item.path or item.id: item for item in items}
    total = 0
    for item in by_path.values():
        with contextlib.suppress(OSError, ValueError):
            total += 0 if item.path is None else os.stat(item.path).st_size
    if total > most_bytes:
        raise ProblemError("too-large", f"The files have {total / 1e9:.1f} GB; {most_bytes / 1e9:g} GB are the most.")
    return _zipped(list(by_path.values()))


def _zipped(items: Sequence[Item]) -> Iterator[bytes]:
    out = _Outbox()
    missing = []
    names = _Names([item.path for item in items if item.path is not None])
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for item in items:
            try:
                file = open_item(item)
            except ProblemError as error:
                missing.append(f"{printable(item.path or item.id)}: {printable(str(error))}")
                continue
            assert item.path is not None  # else there would be no file of it
            with archive.open(_entry(names.free(item.path), file.modified_s), "w", force_zip64=True) as into:
                try:
                    for chunk in file.chunks():
                        into.write(chunk)
                        yield from out.taken()
                except CutShortError as error:
                    missing.append(f"{printable(item.path)}: {error} Its beginning is here.")
        if missing:
            text = ("\n".join(missing) + "\n").encode("utf-8", "backslashreplace")
            archive.writestr(_entry(names.free("missing.txt"), time.time()), text)
    yield from out.taken()


def _entry(name: str, modified_s: float) -> zipfile.ZipInfo:
    """A file of a zip: the time in the zip's own form, local and to 2 s, and beside it exact, as Info-ZIP writes it."""
    entry = zipfile.ZipInfo(name, time.localtime(min(max(modified_s, FIRST_S), LAST_S))[:6])
    entry.external_attr = 0o644 << 16
    if abs(modified_s) < 2**31:
        entry.extra = struct.pack("<2sHBi", b"UT", 5, 1, int(modified_s))
    return entry


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


def _open(path: str) -> tuple[IO[bytes], os.stat_result, bool]:
    """A regular file, and whether no link leads to it; nobody waits for a pipe."""
    try:
        descriptor = open_directly(path)
        is_direct = descriptor is not None
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror or "cannot be opened" if isinstance(error, OSError) else "cannot be opened"
        raise ProblemError("gone", f"{path}: {reason.lower()}. Index its folder again.") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise ProblemError("gone", f"{path} is not a file any more. Index its folder again.")
    return os.fdopen(descriptor, "rb"), facts, is_direct


@contextlib.contextmanager
def path_of(stream: IO[bytes]) -> Iterator[str]:
    """A path by which another process of this user reads an open file, whatever has become of its own path."""
    path = f"/proc/{os.getpid()}/fd/{stream.fileno()}"
    if os.path.exists(path):  # Linux
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mmsearch-") as folder:
        copy = os.path.join(folder, "file")
        with open(copy, "wb") as into:
            shutil.copyfileobj(stream, into)
        yield copy


def _name(part: str) -> str:
    """A part of a path with nothing that an unpacking program could take for a folder or a command."""
    name = printable(readable(part)).replace("\\", "_").replace("/", "_").strip()
    return "file" if name in ("", ".", "..") else name


class _Names:
    """The names of files in a zip, no two the same where upper and lower case are."""

    def __init__(self, paths: Sequence[str]) -> None:
        folders = {os.path.dirname(path) for path in paths}
        try:
            self._start = os.path.commonpath(folders) if folders else ""
        except ValueError:  # several drives
            self._start = ""
        self._taken: set[str] = set()

    def free(self, path: str) -> str:
        """The name for a file that has none yet."""
        inside = os.path.relpath(path, self._start) if self._start and os.path.isabs(path) else path
        parts = [_name(part.replace(":", "_") if os.name == "nt" else part) for part in inside.split(os.sep) if part]
        name = "/".join(parts)
        stem, suffix = os.path.splitext(name)
        number = 2
        while name.casefold() in self._taken:
            name, number = f"{stem} ({number}){suffix}", number + 1
        self._taken.add(name.casefold())
        return name
