"""Every error that mmsearch raises on purpose, in one tree.

Error                     catch this one to catch all of them
├── UsageError            an argument or option that makes no sense; the command line exits with 2
├── SourceError           a folder, file or table that was asked for cannot be used as a source
│   └── MissingRootError  a whole root is gone or empty; removing its items has to be insisted on
├── MediaError            a picture that cannot be decoded; its message is the reason, without the path
├── ModelError            a model that cannot be found, made into a bundle, or run
│   └── ModelMismatchError  the index was made with another model
├── QueryError            a query without an answer: terms that cancel out, a picture that is not there
├── TrainingError         a training that cannot start, or came to nothing
├── ServerError           a server that Client asks: nobody answers, or it has too much to do
└── IndexError_           the index on disk cannot be used
    ├── IndexLockedError  another process writes to it
    ├── IndexTooNewError  a newer mmsearch made it
    ├── IndexDamagedError  index.db holds what mmsearch never wrote
    └── IndexWriteError   the disk is full, or the folder cannot be written, holds a link, or went while it was open

A message names the thing, what is wrong, and what to do; the command line prints it as it is.
"""

import contextlib
import errno
from collections.abc import Iterator


class Error(Exception):
    """Base of everything that mmsearch raises on purpose; its text is one sentence for a person."""


class UsageError(Error):
    """An argument or option that makes no sense."""


class SourceError(Error):
    """A folder, file or table that was asked for cannot be used as a source."""


class MissingRootError(SourceError):
    """A whole root is gone or empty, as with an unplugged drive; its items were kept."""


class MediaError(Error):
    """A picture that cannot be decoded; the text is the reason, to be kept beside its path."""


class ModelError(Error):
    """A model that cannot be found, made into a bundle, or run."""


class ModelMismatchError(ModelError):
    """The index was made with another model than the one asked for."""


class QueryError(Error):
    """A query that cannot have an answer."""


class TrainingError(Error):
    """A training that cannot start, or came to nothing; what was there before is as it was."""


class ServerError(Error):
    """The server that a Client asks cannot be reached, or refuses."""


class IndexError_(Error):  # the trailing underscore keeps Python's own IndexError in sight
    """The index on disk cannot be used."""


class IndexLockedError(IndexError_):
    """Another process is writing to the index."""


class IndexTooNewError(IndexError_):
    """A newer version of mmsearch made the index."""


class IndexDamagedError(IndexError_):
    """What index.db holds is not what mmsearch wrote."""


class IndexWriteError(IndexError_):
    """The index cannot be written or read any more: a full disk, a read-only folder, a folder that went meanwhile."""


SHORT_OF_MEMORY = "There is not enough memory for this. End other programs, or raise the limit (ulimit -v)."

# What libraries say that have no class of their own for it: ONNX Runtime, the loader of compiled modules, threads
_SIGNS = (
    "bad_alloc",
    "allocate memory",
    "failed to map segment",
    "can't start new thread",
    "pthread_create failed",
    "Cannot allocate",
)


def is_short_of_memory(error: BaseException) -> bool:
    """Whether it is memory that an error comes from, at whatever remove."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return True
        if not isinstance(seen, Error) and any(sign in str(seen) for sign in _SIGNS):
            return True
        seen = seen.__cause__
    return False


@contextlib.contextmanager
def memory_watched() -> Iterator[None]:
    """Raises ModelError where a library is short of memory, whatever it raises then itself."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, Error) and is_short_of_memory(error):
            raise ModelError(SHORT_OF_MEMORY) from error
        raise


def in_a_line(error: BaseException) -> str:
    """What another library's error says, short and without a full stop, for a sentence of ours."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
