"""The vectors of a store once more, in a file of rows of one length.

Cells give a short list, and the list is scored by the store's own vectors. From SQLite's pages, a hundred of these take
half of the time of a whole ranking; here each is one read at a known place. Row n holds what vector n of the store is:
the number of its item (int64; 0 where there is no such vector), a sum by which damage shows, and its numbers (dim times
float16). A row that does not sum up is not there: its vector is read from the store.

A vector is never changed, only replaced under a new id: the file is only ever appended to, and which rows of it may be
believed is written in the settings of the store once they are on disk. What was deleted since stays in it, and is not
asked for. Like every file in this folder it is derived from the store, and may be deleted.
"""

import contextlib
import json
import os
import stat
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmsearch.store.failures import disk_failures
from mmsearch.store.files import make_folder, open_plain
from mmsearch.store.reader import Reader
from mmsearch.store.records import HalfArray, IntArray
from mmsearch.store.writer import Writer

READS_AT_A_PLACE = hasattr(os, "pread")  # not on Windows, where short lists are read from the store
SETTING = "rows"
SUFFIX = ".rows"
BLOCK_BYTES = 2**25  # read at once
WORD = 8  # bytes
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost in its product
WIDEST = 2**16  # numbers of a vector
WIDE_GAP = 4  # ids; narrower ones are filled with zeros
FIRST_ROWS = 8  # of a list, that tell whether the file is in memory
FROM_MEMORY_S = 1e-4  # that they take at most, if it is: some 1 us each, and 50 from an SSD


@dataclass(frozen=True)
class Told:
    """What the store says of its file of rows; heads: that made the vectors in it, None for the model's own."""

    file: str
    dim: int
    through: int
    count: int  # of vectors in it, those that were deleted since among them
    heads: str | None
    row_bytes: int  # an older version's file has none of these, and other rows

    @classmethod
    def by(cls, reader: Reader) -> "Told | None":
        """None where there is no file of the heads in use, or where what is said makes no sense."""
        try:
            told = cls(**json.loads(reader.setting(SETTING) or ""))
        except (ValueError, TypeError):
            return None
        named = isinstance(told.file, str) and told.file == Path(told.file).name
        counted = all(type(number) is int for number in (told.dim, told.through, told.count, told.row_bytes))
        sound = named and counted and 0 < told.dim <= WIDEST and told.through >= 0
        sound = sound and told.row_bytes == _layout(told.dim).itemsize
        return told if sound and told.heads == reader.setting("heads") else None

    def keep(self, writer: Writer) -> None:
        """From now on readers believe the rows of the file."""
        writer.set(SETTING, json.dumps(asdict(self)))

    @property
    def layout(self) -> np.dtype[Any]:
        """Of a row."""
        return _layout(self.dim)


