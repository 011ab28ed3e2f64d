"""A bundle in 8 bits, made of one in full precision, and how near it comes to that one.

ONNX Runtime rounds the matrices to 8 bits when the bundle is made, a scale for each column, and what is multiplied with
them as it runs, so that no pictures are needed beforehand. What that costs differs from model to model. So both bundles
are asked about a sample, drawn pictures and everyday phrases, on the very processor that will run them; the figures
are kept in the card, and `auto` takes the one in 8 bits only where they agree.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.bundle import INT8, Bundle
from mmsearch.encoders.manifest import Tower
from mmsearch.encoders.preprocess import fit
from mmsearch.encoders.sessions import optimise
from mmsearch.encoders.writing import derive_bundle
from mmsearch.errors import ModelError, in_a_line
from mmsearch.everyday import QUERIES

LEAST_COSINE, LEAST_OVERLAP = 0.99, 0.95
BEST = 10
RECIPE = 1  # part of the fingerprint: another one makes other vectors
PICTURES_COSINE, TEXTS_COSINE, OVERLAP = "mean cosine of pictures", "mean cosine of texts", "overlap of the ten best"


def make_int8(source: Bundle, folder: Path) -> Bundle:
    """Writes a bundle in 8 bits, which carries how well it agrees with its source. Raises ModelError.

    The text tower stays in full precision where 8 bits would move its rows too far.
    """
    try:
        bundle = _made(source, folder, ("image", "text"))
        if bundle.agreement[TEXTS_COSINE] < LEAST_COSINE:
            bundle = _made(source, folder, ("image",))
    except Exception as error:  # what ONNX Runtime's quantisation meets in a graph, it raises as it comes
        raise ModelError(f"{source.name} cannot be made into 8 bits: {in_a_line(error)}.") from error
    return bundle


def agrees(bundle: Bundle) -> bool:
    """Whether a bundle in 8 bits may stand for the one that it was made of."""
    figures = bundle.agreement
    cosine = min(figures[PICTURES_COSINE], figures[TEXTS_COSINE])
    return cosine >= LEAST_COSINE and figures[OVERLAP] >= LEAST_OVERLAP


def told(bundle: Bundle) -> str:
    """The figures of a bundle in 8 bits, in a line for a person."""
    figures = ", ".join(f"{name} {value:.4f}" for name, value in bundle.agreement.items())
    verdict = "8 bits find the same" if agrees(bundle) else "8 bits do not find the same"
    return f"{verdict} ({figures}; at least {LEAST_COSINE} and {LEAST_OVERLAP} are asked for)"


def agreement(full: Bundle, other: Bundle) -> dict[str, float]:
    """Mean cosines of the rows of two bundles, and how many of the ten best pictures for a query are the same.

    Every phrase and every picture of the sample is a query; the mean over the one kind or the other, whichever is less.
    """
    pictures = sample_pictures()
    pixels = np.stack([fit(picture, full.pixels) for picture in pictures])
    shown = [bundle.project_images(bundle.image_features(pixels)) for bundle in (full, other)]
    said = [bundle.encode_texts(QUERIES) for bundle in (full, other)]
    itself = 2 * np.eye(len(pictures), dtype=np.float32)  # a picture is no answer to itself
    by_words = _overlap(*(words @ rows.T for words, rows in zip(said, shown, strict=True)))
    by_picture = _overlap(*(rows @ rows.T - itself for rows in shown))
    figures = {
        PICTURES_COSINE: _mean_cosine(*shown),
        TEXTS_COSINE: _mean_cosine(*said),
        OVERLAP: min(by_words, by_picture),
    }
    # Rows that are not finite agree with nothing; JSON knows no NaN
    return {name: value if np.isfinite(value) else 0.0 for name, value in figures.items()}


def _made(source: Bundle, folder: Path, quantised: Sequence[Tower]) -> Bundle:
    def towers(draft: Path) -> None:
        for tower in ("image", "text"):
            if tower in quantised:
                _quantise(source.folder / f"{tower}.onnx", draft / f"{tower}.onnx")
            else:
                for file in source.folder.glob(f"{tower}.onnx*"):
                    shutil.copy(file, draft / file.name)

    def compare(made: Bundle) -> Mapping[str, float]:
        return agreement(source, made)

    recipe = f"{source.fingerprint} int8 {RECIPE} {' '.join(quantised)}"
    return derive_bundle(
        source,
        folder,
        towers,
        name=source.name + INT8,
        fingerprint=hashlib.sha256(recipe.encode()).hexdigest(),
        compare=compare,
    )


def _quantise(tower: Path, quantised: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=quantised.parent) as plain, _without_advice():
        # Matrices alone, which are nearly all that a transformer computes; convolutions stay as they are
        quantize_dynamic(
            tower,
            Path(plain) / tower.name,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True},
        )
        optimise(Path(plain) / tower.name, quantised)


@contextmanager
def _without_advice() -> Iterator[None]:
    """It recommends, by the root logger, a preparation that the graph has had."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _mean_cosine(rows: FloatArray, others: FloatArray) -> float:
    return float((rows * others).sum(axis=1).mean())  # both of length 1


