"""An index of any size without pictures: vectors of a made-up workload, with paths, dates and facts to filter by.

Written in bulk, since a million items one by one would take longer than what is to be measured. Queries are looked up
by name ("text 17", "image 3") by an encoder that has them all: a search costs everything but the encoding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmsearch.store.metadata import Store
from mmsearch.store.records import FloatArray
from tests.benchmarks.crossmodal import Workload

SETTINGS = {"model": "crossmodal", "fingerprint": "", "encoder": "own"}
# What filters leave: a half, a hundredth, a ten-thousandth
FILTERS = {
    "half": {
        "date": {"after": "2010"},
        "folder": {"under": "/photos/0"},
        "kind": {"kind": "image"},
        "own fact": {"where": {"half": 1}},
    },
    "1 %": {
        "date": {"after": "2005-01", "before": "2005-01-08"},
        "folder": {"under": "/photos/0/07"},
        "own fact": {"where": {"hundredth": 7}},
    },
    "0.01 %": {
        "date": {"after": "2005-02-03", "before": "2005-02-04"},
        "folder": {"under": "/photos/0/07/33"},
        "own fact": {"where": {"rare": 7}},
    },
}
YEARS, MONTHS, DAYS = 20, 12, 28  # of 2000 to 2019


class Known:
    """An encoder that knows the vectors of some queries by name."""

    name = "crossmodal"

    def __init__(self, texts: FloatArray, images: FloatArray) -> None:
        self._rows = {"text": texts, "image": images}
        self.dim = texts.shape[1]

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """By their names; what has none, as the everyday queries, is one of the texts, in turn."""
        rows = []
        for place, text in enumerate(texts):
            kind, _, number = text.partition(" ")
            known = kind in self._rows and number.isdigit()
            rows.append(self._rows[kind][int(number)] if known else self._rows["text"][-1 - place])
        return np.stack(rows)

    def encode_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Of no pictures: there are none."""
        raise NotImplementedError


def fill(folder: Path, blocks: Iterator[FloatArray], settings: dict[str, str]) -> None:
    """Put rows of vectors into an index as pictures; half of it, 1 % and 0.01 % can be filtered for."""
    number = 0
    store = Store.create(folder, settings)
    with store.read() as reader:
        counted = [reader.connection.execute(f"SELECT ifnull(max(id), 0) FROM {name}") for name in ("files", "items")]
        files, items = (rows.fetchone()[0] + 1 for rows in counted)  # the first new ids
    for block in blocks:
        places = range(number, number + len(block))
        with store.write() as writer, writer.transaction():
            put = writer.connection.executemany
            put(
                """INSERT INTO files (id, path, kind, size_bytes, modified_ns, content_hash, indexed_at)
                   VALUES (?, ?, 'image', ?, ?, ?, '2026-01-01')""",
                ((files + n, _path(n), 4_000_000 + n, n, f"{n:040x}") for n in places),
            )
            put(
                """INSERT INTO items (id, kind, file_id, width, height, format, taken_at, facts, added_at)
                   VALUES (?, 'image', ?, 4000, 3000, 'JPEG', ?, ?, '2026-01-01')""",
                ((items + n, files + n, _taken_at(n), _facts(n)) for n in places),
            )
            put(
                "INSERT INTO vectors (item_id, kind, vector) VALUES (?, 'image', ?)",
                ((items + n, row.tobytes()) for n, row in zip(places, block.astype(np.float16), strict=True)),
            )
            put("INSERT INTO keywords (rowid, words, place) VALUES (?, '', ?)", ((items + n, _path(n)) for n in places))
        number += len(block)
    store.close()


def fill_with(folder: Path, workload: Workload) -> None:
    """An index of a workload, whose queries `Known` answers for."""
    fill(folder, workload.images(), {"dim": str(workload.dim), **SETTINGS})


def _path(number: int) -> str:
    return f"/photos/{number % 2}/{number // 2 % 50:02}/{number // 100 % 100:02}/{number:08}.jpg"


def _facts(number: int) -> str:
    return f'{{"half":{number % 2},"hundredth":{number % 100},"rare":{number % 10_000}}}'


def _taken_at(number: int) -> str:
    """Spread evenly over 20 years of 12 months of 28 days, in no order."""
    day = number * 7919 % (YEARS * MONTHS * DAYS)
    month = day // DAYS
    return f"{2000 + month // MONTHS}-{1 + month % MONTHS:02}-{1 + day % DAYS:02}T12:00:00"
