"""Pictures that somebody asks about -> pixels for an encoder.

What comes as a file, by its path or its bytes, is decoded in a worker process (`decoding`): a file that crashes a
decoder costs an error message, and not the process that asked. The worker starts while the model is loaded. A picture
that a program holds in memory is its own affair, and stays in its process.
"""

import errno
import os
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmsearch.embedding import pixels_of
from mmsearch.encoders.base import Encoder
from mmsearch.errors import MediaError, QueryError
from mmsearch.facts import Decoded
from mmsearch.query import Picture, picture

if TYPE_CHECKING:
    from mmsearch.decoding import DecodePool

IDLE_S = 10.0  # a worker takes 80 MB, and 0.2 s to start


class PictureReader:
    """Reads pictures, from however many threads; its worker processes end when it is closed, or has nothing to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, DecodePool] = {}  # by process id: its threads do not survive a fork

    def close(self) -> None:
        """End the worker processes; they start again when they are needed."""
        with self._lock:
            pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def get_ready(self, pictures: Iterable[Picture]) -> None:
        """Start a worker process, if one will be needed for these."""
        if any(isinstance(one, str | bytes) for one in pictures):
            self._pool().get_ready()

    def read(self, encoder: Encoder, images: Sequence[Any]) -> list[Decoded]:
        """Pictures in their order: paths, bytes, open files, PIL images. Raises MediaError, QueryError."""
        sources = [picture(image) for image in images]
        files = dict.fromkeys(source for source in sources if isinstance(source, str | bytes))
        decoded = self._decoded(encoder, list(files))
        return [decoded[one] if isinstance(one, str | bytes) else _from_memory(encoder, one) for one in sources]

    def _decoded(self, encoder: Encoder, files: Sequence[str | bytes]) -> dict[str | bytes, Decoded]:
        for file in files:
            if isinstance(file, str):
                _check_opens(file)
        if not files:
            return {}
        found = dict(self._pool().decode(files, pixels_of(encoder)))
        decoded: dict[str | bytes, Decoded] = {}
        for file in files:
            one = found[file]
            if not isinstance(one, Decoded):
                name = file if isinstance(file, str) else "The picture"
                raise MediaError(f"{name} cannot be read: {'' if one.cause == 'machine' else 'it '}{one.reason}.")
            decoded[file] = one
        return decoded

    def _pool(self) -> "DecodePool":
        from mmsearch.decoding import DecodePool  # here: a search by words has no use for it

        with self._lock:
            if os.getpid() not in self._pools:
                self._pools[os.getpid()] = DecodePool(idle_s=IDLE_S)
            return self._pools[os.getpid()]


def _from_memory(encoder: Encoder, source: Picture) -> Decoded:
    if isinstance(source, Decoded):
        return source
    from mmsearch.media import read  # here: a search by words has no use for it

    try:
        return read(source, pixels_of(encoder))
    except MediaError as error:
        raise MediaError(f"The picture cannot be read: it {error}.") from error
    except OSError as error:  # of a file that is read only now
        raise MediaError(f"The picture cannot be read: {error.strerror or error}.") from error


def _check_opens(path: str) -> None:
    """Raises QueryError for a path of nothing, or of what may not be read."""
    try:
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)))
    except ValueError as error:  # a NUL in the name
        raise QueryError(f"{path} cannot be opened: {os.strerror(errno.ENOENT)}.") from error
    except OSError as error:
        if error.errno != errno.ENXIO and not os.path.isdir(path):  # a socket, a folder on Windows: the worker says it
            raise QueryError(f"{path} cannot be opened: {error.strerror or error}.") from error