def _overlap(scores: FloatArray, others: FloatArray) -> float:
    """(q, n) scores of the same candidates twice -> the share of a query's best that both have, on average."""
    best, also = (np.argsort(-each, axis=1, kind="stable")[:, :BEST] for each in (scores, others))
    both = zip(best.tolist(), also.tolist(), strict=True)
    return float(np.mean([len({*row} & {*other}) / BEST for row, other in both]))


# The sample

SIDE = 256
OF_A_KIND = 12

Random = np.random.Generator


def sample_pictures(of_a_kind: int = OF_A_KIND) -> list[Image.Image]:
    """Drawn pictures of eight kinds, always the same ones."""
    random = np.random.Generator(np.random.PCG64(0))
    return [draw(random) for draw in KINDS for _ in range(of_a_kind)]


def _landscape(random: Random) -> Image.Image:
    """Sky over ground, a sun, hills or a house."""
    picture = _gradient(_colour(random, 120), _colour(random, 60))
    pen = ImageDraw.Draw(picture)
    horizon = int(random.integers(90, 190))
    pen.ellipse(_box(random, 20, 60), fill=_colour(random, 150))
    for _ in range(int(random.integers(0, 4))):
        x, width, height = random.integers((0, 40, 20), (SIDE, 120, 90)).tolist()
        pen.polygon([(x - width, horizon), (x, horizon - height), (x + width, horizon)], fill=_colour(random, 20))
    pen.rectangle((0, horizon, SIDE, SIDE), fill=_colour(random, 0))
    if random.random() < 0.5:
        x, wide = random.integers((20, 30), (160, 80)).tolist()
        pen.rectangle((x, horizon - wide, x + wide, horizon + 20), fill=_colour(random, 0))
        roof = [(x - 8, horizon - wide), (x + wide // 2, horizon - 2 * wide), (x + wide + 8, horizon - wide)]
        pen.polygon(roof, fill=_colour(random, 0))
    return picture


def _thing(random: Random) -> Image.Image:
    """One figure in the middle of a blurred ground."""
    picture = _clouds(random)
    pen, (x, y) = ImageDraw.Draw(picture), random.integers(90, 166, 2).tolist()
    size, corners = int(random.integers(30, 90)), int(random.integers(3, 9))
    pen.regular_polygon((x, y, size), corners, int(random.integers(0, 360)), fill=_colour(random, 0))
    pen.ellipse((x - size / 3, y - size / 3, x + size / 3, y + size / 3), fill=_colour(random, 80))
    return picture


def _crowd(random: Random) -> Image.Image:
    """Many small things of two sorts."""
    picture = Image.new("RGB", (SIDE, SIDE), _colour(random, 0))
    pen, colours = ImageDraw.Draw(picture), [_colour(random, 0) for _ in range(3)]
    for number in range(int(random.integers(15, 90))):
        draw = pen.ellipse if number % 3 else pen.rectangle
        draw(_box(random, 8, 36), fill=colours[number % 3])
    return picture


def _face(random: Random) -> Image.Image:
    """An oval with eyes, a mouth, hair and shoulders."""
    picture = _gradient(_colour(random, 60), _colour(random, 60))
    pen, skin = ImageDraw.Draw(picture), _colour(random, 90)
    x, wide = int(random.integers(100, 156)), int(random.integers(34, 60))
    pen.ellipse((x - 2 * wide, 190, x + 2 * wide, 330), fill=_colour(random, 0))
    pen.ellipse((x - wide - 8, 40, x + wide + 8, 180), fill=_colour(random, 0))
    pen.ellipse((x - wide, 60, x + wide, 210), fill=skin)
    for eye in (x - wide / 2, x + wide / 2):
        pen.ellipse((eye - 7, 115, eye + 7, 127), fill="black")
    pen.arc((x - wide / 2, 140, x + wide / 2, 185), 20, 160, fill="darkred", width=5)
    return picture


def _page(random: Random) -> Image.Image:
    """Lettering on paper, as on a screen, a page or a sign."""
    paper, ink = _colour(random, 190), _colour(random, 0, 90)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    pen, size = ImageDraw.Draw(picture), int(random.integers(10, 48))
    for top in range(8, SIDE, int(size * 1.5)):
        words = " ".join(QUERIES[int(random.integers(len(QUERIES)))] for _ in range(3))
        pen.text((8, top), words, fill=ink, font_size=size)
    if random.random() < 0.4:
        pen.rectangle(_box(random, 60, 130), fill=_colour(random, 0))
    return picture


def _pattern(random: Random) -> Image.Image:
    """Stripes, checks or rings."""
    down, across = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    turned = across * np.cos(angle := random.uniform(0, 3)) + down * np.sin(angle)
    ways = (turned, np.hypot(across - 128, down - 128), np.maximum(across % 64, down % 64))
    waves = np.sin(ways[int(random.integers(3))] * random.uniform(0.08, 0.6))[:, :, None]
    shades = np.where(waves > random.uniform(-0.5, 0.5), _colour(random, 0), _colour(random, 0))
    return Image.fromarray(shades.astype(np.uint8))


def _clouds(random: Random) -> Image.Image:
    """Soft blobs of colour, as of what is out of focus."""
    side = int(random.integers(2, 9))
    small = random.integers(0, 256, (side, side, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _night(random: Random) -> Image.Image:
    """Lights in the dark, with the grain of a long exposure."""
    picture = Image.new("RGB", (SIDE, SIDE), _colour(random, 0, 40))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(5, 60))):
        pen.ellipse(_box(random, 2, 14), fill=_colour(random, 150))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 4))), dtype=np.float32)
    return _clipped(blurred + random.normal(0, random.uniform(3, 30), blurred.shape))


KINDS: tuple[Callable[[Random], Image.Image], ...] = (
    _landscape,
    _thing,
    _crowd,
    _face,
    _page,
    _pattern,
    _clouds,
    _night,
)

Colour = tuple[int, int, int]


def _colour(random: Random, darkest: int, brightest: int = 255) -> Colour:
    red, green, blue = random.integers(darkest, brightest + 1, 3).tolist()
    return red, green, blue


def _box(random: Random, smallest: int, largest: int) -> tuple[int, int, int, int]:
    x, y = random.integers(0, SIDE, 2).tolist()
    wide, high = random.integers(smallest, largest, 2).tolist()
    return x - wide, y - high, x + wide, y + high


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    return _clipped(np.broadcast_to(np.array(top) * (1 - share) + np.array(bottom) * share, (SIDE, SIDE, 3)))


def _clipped(shades: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(shades.clip(0, 255).astype(np.uint8))
