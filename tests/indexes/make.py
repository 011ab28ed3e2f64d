"""The index that is kept of each version of the tables: `python -m tests.indexes.make`, with that version's code.

It writes version-N.tar.gz and the answers, expected.json. Its images lie in FOLDER, which is not kept.
"""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mmsearch import Index
from mmsearch.encoders.base import FloatArray
from mmsearch.store import schema

FOLDER = Path("/tmp/old/photos")
HERE = Path(__file__).parent
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (10, 30, 230)}


class GridEncoder:
    """The mean colours of an image's quarters; of a text, the colours that it names."""

    name, dim = "grid", 12

    def encode_images(self, images: Iterable[Image.Image]) -> FloatArray:
        """(n, 12) float32."""
        small = [image.convert("RGB").resize((2, 2), Image.Resampling.BOX) for image in images]
        return self._unit([np.asarray(image, np.float32).ravel() + 1 for image in small])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """(n, 12) float32."""
        pure = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
        sums = [np.sum([pure[word] for word in text.split() if word in pure] or [(80, 80, 80)], 0) for text in texts]
        return self._unit([np.tile(row, 4).astype(np.float32) + 1 for row in sums])

    def _unit(self, rows: Sequence[FloatArray]) -> FloatArray:
        matrix = np.asarray(rows, np.float32)
        unit: FloatArray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return unit


def draw() -> None:
    """The images and texts that the index is made from."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "below").mkdir(parents=True)
    for number, (name, colour) in enumerate(COLOURS.items()):
        for step in range(4):
            image = Image.new("RGB", (40 + number, 30 + step), colour)
            ImageDraw.Draw(image).rectangle((0, 0, 5 * step + 1, 9), fill=(128, 128, 10 * number))
            image.save((FOLDER / "below" if step > 1 else FOLDER) / f"{name} {step}.png")
    (FOLDER / "red 0.txt").write_text("a red caption")
    (FOLDER / "notes.md").write_text("green passages are read\n")
    (FOLDER / "broken.png").write_text("nothing")


def answers(index: Index) -> list[list[object]]:
    """All hits of three queries: kind, path, text, own id, score."""
    return [
        [
            hit.kind,
            hit.path and hit.path.removeprefix("/tmp/old/"),
            hit.text,
            None if hit.id.startswith("mm-") else hit.id,
            round(hit.score, 3),
        ]
        for query in COLOURS
        for hit in index.search(query, k=20)
    ]


def main() -> None:
    """Make the index of this version and pack it."""
    draw()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"version-{schema.VERSION}"
        with Index(folder, encoder=GridEncoder()) as index:
            index.add(FOLDER)
            violet = Image.new("RGB", (20, 20), (250, 10, 240))
            index.add_images(
                [violet], ids=["sku-1"], facts=[{"price": 12, "colour": "violet"}], captions=["red and blue"]
            )
            index.add_texts(["blue words of my own"], ids=["note-1"], facts=[{"price": 3}])
            hits, status = answers(index), index.status()
        with tarfile.open(HERE / f"{folder.name}.tar.gz", "w:gz") as archive:
            for name in ("index.db", "vectors"):
                archive.add(folder / name, f"{folder.name}/{name}")
    counts = {name: getattr(status, name) for name in ("images", "passages", "captions")}
    (HERE / "expected.json").write_text(json.dumps({"hits": hits} | counts, indent=1))


if __name__ == "__main__":
    main()