def _layout(dim: int) -> np.dtype[Any]:
    """A whole number of words of 8 bytes."""
    formats, width = ["<i8", "<u8", ("<f2", (dim,))], 2 * WORD + -(-2 * dim // WORD) * WORD
    names = ["item", "sum", "vector"]
    return np.dtype({"names": names, "formats": formats, "offsets": [0, WORD, 2 * WORD], "itemsize": width})


def _sums(rows: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[np.uint64]:
    """(n,) what rows with these ids have to say as their sum: of their words and the id, each times an odd number."""
    words = rows.view("<u8").reshape(len(rows), rows.itemsize // WORD)  # (n, words)
    odd = (2 * np.arange(words.shape[1] + 1, dtype=np.uint64) + np.uint64(1)) * FACTOR
    sums: npt.NDArray[np.uint64] = np.einsum("ij,j->i", words[:, 2:], odd[2:-1])
    sums += words[:, 0] * odd[0] + ids.astype(np.uint64) * odd[-1]
    return sums


def _whole(rows: npt.NDArray[Any], ids: IntArray) -> npt.NDArray[np.bool_]:
    """(n,) bool: which rows are those of vectors with these ids, and undamaged."""
    whole: npt.NDArray[np.bool_] = (rows["item"] > 0) & (rows["sum"] == _sums(rows, ids))
    return whole


class Rows:
    """The file, open for reading; safe to use from several threads and in processes forked later."""

    def __init__(self, path: Path, told: Told) -> None:
        """Raises OSError where it is missing or too short."""
        self._layout, self._through, self._count = told.layout, told.through, told.count
        self._descriptor = open_plain(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        if os.fstat(self._descriptor).st_size < self._through * self._layout.itemsize:
            raise OSError(f"{path} is cut short")

    def read(self, ids: IntArray) -> tuple[IntArray, IntArray, HalfArray]:
        """(ids (m,), items (m,), vectors (m, dim)) of those of the ids (n,) that are there, in their order.

        Of none where the file cannot be read any more, or was cut short meanwhile.
        """
        ids = ids[(ids > 0) & (ids <= self._through)]
        try:
            read = self._bytes_of(ids)
        except OSError:
            read = b""
        if len(read) < self._layout.itemsize * len(ids):
            ids, read = ids[:0], b""
        rows = np.frombuffer(read, self._layout)
        there = _whole(rows, ids)
        return ids[there], rows["item"][there], rows["vector"][there]

    def is_whole(self) -> bool:
        """Whether every row that was written is there and undamaged; reads the whole file."""
        size, found = self._layout.itemsize, 0
        at_once = max(1, BLOCK_BYTES // size)
        for start in range(0, self._through, at_once):
            count = min(at_once, self._through - start)
            rows = np.frombuffer(os.pread(self._descriptor, count * size, start * size), self._layout)
            if len(rows) < count:
                return False
            found += int(np.count_nonzero(_whole(rows, np.arange(start + 1, start + 1 + count))))
        return found == self._count

    def _bytes_of(self, ids: IntArray) -> bytes:
        """The rows one after the other, or fewer bytes where the file ends. Raises OSError.

        From a disk every row would be waited for. So where the first rows take long, the system is told at once of all
        others, and fetches them together: four hundred take 3 ms of an SSD then, and not 19.
        """
        size, places = self._layout.itemsize, ((ids - 1) * self._layout.itemsize).tolist()
        started = time.perf_counter()
        rows = [os.pread(self._descriptor, size, place) for place in places[:FIRST_ROWS]]
        if hasattr(os, "posix_fadvise") and time.perf_counter() - started > FROM_MEMORY_S:
            with contextlib.suppress(OSError):  # without the advice, they are read all the same
                for place in places[FIRST_ROWS:]:
                    os.posix_fadvise(self._descriptor, place, size, os.POSIX_FADV_WILLNEED)
        rows += [os.pread(self._descriptor, size, place) for place in places[FIRST_ROWS:]]
        return b"".join(rows)


def write_rows(writer: Writer, folder: Path, through: int, *, anew: bool) -> Told:
    """Bring the file up to a vector's id; what is returned is to be kept in the store.

    A file that is missing, or of which half was deleted, is written anew. Raises IndexWriteError for a full disk.
    """
    told = None if anew else Told.by(writer)
    if told is not None and not (
        _reaches(folder / told.file, told) and writer.count_through(told.through) > told.count / 2
    ):
        told = None
    after = 0 if told is None else told.through
    through = max(after, through)
    reached = Told(
        f"{uuid.uuid4().hex[:12]}{SUFFIX}" if told is None else told.file,
        writer.dim(),
        through,
        (0 if told is None else told.count) + writer.count_through(through, after),
        writer.setting("heads"),
        _layout(writer.dim()).itemsize,
    )
    file, size = reached.file, reached.layout.itemsize
    with disk_failures(folder):
        make_folder(folder)
        flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if told is None else 0)
        try:
            with os.fdopen(open_plain(folder / file, flags), "wb") as stream:
                stream.truncate(after * size)  # a run that was killed may have left more
                for first, rows in _blocks(writer, reached, after, through):
                    stream.seek((first - 1) * size)  # what is left out takes no room on disk
                    stream.write(rows.view(np.uint8).data)
                stream.truncate(reached.through * size)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            if told is None:
                (folder / file).unlink(missing_ok=True)  # on a full disk it would only be in the way
            raise
    return reached


def _reaches(path: Path, told: Told) -> bool:
    try:
        facts = path.lstat()
        return (
            stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_size >= told.through * told.layout.itemsize
        )
    except OSError:
        return False


def _blocks(writer: Writer, told: Told, after: int, through: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(id of the first row, rows): neighbours together, those that are not there as zeros between them."""
    for ids, items, vectors in writer.rows_after(after, through, BLOCK_BYTES // told.layout.itemsize):
        ends = np.flatnonzero(np.diff(ids) > WIDE_GAP) + 1
        for part in np.split(np.arange(len(ids)), ends):
            first, last = int(ids[part[0]]), int(ids[part[-1]])
            rows = np.zeros(last - first + 1, told.layout)
            rows["item"][ids[part] - first] = items[part]
            rows["vector"][ids[part] - first] = vectors[part]
            there = rows["item"] > 0
            rows["sum"][there] = _sums(rows, np.arange(first, last + 1))[there]
            yield first, rows
