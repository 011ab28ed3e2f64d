"""What the recipe learns: data prepared once, and an image head trained on it for a choice of parts.

`build.py` takes every part; `ablation.py` leaves out one at a time.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from classes import ABOVE, DEFINITION, class_vectors, nouns
from colours import colours
from pictures import VIEWS, features
from PIL import Image
from sources import Drawing, debian_folder, drawings

from mmsearch.encoders.heads import project, unit_rows
from mmsearch.train.heads import merged
from mmsearch.train.loop import TrainSettings, fit_head
from mmsearch.train.pairs import Captioned, Pairs

FloatArray: TypeAlias = npt.NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[str]], FloatArray]
Opened: TypeAlias = Callable[[], Image.Image]

COLOUR = 0.6  # how often "a red apple" is drawn beside the other texts of an apple, once for all its colours
LONGEST_COLOURED = 30  # characters of a name that a colour is put before


NEAREST = 50  # texts of the training that say how crowded it is around a picture
USUAL = 0.56  # how near they usually are, as a cosine
TEXT_NEAREST = 100  # drawings that say how crowded it is around a text
EVERY = 4  # which drawings those are taken from
CONSTANT = 0.3  # what the other kind has where the crowd is written; small, so that it stays comparable among itself
EMPTY, TEXT_EMPTY = 223, 127  # the places for that: MiniLM's vectors are 0 there (they are two of three)

SETTINGS = TrainSettings(steps=400, dropout=0.5)


@dataclass(frozen=True)
class Parts:
    """What the recipe is made of. The defaults are what `lite` is."""

    temperature: float = 1.5  # of the classifier's probabilities
    top: int = 60  # classes of a picture; ConSE(10) in the paper
    definition: float = DEFINITION
    above: float = ABOVE
    share: float = 0.5  # of the learned vector beside the classifier's, which has 1
    early: bool = True  # features of earlier stages
    coloured: bool = True
    views: int = VIEWS
    heads: int = 3  # trained from different seeds and averaged
    crowd: float = 0.5  # how much less a picture answers that is near to texts of all kinds
    text_crowd: float = 0.75  # how much less a text answers that is near to pictures of all kinds
    left_out: tuple[str, ...] = ()  # sources
    settings: TrainSettings = SETTINGS


@dataclass(frozen=True)
class Drawn:
    """A drawing as it is kept: its colours, and where its picture lies."""

    drawing: Drawing
    path: Path
    colours: tuple[str, ...]

    def opened(self) -> Image.Image:
        """RGBA."""
        return Image.open(self.path)


def prepared(packages: Path, kept: Path) -> list[Drawn]:
    """Every drawing rendered once, those that cannot be left out; the list is kept beside them."""
    kept.mkdir(parents=True, exist_ok=True)
    each = list(drawings(packages))
    with ProcessPoolExecutor() as processes:
        drawn = list(processes.map(partial(_render, kept), range(len(each)), each, chunksize=50))
    return [one for one in drawn if one is not None]


def _render(kept: Path, place: int, drawing: Drawing) -> Drawn | None:
    path = kept / f"{place}.png"
    try:
        image = Image.open(path) if path.exists() else drawing.drawn()
        if not path.exists():
            image.save(path, compress_level=1)
        return Drawn(drawing, path, tuple(colours(image)))
    except (OSError, ValueError, Image.DecompressionBombError):  # three huge PNGs, and SVGs without a size
        return None


@dataclass(frozen=True)
class Learned:
    """Both heads as tensors of `encoders.heads`, and what made them."""

    tensors: dict[str, npt.NDArray[np.generic]]  # of the image head
    text_tensors: dict[str, npt.NDArray[np.generic]]
    texts: int

    def encode(self, seen: FloatArray) -> FloatArray:
        """(n, 2008) features -> (n, 384) unit rows."""
        tensors = {name: tensor.astype(np.float32) for name, tensor in self.tensors.items()}
        return project(self.kind, seen, tensors)

    def ask(self, embedded: FloatArray) -> FloatArray:
        """(n, 384) as the text tower gives them -> (n, 384) unit rows."""
        tensors = {name: tensor.astype(np.float32) for name, tensor in self.text_tensors.items()}
        return project(self.text_kind, embedded, tensors)

    @property
    def text_kind(self) -> str:
        """The row of `encoders.heads.HEADS` that reads the text tensors."""
        return "uncrowded_text" if "crowd" in self.text_tensors else "constant"

    @property
    def kind(self) -> str:
        """The row of `encoders.heads.HEADS` that reads the tensors."""
        if "share" not in self.tensors:
            return "conse"
        return "uncrowded" if "crowd" in self.tensors else "conse_and_mlp"


@dataclass(frozen=True)
class Ground:
    """All that training reads: features of every drawing in every view, and the classifier."""

    drawn: Sequence[Drawn]
    views: Sequence[npt.NDArray[np.float16]]  # each (drawings, 2008)
    weight: FloatArray  # (1280, 1000) of the classifier
    bias: FloatArray
    packages: Path
    embed: Embed

    def classifier(self, parts: Parts) -> dict[str, npt.NDArray[np.floating]]:
        """The tensors of `conse`."""
        synsets = nouns(debian_folder(self.packages, "wordnet-base") / "usr/share/wordnet/data.noun")
        vectors = unit_rows(class_vectors(synsets, self.embed, parts.definition, parts.above))
        return {
            "weight": self.weight.astype(np.float16),
            "bias": self.bias,
            "classes": vectors.astype(np.float16),
            "temperature": np.array([parts.temperature], dtype=np.float32),
            "top": np.array([parts.top], dtype=np.float32),
        }

    def learned(self, parts: Parts, tell: Callable[[str], None] = lambda line: None) -> Learned:
        """The head that `parts` make."""
        classifier = self.classifier(parts)
        known = Learned(classifier, {"beside": beside(EMPTY)}, 0)
        if parts.heads == 0:
            return known
        said, captioned = self.captioned(parts)
        width = self.views[0].shape[1] if parts.early else len(self.weight)
        views = [view[:, :width] for view in self.views[: parts.views]]
        pairs = Pairs(views, self.embed(said), captioned)
        knows = np.stack([known.encode(np.asarray(view, dtype=np.float32)) for view in self.views[: parts.views]])
        heads = []
        for seed in range(parts.heads):
            settings = TrainSettings(**{**vars(parts.settings), "seed": seed})
            heads.append(fit_head(pairs, knows, settings))
            tell(f"head {seed + 1} of {parts.heads} trained on {len(pairs)} things, {len(said)} texts")
        tensors = merged(heads, np.asarray(views[0][pairs.pictures], dtype=np.float32))
        if not parts.early:  # the earlier stages are there, and count nothing
            rows = self.views[0].shape[1] - width
            tensors["hidden.weight"] = np.pad(tensors["hidden.weight"], ((0, rows), (0, 0)))
        kept = {name: tensor.astype(np.float16 if tensor.ndim > 1 else np.float32) for name, tensor in tensors.items()}
        share = {"share": np.array([parts.share], dtype=np.float32)}
        tensors: dict[str, npt.NDArray[np.generic]] = classifier | kept | share
        plain = Learned(tensors, {"beside": beside(EMPTY)}, len(said))
        texts = self.embed(said)
        if np.abs(texts[:, [EMPTY, TEXT_EMPTY]]).max() > 1e-6:
            raise SystemExit(f"features {EMPTY} and {TEXT_EMPTY} of the text tower are not empty: take others")
        if parts.crowd:
            tensors = tensors | crowd(texts, NEAREST, USUAL, EMPTY, parts.crowd)
        if not (parts.crowd and parts.text_crowd):
            return Learned(tensors, plain.text_tensors, len(said))
        drawings = plain.encode(np.asarray(views[0][pairs.pictures][::EVERY], dtype=np.float32))
        usual = np.partition(texts[::EVERY] @ drawings.T, -TEXT_NEAREST, axis=1)[:, -TEXT_NEAREST:].mean()
        asked = crowd(drawings, TEXT_NEAREST, float(usual), TEXT_EMPTY, parts.text_crowd)
        return Learned(tensors | {"beside": beside(TEXT_EMPTY)}, asked | {"beside": beside(EMPTY)}, len(said))

    def asked(self, learned: Learned) -> Embed:
        """Texts -> (n, 384) unit rows, as the bundle's text head gives them."""
        return lambda texts: learned.ask(self.embed(texts))

    def captioned(self, parts: Parts) -> tuple[list[str], list[Captioned]]:
        """Texts, and which of them are said of which drawing."""
        places: dict[str, int] = {}
        captioned = []
        for picture, one in enumerate(self.drawn):
            texts = one.drawing.texts
            if not texts or one.drawing.source in parts.left_out:
                continue
            name = texts[0][0].lower()
            if parts.coloured and len(name) < LONGEST_COLOURED:
                texts += tuple((f"a {colour} {name}", COLOUR / len(one.colours)) for colour in one.colours)
            rows = tuple((places.setdefault(text, len(places)), weight) for text, weight in texts)
            captioned.append(Captioned(picture, rows, one.drawing.group))
        return list(places), captioned


