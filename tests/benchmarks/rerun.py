"""Running `index` again over many unchanged files, as a ratio to one bare walk over the same folder."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.records import KINDS, NewFile, NewItem
from mmsearch.store.vectors import VectorIndex
from tests.benchmarks.measure import Row, median_seconds


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder. The files are one byte each and are entered in the store as if they had been read."""
    count = 10_000 if quick else 100_000
    photos, index = folder / "photos", folder / "index"
    many_files(photos, count)
    with Index(index, model="lite") as made:
        made.add_texts(["so that the index is made"])
    enter(index, photos, 384)
    again = median_seconds(["index", str(photos), "-i", str(index), "--quiet"], times=3)
    started = time.perf_counter()
    assert sum(1 for _ in _walk(photos)) == count
    bare = time.perf_counter() - started
    yield Row(
        f"index again, {count:,} unchanged files",
        f"{again:.2f} s, {again / bare:.1f} x a bare walk with one stat a file",
        {"count": count, "seconds": again, "of_bare_walk": again / bare},
    )


def many_files(folder: Path, count: int) -> None:
    """Of one byte each, a thousand to a folder."""
    for number in range(count):
        below = folder / f"{number // 1_000:03}"
        if number % 1_000 == 0:
            below.mkdir(parents=True)
        (below / f"{number:06}.jpg").write_bytes(b"x")


def enter(index: Path, photos: Path, dim: int) -> None:
    """Put files into the store of an index as if they had been read, and build it."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((200, dim), np.float32)
    store = Store(index)
    with store.write() as writer:
        with writer.transaction():
            for number, (path, facts) in enumerate(_walk(photos)):
                vector = centres[number % len(centres)] + random.standard_normal(dim, np.float32)
                file_id = writer.put_file(NewFile(path, "image", facts.st_size, facts.st_mtime_ns, f"{number:040}"))
                writer.put_items([NewItem("image", vector / np.linalg.norm(vector))], file_id)
        for kind in KINDS:
            VectorIndex(store).build(writer, kind)
    store.close()


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path))
            else:
                yield entry.path, entry.stat()
