"""Pictures that no part of the recipe has seen, with the words that should find them.

    sentences   Tux Paint's stamps (Debian tuxpaint-stamps-default): photographs and cartoons, each with one sentence.
                All of them: animals, food, vehicles, tools, people, places, and letters, digits and coins too.
    words       GCompris (Debian gcompris-qt-data): photographs and drawings that are named by their file.

Chosen before the first training run. By a hash of its caption, every query is in one of two halves: what the recipe
chooses, it chooses by the first half; what the card reports apart is the second. Both halves are asked of all pictures.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray: TypeAlias = npt.NDArray[np.bool_]

DEBIAN = ("tuxpaint-stamps-default", "gcompris-qt-data")


@dataclass(frozen=True)
class HeldOut:
    """Pictures and queries: right (queries, pictures), second (queries,) true in the half that chooses nothing."""

    name: str
    pictures: list[Path]
    queries: list[str]
    right: BoolArray
    second: BoolArray
    photographs: BoolArray  # (pictures,)

    def only(self, kept: BoolArray) -> "HeldOut":
        """Without the pictures that cannot be drawn (some SVGs have no size), and what only they would answer."""
        right = self.right[:, kept]
        asked = right.any(axis=1)
        return HeldOut(
            self.name,
            [picture for picture, keep in zip(self.pictures, kept, strict=True) if keep],
            [query for query, ask in zip(self.queries, asked, strict=True) if ask],
            right[asked],
            self.second[asked],
            self.photographs[kept],
        )


def sentences(debian: Path) -> HeldOut:
    """Identical captions are one query with several right pictures."""
    stamps = debian / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    shown: list[tuple[Path, str]] = []
    for text in sorted(stamps.rglob("*.txt")):
        picture = next((text.with_suffix(end) for end in (".png", ".svg") if text.with_suffix(end).exists()), None)
        if picture is not None:
            shown.append((picture, text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()))
    photographs = [picture.suffix == ".png" and not {"cartoon", "symbols"} & {*picture.parts} for picture, _ in shown]
    return _held_out("sentences", shown, photographs)


# Where GCompris keeps pictures that are named in their file's name.
NAMED = (
    *("lang/resource/words_sample", "categorization/resource/images/others", "categorization/resource/images/tools"),
    *("categorization/resource/images/renewable", "categorization/resource/images/monuments"),
    *("categorization/resource/images/fishes", "babymatch/resource/images", "explore_farm_animals/resource/animals"),
    *("explore_world_animals/resource/animals", "instruments/resource", "memory/resource", "erase/resource"),
    "babyshapes/resource/food",
)
DRAWN = {"babymatch", "instruments", "memory", "babyshapes"}
NO_NAMES = {  # numbers, colours as patches, furniture of the games
    *("color", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("sixteen", "zero", "background", "backcard", "emptycard", "tux", "question", "farm animals", "postpoint", "rape"),
    *("transparent square", "transparent square yellow", "transparent square green", "monument", "windflag", "black"),
    *("white", "gray", "red", "green", "blue", "yellow", "brown", "pink", "mauve", "orange color", "bluebaby"),
    *("greenbaby", "le musee"),
}
RENAMED = {  # what is French, a plural, or short for something
    "fusee": "rocket",
    "raquette": "tennis racket",
    "tuxhelico": "helicopter",
    "tuxplane": "airplane",
    "sailingboat": "sailing boat",
    "fishingboat": "fishing boat",
    "eggpot": "egg cup",
    "bulb": "light bulb",
    "plier": "pliers",
    "screw driver": "screwdriver",
    "solar": "solar panel",
    "buffetset": "buffet set",
    "bluebirds": "blue birds",
    "redbird": "red bird",
    "flute traversiere": "flute",
    "dad": "father",
    "blackslate": "blackboard",
    "geothermal": "geothermal power plant",
    "marmelade": "marmalade",
    "flies": "fly",
    "french croissant": "croissant",
    "chamaeleon": "chameleon",
    "camels": "camel",
    "swans": "swan",
    "meerkats": "meerkat",
    "spoonbills": "spoonbill",
    "spoons": "spoon",
    "erasers": "eraser",
    "sound": "loudspeaker",
    "weighing machine": "scales",
    "light": "flashlight",
}


def words(debian: Path, unpacked: Path) -> HeldOut:
    """A word may have several right pictures."""
    activities = unpacked / "gcompris/src/activities"
    if not activities.is_dir():
        for resources in sorted((debian / "gcompris-qt-data/usr/share/gcompris-qt/rcc").glob("*.rcc")):
            for name, content in resource_files(resources.read_bytes()):
                if name.startswith("gcompris/src/activities/") and ".." not in name:
                    (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
                    (unpacked / name).write_bytes(content)
    shown: list[tuple[Path, str]] = []
    for folder in NAMED:
        for picture in sorted((activities / folder).iterdir()):
            plain = re.sub(r"\d+", "", picture.stem)
            word = " ".join(part for part in re.split(r"(?<=[a-z])(?=[A-Z])|[_-]", plain) if part).lower().strip()
            word = RENAMED.get(word, word)
            if picture.suffix in (".svg", ".webp", ".png", ".jpg") and word and word not in NO_NAMES:
                shown.append((picture, word))
    photographs = [
        picture.suffix != ".svg" and not DRAWN & {*picture.parts} and "words_sample" not in picture.parts
        for picture, _ in shown
    ]
    return _held_out("words", shown, photographs)


def _held_out(name: str, shown: Sequence[tuple[Path, str]], photographs: Sequence[bool]) -> HeldOut:
    captions = [caption for _, caption in shown]
    queries = list(dict.fromkeys(captions))
    return HeldOut(
        name,
        [picture for picture, _ in shown],
        queries,
        np.array([[caption == query for caption in captions] for query in queries]),
        np.array([int(hashlib.sha256(query.encode()).hexdigest(), 16) % 2 == 1 for query in queries]),
        np.array(photographs),
    )


def resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents in one of Qt's resource files, format versions 1 to 3. Raises ValueError for another file."""
    if data[:4] != b"qres":
        raise ValueError("not a Qt resource file")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    size = 22 if version >= 2 else 14

    def below(place: int, folder: str) -> Iterator[tuple[str, bytes]]:
        start = tree + place * size
        named, flags = struct.unpack(">IH", data[start : start + 6])
        path = folder
        if place:  # the root has no name
            (length,) = struct.unpack(">H", data[names + named : names + named + 2])
            first = names + named + 6
            path = f"{folder}/{data[first : first + 2 * length].decode('utf-16-be')}".lstrip("/")
        if flags & 2:
            count, child = struct.unpack(">II", data[start + 6 : start + 14])
            for each in range(child, child + count):
                yield from below(each, path)
        else:
            (offset,) = struct.unpack(">I", data[start + 10 : start + 14])
            (length,) = struct.unpack(">I", data[contents + offset : contents + offset + 4])
            content = data[contents + offset + 4 : contents + offset + 4 + length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from below(0, "")
