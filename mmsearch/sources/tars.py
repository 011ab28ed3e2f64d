"""Tars, plain or compressed, read as a stream within limits.

A tar of 515 bytes may claim a member of 2^60, a compressed one of a megabyte may hold gigabytes, and Python's tarfile
believes both. Here a member that ends beyond its file, headers longer than any path needs, and a content that no
compression of images and texts could come from end the reading with a reason.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from mmsearch.errors import SourceError
from mmsearch.sources.folders import reason

HEADER_BYTES_MAX = 1 << 20  # of one member, with its extended headers
UNPACKED_BYTES_LEAST = 64 << 20  # that any compressed tar may hold
UNPACKED_RATIO_MAX = 100  # beyond that; images are packed already, and texts seldom to a tenth
_READ_AT_ONCE = 1 << 20
_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
Read = Callable[[], bytes]


def members(path: str) -> Iterator[tuple[tarfile.TarInfo, Read]]:
    """The members of a tar in their order, each with what reads its content while it is the last one given.

    Raises SourceError, whose message is the reason alone, for what is damaged, cut off, or too large to be true.
    """
    with _told(), open(path, "rb") as file, _unpacked(file) as stream, _tar(stream) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all; of millions that is gigabytes
            yield member, partial(stream.content, member)
            stream.header_bytes = 0
        stream.check_end()


def _tar(stream: "_Stream") -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=stream, mode="r")  # type: ignore[arg-type]


@contextmanager
def _told() -> Iterator[None]:
    """Raises SourceError for whatever a damaged tar may raise."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError) as error:
        said = reason(error) if isinstance(error, OSError) and error.strerror else str(error)
        raise SourceError(said) from error
    except (RecursionError, MemoryError) as error:
        raise SourceError("its headers make no sense") from error


def _unpacked(file: IO[bytes]) -> "_Stream":
    size = os.fstat(file.fileno()).st_size
    head = file.read(6)
    file.seek(0)
    for magic, unpack in _PACKED.items():
        if head.startswith(magic):
            return _Stream(unpack(file), UNPACKED_BYTES_LEAST + UNPACKED_RATIO_MAX * size, packed=True)
    return _Stream(file, size, packed=False)


class _Stream:
    """What tarfile reads from: forward only, within limits."""

    def __init__(self, file: Any, most: int, *, packed: bool) -> None:
        self._file, self._most, self._packed = file, most, packed
        self._at = 0
        self._last = b""  # what was read as a header last
        self.header_bytes = 0  # of the member at hand

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """Headers, which tarfile reads by itself."""
        self.header_bytes += size
        if size < 0 or self.header_bytes > HEADER_BYTES_MAX:
            raise tarfile.ReadError(f"it has headers of more than {HEADER_BYTES_MAX >> 20} MB")
        data = self._exactly(size)
        if len(data) > 1:  # a single byte is read to see whether a member's last one is there
            self._last = data
        elif size > 1:
            self._last = b""
        return data

    def seek(self, position: int) -> None:
        if position < self._at:
            raise tarfile.ReadError("a member has a size below zero")
        if position > self._most:
            raise tarfile.ReadError(
                f"it unpacks to more than {self._most // 10**6} MB"
                if self._packed
                else "a member is larger than the file"
            )
        while self._at < position:
            if not self._exactly(min(_READ_AT_ONCE, position - self._at)):
                raise EOFError("it is cut off")

    def content(self, member: tarfile.TarInfo) -> bytes:
        """The content of the member that was read last. Raises SourceError."""
        with _told():
            self.seek(member.offset_data)
            data = self._exactly(member.size)
            if len(data) < member.size:
                raise EOFError("it is cut off")
            return data

    def check_end(self) -> None:
        """Raises ReadError where no end, but something else than a member was found."""
        if self._last.strip(b"\0"):
            raise tarfile.ReadError("a header is damaged")

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._file.read(min(size, _READ_AT_ONCE))
            if not part:
                break
            self._at += len(part)
            if self._at > self._most:
                raise tarfile.ReadError(f"it unpacks to more than {self._most // 10**6} MB")
            size -= len(part)
            parts.append(part)
        return b"".join(parts)
