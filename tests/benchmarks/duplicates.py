"""Which versions of a picture are told from different pictures: by likeness, and by perceptual hashes beside it.

Clip art and wallpapers as Debian has them (openclipart-png; gnome-backgrounds, mate-backgrounds), and drawn pages of
text, all of one layout, which blur to nearly the same. Versions are what people make of a picture that has any details;
some wallpapers have none. Different pictures are told by each picture's nearest neighbours among the others: those are
what a wrong group would be made of. A few of them are versions all the same, since clip art is copied and recoloured;
PRINT_WRONG=1 lists them. Left out are the thousand stars that a program drew, each nearly the next.
"""

import io
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mmsearch import load_encoder
from mmsearch.duplicates import NEAR, SIDE, THRESHOLD, likenesses, planes
from mmsearch.embedding import embed_pixels, pixels_of
from mmsearch.encoders.preprocess import PixelSpec, fit
from mmsearch.media import load_rgb
from mmsearch.store.records import FloatArray
from tests.benchmarks.measure import Row

ART, WALLPAPERS = Path("/usr/share/openclipart/png"), Path("/usr/share/backgrounds")
AT_ONCE = 16
HASH_DISTANCE = 8  # bits of 64; what imagehash's users take


def _jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _cut(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = picture.size
    return picture.crop((int(left * width), int(top * height), int((1 - right) * width), int((1 - bottom) * height)))


def _hue(picture: Image.Image) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda level: (level + 85) % 256), saturation, value)).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "40 % of the size": lambda it: it.resize((max(8, it.width * 2 // 5), max(8, it.height * 2 // 5))),
    "JPEG of quality 30": lambda it: _jpeg(it, 30),
    "grey": lambda it: it.convert("L").convert("RGB"),
    "other hues": _hue,
    "30 % brighter": lambda it: ImageEnhance.Brightness(it).enhance(1.3),
    "40 % darker": lambda it: ImageEnhance.Brightness(it).enhance(0.6),
    "5 % cut off all round": lambda it: _cut(it, 0.05, 0.05, 0.05, 0.05),
    "10 % cut off all round": lambda it: _cut(it, 0.1, 0.1, 0.1, 0.1),
    "15 % cut off one side": lambda it: _cut(it, 0.15, 0, 0, 0),
    "20 % cut off two sides": lambda it: _cut(it, 0.2, 0, 0, 0.2),
    "a black border of 5 %": lambda it: ImageOps.expand(it, it.width // 20, "black"),
}


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure."""
    chosen = random.Random(3)
    art, wallpapers = (
        sorted(path for path in ART.rglob("*.png") if path.parent.name != "stars"),
        sorted(path for path in WALLPAPERS.rglob("*.*") if path.is_file()),
    )
    if not art or not wallpapers:
        yield Row("duplicates", "left out: apt-get install openclipart-png gnome-backgrounds mate-backgrounds", {})
        return
    art = chosen.sample(art, 150 if quick else 3_000)
    wallpapers = [path for path in wallpapers if path.suffix in (".png", ".jpg", ".jpeg", ".webp")]
    wallpapers = wallpapers[: 15 if quick else None]
    pictures = [_loaded(path) for path in (*wallpapers, *art)]
    pages = [_page(number) for number in range(15 if quick else 100)]
    names = [*map(str, (*wallpapers, *art)), *(f"page {number}" for number in range(len(pages)))]
    changed = pictures[: len(wallpapers)] + pictures[len(wallpapers) :][: 30 if quick else 300]
    changed = [picture for picture in changed if _has_details(picture)]
    measure = _Measure()
    known = [measure(picture) for picture in (*pictures, *pages)]
    originals = [measure(picture) for picture in changed]
    for name, change in CHANGES.items():
        pairs = [(first, measure(change(picture))) for first, picture in zip(originals, changed, strict=True)]
        yield _row(f"versions: {name}", pairs)
    vectors = np.stack([vector for vector, _, _ in known])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1)[:, :5]
    for name, part in (("pictures", range(len(pictures))), ("pages of text", range(len(pictures), len(known)))):
        pairs = sorted({tuple(sorted((one, int(other)))) for one in part for other in nearest[one]})
        yield _row(f"different {name}, each with its 5 nearest", [(known[one], known[other]) for one, other in pairs])
        if os.environ.get("PRINT_WRONG"):
            for one, other in pairs:
                likeness = _likeness(known[one], known[other])
                if likeness > THRESHOLD - 0.05 and cosines[one, other] >= NEAR:
                    print(f"{likeness:.3f} {cosines[one, other]:.3f} {names[one]} {names[other]}", file=sys.stderr)


Seen = tuple[FloatArray, np.ndarray, np.ndarray | None]  # vector, grey (SIDE, SIDE), and bits of a perceptual hash


class _Measure:
    """A picture as it is compared."""

    def __init__(self) -> None:
        self._encoder = load_encoder("lite")
        self._spec = pixels_of(self._encoder)
        try:
            import imagehash  # beside ours, where it is installed
        except ImportError:
            self._hash = None
        else:
            self._hash = imagehash.phash

    def __call__(self, picture: Image.Image) -> Seen:
        spec = PixelSpec(SIDE, SIDE, resize="squash", interpolation="bilinear")
        (embedded,) = embed_pixels(self._encoder, [fit(picture, self._spec)])
        bits = None if self._hash is None else self._hash(picture).hash.ravel()
        return embedded.vector, planes(fit(picture, spec)), bits


def _row(what: str, pairs: list[tuple[Seen, Seen]]) -> Row:
    near = np.array([float(one[0] @ other[0]) for one, other in pairs]) >= NEAR
    alike = np.array([_likeness(one, other) for one, other in pairs])
    values = {"pairs": float(len(pairs)), "near": float(near.mean())}
    for threshold in (0.8, THRESHOLD, 0.95):
        values[f"found at {threshold}"] = float((near & (alike >= threshold)).mean())
    if pairs[0][0][2] is not None:
        apart = np.array([int(np.count_nonzero(one[2] != other[2])) for one, other in pairs])
        values[f"near and phash within {HASH_DISTANCE}"] = float((near & (apart <= HASH_DISTANCE)).mean())
    figure = ", ".join(
        f"{name} {value:.1%}" if name != "pairs" else f"{value:,.0f} pairs" for name, value in values.items()
    )
    return Row(what, figure, values)


def _likeness(one: Seen, other: Seen) -> float:
    return float(likenesses(one[1], other[1][None])[0])


def _has_details(picture: Image.Image) -> bool:
    seen = planes(fit(picture, PixelSpec(SIDE, SIDE, resize="squash", interpolation="bilinear")))
    return bool(likenesses(seen, seen[None])[0] > 0)


def _loaded(path: Path) -> Image.Image:
    picture = load_rgb(str(path), PixelSpec(400, 400, resize="within"))
    picture.thumbnail((400, 400))
    return picture


def _page(number: int) -> Image.Image:
    """A page of words, different ones in the same layout."""
    rng = random.Random(number)
    page = Image.new("RGB", (420, 594), "white")
    draw = ImageDraw.Draw(page)
    for line in range(40):
        words = " ".join("".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(2, 9))) for _ in range(12))
        draw.text((40, 40 + 13 * line), words[: rng.randint(40, 56)], fill="black")
    return page
