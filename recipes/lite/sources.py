"""The drawings that `lite` learns from, and what their sources say of them. All of it comes from package registries.

    npm     @iconify-json/{noto, noto-v1, twemoji, fluent-emoji, fluent-emoji-flat, fluent-emoji-high-contrast},
            @lobehub/fluent-emoji-3d, flag-icons, cldr-annotations-full, cldr-annotations-derived-full
    Debian  openclipart-png, openclipart-svg (for what its authors wrote), tango-icon-theme, wordnet-base

OpenMoji is left out: its licence hands itself on to what is made from it (CC BY-SA).
"""

import html
import io
import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

NPM = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fluent-emoji-high-contrast": "1.2.6",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "flag-icons": "7.5.0",
    "cldr-annotations-full": "48.2.0",
    "cldr-annotations-derived-full": "48.2.0",
}
DEBIAN = ("openclipart-png", "openclipart-svg", "tango-icon-theme", "wordnet-base")
SIDE = 320  # pixels, the longer side of what is kept of a picture; the tower reads 260 x 260
LARGEST = 60_000_000  # pixels; two of openclipart's PNGs have 623 million

NAME, DESCRIPTION, KEYWORDS, LIST, FOLDER = 1.0, 0.7, 1.5, 0.4, 0.2  # how often each is drawn as a picture's text
MOST_KEYWORDS = 10


@dataclass(frozen=True)
class Drawing:
    """A picture of a source and what is said of it: texts, each with the weight that training draws it with.

    group: what it shows; emoji of one code point in several styles are one group. markup: SVG, or None for a file.
    """

    source: str
    group: str
    texts: tuple[tuple[str, float], ...]
    path: Path | None = None
    markup: str | None = None

    def drawn(self) -> Image.Image:
        """RGBA, `SIDE` pixels at the longer side. Raises as `opened` does."""
        if self.markup is not None:
            return rendered(markup=self.markup)
        assert self.path is not None
        return opened(self.path)


def opened(path: Path) -> Image.Image:
    """A picture file, SVG too, as RGBA of at most `SIDE` pixels. Raises ValueError or OSError where there is none."""
    if path.suffix in (".svg", ".svgz"):
        return rendered(path=path)
    image = Image.open(path)
    if image.width * image.height > LARGEST:
        raise ValueError(f"{path} has {image.width} x {image.height} pixels")
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    image = image.convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3)
    return image


def rendered(markup: str | None = None, path: Path | None = None) -> Image.Image:
    """An SVG as RGBA."""
    source = {"svg_string": markup} if markup is not None else {"svg_path": str(path)}
    png = resvg_py.svg_to_bytes(width=SIDE, skip_system_fonts=True, **source)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return image


def download(into: Path, npm: dict[str, str], debian: Sequence[str]) -> None:
    """Unpacks packages of both registries, each into a folder of its name; nothing is installed or run."""
    for name, version in npm.items():
        folder = npm_folder(into, name)
        if folder.is_dir():
            continue
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{version}"], cwd=into, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        draft = folder.with_suffix(".draft")
        draft.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "xzf", str(into / packed), "-C", str(draft), "--strip-components=1"], check=True)
        draft.rename(folder)
        (into / packed).unlink()
    for name in debian:
        folder = debian_folder(into, name)
        if folder.is_dir():
            continue
        subprocess.run(["apt-get", "download", "-q", name], cwd=into, check=True, capture_output=True)
        packed = str(next(into.glob(f"{name}_*.deb")))
        draft = folder.with_suffix(".draft")
        subprocess.run(["dpkg-deb", "-x", packed, str(draft)], check=True)
        draft.rename(folder)
        Path(packed).unlink()


def npm_folder(into: Path, name: str) -> Path:
    return into / "npm" / name.replace("@", "").replace("/", "-")


def debian_folder(into: Path, name: str) -> Path:
    return into / "debian" / name


