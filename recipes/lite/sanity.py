"""Does the model find what a plain word names? Drawings and wallpapers of two Debian packages say roughly.

Not a benchmark: who is right is read off file names ("orso_architetto_01.png" is a bear), at most three pictures a
word, and the parameters of the recipe were looked at on the same pictures.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLIPART = Path("/usr/share/openclipart/png")
WALLPAPERS = Path("/usr/share/backgrounds/mate")
PACKAGES = "openclipart-png mate-backgrounds"
FOLDERS = (
    *("animals", "food", "transportation", "recreation", "tools", "plants"),
    *("office", "electronics", "buildings", "people", "computer"),
)
PICTURES_A_WORD = 3
SHOWN_ON_WALLPAPERS = {
    "LadyBird": "ladybug",
    "YellowFlower": "flower",
    "FreshFlower": "flower",
    "Garden": "flower",
    "Elephants": "elephant",
}


@dataclass(frozen=True)
class Sanity:
    """Queries, the pictures they are asked of, and which are right."""

    words: list[str]
    pictures: list[Path]
    right: npt.NDArray[np.bool_]  # (words, pictures)


@dataclass(frozen=True)
class Recall:
    """Shares of the queries whose first right picture is among the first 1, 5, 10."""

    queries: int
    pictures: int
    at_1: float
    at_5: float
    at_10: float


def sanity_set() -> Sanity:
    """The same pictures wherever the same packages are installed."""
    if not CLIPART.is_dir() or not WALLPAPERS.is_dir():
        raise SystemExit(f"The figures of the card need pictures: apt-get install {PACKAGES}")
    lines = (Path(__file__).with_name("words.tsv")).read_text(encoding="utf-8").splitlines()
    word_of = {part: word for word, parts in (line.split("\t") for line in lines) for part in parts.split()}
    shown: dict[Path, set[str]] = {}
    for folder in FOLDERS:
        for path in sorted((CLIPART / folder).rglob("*.png")):
            words = [word_of[part] for part in path.stem.lower().split("_") if part in word_of]
            if words and not path.is_symlink() and sum(words[0] in of for of in shown.values()) < PICTURES_A_WORD:
                shown[path] = set(words)
    for path in sorted(WALLPAPERS.rglob("*")):
        if path.suffix == ".jpg" and "_" not in path.stem:  # "_3840x2160": the same once more
            shown[path] = {SHOWN_ON_WALLPAPERS[path.stem]} if path.stem in SHOWN_ON_WALLPAPERS else set()
    words = [word for word in dict.fromkeys(word_of.values()) if any(word in of for of in shown.values())]
    return Sanity(words, list(shown), np.array([[word in of for of in shown.values()] for word in words]))


def opened(path: Path) -> Image.Image:
    """A picture, of large JPEGs a small one."""
    image = Image.open(path)
    image.draft("RGB", (800, 800))
    return image


def recall(texts: npt.NDArray[np.float32], images: npt.NDArray[np.float32], sanity: Sanity) -> Recall:
    """texts (words, dim), images (pictures, dim), both unit rows."""
    scores = texts @ images.T
    best_right = np.where(sanity.right, scores, -np.inf).max(axis=1)  # (words,)
    ranks = 1 + (scores > best_right[:, None]).sum(axis=1)
    at_1, at_5, at_10 = (float((ranks <= k).mean()) for k in (1, 5, 10))
    return Recall(len(sanity.words), len(sanity.pictures), at_1, at_5, at_10)