def crowd(
    vectors: FloatArray, nearest: int, usual: float, place: int, share: float
) -> dict[str, npt.NDArray[np.generic]]:
    """What `uncrowded` and `uncrowded_text` read: unit rows (m, 384) of the other kind, and where it is written."""
    axis = np.zeros(vectors.shape[1], dtype=np.float32)
    axis[place] = -share / CONSTANT
    scale = np.abs(vectors).max() / 127
    return {
        "crowd": np.rint(vectors / scale).astype(np.int8),
        "crowd.scale": np.array([scale], dtype=np.float32),
        "crowd.nearest": np.array([nearest], dtype=np.float32),
        "crowd.usual": np.array([usual], dtype=np.float32),
        "crowd.axis": axis,
    }


def beside(place: int) -> FloatArray:
    """(384,), what one kind has where the other's crowd is written."""
    constant = np.zeros(384, dtype=np.float32)
    constant[place] = CONSTANT
    return constant


def seen(tower: Path, pictures: Sequence[Opened], side: int, view: int, kept: Path) -> npt.NDArray[np.float16]:
    """Features, read from `kept` if they are there."""
    if not kept.exists():
        np.save(kept, features(tower, pictures, side, view).astype(np.float16))
    found: npt.NDArray[np.float16] = np.load(kept)
    if len(found) != len(pictures):
        raise SystemExit(f"{kept} holds {len(found)} pictures, not {len(pictures)}: remove it and run again")
    return found