def drawings(packages: Path) -> Iterator[Drawing]:
    """All of them, always in the same order."""
    yield from emoji(packages)
    yield from flags(packages)
    yield from openclipart(packages)
    yield from tango(packages)


def emoji(packages: Path) -> Iterator[Drawing]:
    """One drawing for each emoji and style; skin tones are left out. Names and keywords: Unicode CLDR, English."""
    said = _cldr(packages)
    styles = [name for name in NPM if name.startswith("@iconify-json/")]
    characters = {
        name: "".join(chr(int(code, 16)) for code in codes.split("-"))
        for style in styles
        if (npm_folder(packages, style) / "chars.json").exists()
        for codes, name in _json(npm_folder(packages, style) / "chars.json").items()
    }
    for style in styles:
        icons = _json(npm_folder(packages, style) / "icons.json")
        for name, icon in icons["icons"].items():
            texts = said.get(_bare(characters.get(name, "")))
            if texts:
                size = f"{icon.get('width', icons.get('width', 16))} {icon.get('height', icons.get('height', 16))}"
                markup = (
                    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {size}">{icon["body"]}</svg>'
                )
                group = f"emoji {_bare(characters[name])}"
                yield Drawing(style.rpartition("/")[2], group, texts, markup=markup.replace("currentColor", "#000"))
    for path in sorted((npm_folder(packages, "@lobehub/fluent-emoji-3d") / "assets").glob("*.webp")):
        if re.fullmatch(r"[0-9a-f]{2,5}(-[0-9a-f]{2,5})*", path.stem):
            character = _bare("".join(chr(int(code, 16)) for code in path.stem.split("-")))
            if character in said:
                yield Drawing("fluent-emoji-3d", f"emoji {character}", said[character], path)


def _cldr(packages: Path) -> dict[str, tuple[tuple[str, float], ...]]:
    """Emoji -> its texts."""
    derived = _json(npm_folder(packages, "cldr-annotations-derived-full") / "annotationsDerived/en/annotations.json")
    plain = _json(npm_folder(packages, "cldr-annotations-full") / "annotations/en/annotations.json")
    said = derived["annotationsDerived"]["annotations"] | plain["annotations"]["annotations"]
    skin_tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    return {
        _bare(character): _texts(of["tts"][0].replace("flag: ", "flag of "), of.get("default", []))
        + _sign(of["tts"][0])
        for character, of in said.items()
        if not skin_tones & {*character}
    }


def _sign(name: str) -> tuple[tuple[str, float], ...]:
    """What CLDR calls "keycap: 3" or "A button (blood type)" is a number or a letter to people."""
    if digit := re.fullmatch(r"keycap: (\d+)", name):
        return ((f"the number {digit[1]}", NAME),)
    if letter := re.fullmatch(r"(\w) button.*", name):
        return ((f"the letter {letter[1]}", NAME),)
    return ()


def _bare(character: str) -> str:
    """Without the mark that asks for a coloured picture: some sources write it, some do not."""
    return character.replace("\ufe0f", "")


def flags(packages: Path) -> Iterator[Drawing]:
    folder = npm_folder(packages, "flag-icons")
    for country in _json(folder / "country.json"):
        texts = ((f"flag of {country['name']}", NAME), (f"{country['name']} flag", DESCRIPTION))
        yield Drawing("flag-icons", f"flag {country['code']}", texts, folder / country["flag_4x3"])


def tango(packages: Path) -> Iterator[Drawing]:
    folder = debian_folder(packages, "tango-icon-theme") / "usr/share/icons/Tango/scalable"
    for path in sorted(folder.rglob("*.svg")):
        if not path.is_symlink():
            yield Drawing("tango", f"tango {path.stem}", ((path.stem.replace("-", " "), NAME),), path)


