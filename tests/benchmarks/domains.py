"""Two domains that `lite` has not seen, as tables of pairs: symbols by their Unicode names, and icons by theirs.

    symbols   glyphs of signs, arrows, dingbats; learned from four families of fonts, tested on DejaVu Sans
    icons     freedesktop icons of Breeze and Oxygen; learned from most names, tested on the others

Neither fonts nor these themes are among what the recipe of `lite` learns from. Of symbols, a style is held out: the
names of the test are those of the training, drawn by another hand. Of icons, names are: those of the test, and every
drawing that one of them shares with another, are nowhere in the training. What is general is asked of Tux Paint's
stamps, which are held out from `lite` (recipes/lite/held_out.py). Debian packages are fetched by name and unpacked,
never installed.
"""

import csv
import hashlib
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmsearch.training import Joined

FONTS = {
    "train": (
        "fonts-symbola/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf",
        "fonts-noto-core/usr/share/fonts/truetype/noto/NotoSansSymbols-Regular.ttf",
        "fonts-noto-core/usr/share/fonts/truetype/noto/NotoSansSymbols2-Regular.ttf",
        "fonts-noto-core/usr/share/fonts/truetype/noto/NotoSansMath-Regular.ttf",
        "fonts-freefont-ttf/usr/share/fonts/truetype/freefont/FreeSerif.ttf",
        "fonts-freefont-ttf/usr/share/fonts/truetype/freefont/FreeSans.ttf",
    ),
    "test": ("fonts-dejavu-core/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",),
}
PACKAGES = (
    *("fonts-symbola", "fonts-noto-core", "fonts-freefont-ttf", "fonts-dejavu-core"),
    *("breeze-icon-theme", "oxygen-icon-theme", "tuxpaint-stamps-default"),
)
BREEZE, OXYGEN = "breeze-icon-theme/usr/share/icons/breeze", "oxygen-icon-theme/usr/share/icons/oxygen/base"
STAMPS = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
SIGNS = ("So", "Sm", "Sc")  # Unicode's categories: other symbols, mathematical, currency
SIDE_PX = 224
TESTED_PERCENT = 40  # of the names of icons


def fetched(into: Path) -> Path:
    """The folder with all packages unpacked."""
    into.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not (into / name).is_dir():
            subprocess.run(["apt-get", "download", "-q", name], cwd=into, check=True, capture_output=True)
            subprocess.run(["dpkg-deb", "-x", str(next(into.glob(f"{name}_*.deb"))), str(into / name)], check=True)
    return into


def symbols(packages: Path, into: Path) -> Path:
    """Draw them; gives the table of pairs (path, caption, split)."""
    tested = _covered(packages / FONTS["test"][0])
    rows = []
    for split, fonts in FONTS.items():
        for font in fonts:
            drawn = ImageFont.truetype(str(packages / font), 150)
            for point in sorted(tested & _covered(packages / font)):
                name = unicodedata.name(chr(point)).lower()
                path = into / f"{Path(font).stem}-{point:x}.png"
                if not path.exists():
                    _glyph(chr(point), drawn).save(path)
                rows.append((path.name, name, split))
    return _written(into / "symbols.csv", rows)


def icons(packages: Path, into: Path) -> Path:
    """Draw them; gives the table of pairs (path, caption, split)."""
    breeze = dict(_breeze(packages / BREEZE))
    oxygen = dict(_oxygen(packages / OXYGEN))
    drawn, joined = [], Joined()
    for name in sorted(breeze.keys() & oxygen.keys()):
        for theme, source in (("breeze", breeze[name]), ("oxygen", oxygen[name])):
            path = into / f"{theme}-{name}.png"
            if not path.exists():
                _icon(source).save(path)
            joined.join(name, hashlib.sha256(path.read_bytes()).hexdigest())
            drawn.append((path.name, name))
    rows = []
    for file, name in drawn:
        tested = int(hashlib.sha256(joined.of(name).encode()).hexdigest(), 16) % 100 < TESTED_PERCENT
        rows.append((file, name.replace("-", " ").replace("_", " "), "test" if tested else "train"))
    return _written(into / "icons.csv", rows)


def stamps(packages: Path) -> tuple[list[Path], list[str]]:
    """General pictures and the sentences that should find them."""
    pictures, texts = [], []
    for text in sorted((packages / STAMPS).rglob("*.txt")):
        if text.with_suffix(".png").exists():
            pictures.append(text.with_suffix(".png"))
            texts.append(text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip())
    return pictures, texts


def _covered(font: Path) -> set[int]:
    from fontTools.ttLib import TTFont

    return {
        point
        for point in TTFont(font).getBestCmap()
        if unicodedata.category(chr(point)) in SIGNS and unicodedata.name(chr(point), "")
    }


def _glyph(sign: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    left, top, right, bottom = font.getbbox(sign)
    at = ((SIDE_PX - right - left) / 2, (SIDE_PX - bottom - top) / 2)
    ImageDraw.Draw(image).text(at, sign, fill="black", font=font)
    return image


def _breeze(folder: Path) -> Iterator[tuple[str, Path]]:
    """The largest drawing of each name."""
    for size in ("16", "22", "24", "32", "48", "64"):
        for path in sorted(folder.glob(f"*/{size}/*.svg")):
            if path.resolve().is_file():
                yield path.stem, path.resolve()


def _oxygen(folder: Path) -> Iterator[tuple[str, Path]]:
    for size in (16, 22, 32, 48, 64, 128, 256):
        for path in sorted((folder / f"{size}x{size}").rglob("*.png")):
            yield path.stem, path.resolve()


def _icon(path: Path) -> Image.Image:
    if path.suffix == ".png":
        image = Image.open(path).convert("RGBA")
    else:
        import io

        import resvg_py

        drawn = resvg_py.svg_to_bytes(svg_path=str(path), width=SIDE_PX, height=SIDE_PX)
        image = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def _written(table: Path, rows: list[tuple[str, str, str]]) -> Path:
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])
    return table