# What says nothing of a picture: folders of abstract signs, keywords of the archive's own, names of collections.
ABSTRACT = {
    *("flat-theme", "lemon-theme", "stars", "map_symbols", "flowchart", "stickmen", "cards", "simple", "bordered"),
}
NO_KEYWORDS = {
    *("hash", "magick", "theme", "icons", "icon", "unsorted", "computer", "action", "simple", "lemon theme icon"),
    *("application", "mapsym", "filesystem", "menu", "mimetypes", "stock", "openclipart", "mime-types", "appicon"),
    *("networksym", "webpage", "device", "svg", "clipart", "clip art", "media", "miscellany", "activities", "led"),
    *("signs and symbols", "recreation", "geometry", "apps", "back", "organizations", "logos", "logo", "dvb"),
    *("externalsource", "etiquette"),
}
NO_FOLDERS = {"icons", "unsorted", "special", "etiquette-theme"}
COLLECTIONS = ("gramastar", "SVG Road Signs", "Clipart by Nicu", "Various Cliparts", "Flat")
NO_WORDS = re.compile(
    r"\b(architetto|francesco|rollandin|nicu|buculei|openclipart\w*|clipart\w*|clip art|svg|png|various|simple"
    r"|drawn with straight lines|\w+ (gmail|hotmail|yahoo) com|hash ?\(?0x\w*\)?|\d+)\b",
    re.IGNORECASE,
)


def openclipart(packages: Path) -> Iterator[Drawing]:
    """Pictures of the PNG package, with the titles, descriptions and keywords of the SVGs that they were made from."""
    pictures = debian_folder(packages, "openclipart-png") / "usr/share/openclipart/png"
    sources = debian_folder(packages, "openclipart-svg") / "usr/share/openclipart/svg"
    for path in sorted(pictures.rglob("*.png")):
        name = path.relative_to(pictures)
        if path.is_symlink() or ABSTRACT & {*name.parts}:
            continue
        texts = _written((sources / name).with_suffix(".svg"), name.parts[:-1])
        if texts:
            yield Drawing("openclipart", f"openclipart {name}", texts, path)


def _written(svg: Path, folders: Sequence[str]) -> tuple[tuple[str, float], ...]:
    work = re.search(rb"<(?:\w+:)?Work\b.*?</(?:\w+:)?Work>", svg.read_bytes(), re.DOTALL) if svg.exists() else None
    about = work[0].decode("utf-8", "replace") if work else ""
    title, description = (_first(about, f"dc:{field}") for field in ("title", "description"))
    keywords = [
        _plain(word) for word in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", _first(about, "dc:subject", raw=True))
    ]
    name = "" if title.startswith(COLLECTIONS) else _tidy(title)
    told = _tidy(description)
    texts = _texts(name, [_tidy(word) for word in keywords if word.lower() not in NO_KEYWORDS])
    if 3 < len(told) < 90 and told.lower() != name.lower():
        texts += ((told, DESCRIPTION),)
    told_folders = [folder for folder in folders if folder not in NO_FOLDERS]
    if told_folders:
        texts += ((told_folders[-1].replace("_", " "), FOLDER),)
    return texts


def _texts(name: str, keywords: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """The name, each keyword, and the first keywords together."""
    words = [word for word in dict.fromkeys(keywords) if len(word) > 2 and word != name][:MOST_KEYWORDS]
    texts = [(name, NAME)] if len(name) > 2 else []
    texts += [(word, KEYWORDS / max(2, len(words))) for word in words]
    if len(words) > 1:
        texts.append((", ".join(words[:4]), LIST))
    return tuple(texts)


def _first(about: str, tag: str, raw: bool = False) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", about, re.DOTALL)
    text = found[1] if found else ""
    return text if raw else _plain(text)


def _plain(markup: str) -> str:
    text = html.unescape(re.sub(r"<[^>]+>", " ", markup))
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def _tidy(text: str) -> str:
    """Without authors, collections and running numbers."""
    text = NO_WORDS.sub(" ", re.sub(r"[^\w\s',&-]", " ", text.replace("_", " ")))
    return re.sub(r"\s+", " ", text).strip(" -,'")


def _json(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))
