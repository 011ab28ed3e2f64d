"""`python -m benchmarks.corpus FOLDER`: how far mmsearch agrees with Pillow and exiftool about a folder of files.

The folder is indexed into a temporary index with `lite`. Then each file is read by Pillow, in a process with bounded
time and memory, and by exiftool. Compared are: whether the pixels are read; the size of the upright image; which way is
up, by the EXIF value and by the pixels; date, place and camera. What disagrees is printed as a table, file by file.

Files are only read, and are handed to exiftool under names of its own, so that a name can mean nothing to it.
"""

import json
import math
import os
import re
import resource
import select
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from mmsearch.facts import IMAGE_SUFFIXES
from mmsearch.present import printable, table
from mmsearch.store.paths import from_columns

READ_S = 30.0  # for one file, in Pillow and mmsearch together
MOST_BYTES = 4 * 2**30  # of the process that Pillow reads in
EXIFTOOL_S = 60.0
EXIFTOOL_FILES = 100  # in one call
EXIFTOOL_BYTES = 2**32  # of a file; it looks through what it does not know to its end
TILE = 24  # pixels a side at which two readings are compared
FAR = 40.0  # of 255: a mean difference of two tiles that no colour profile explains
NEAR_DEG = 1e-4  # ten metres
OLDEST = "1826"

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "AVIF", "HEIF")  # Pillow's names
FIELDS = ("pixels", "size", "orientation", "turn", "colours", "date", "place", "camera")


@dataclass(frozen=True)
class Seen:
    """What one program says of a file; None where it says nothing.

    reason: why it gives no pixels. size: of the upright image. orientation: 1..8. taken_at: ISO 8601. place: latitude
    and longitude. camera: its maker and model. turn: how the pixels lie beside mmsearch's, 1 is alike, else the EXIF
    value that would turn them. distance: the mean difference from mmsearch's pixels, 0..255.
    """

    reason: str | None = None
    size: tuple[int, int] | None = None
    orientation: int | None = None
    taken_at: str | None = None
    place: tuple[float, float] | None = None
    camera: tuple[str, str] | str | None = None
    format: str | None = None
    turn: int | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One field of one file, as mmsearch and another program have it."""

    path: str
    field: str
    by: str
    agreed: bool
    ours: str
    theirs: str


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write counts and disagreements to a file.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes that Pillow reads in.")
def main(folder: str, json_path: str | None, jobs: int) -> None:
    """Index FOLDER into a temporary index, and compare with Pillow and exiftool file by file."""
    folder = os.path.abspath(folder)
    named, others = _files(folder)
    with tempfile.TemporaryDirectory(prefix="mmsearch-corpus-") as temporary:
        ours = index(folder, Path(temporary) / "index")
        with ThreadPoolExecutor(max(1, jobs)) as threads:
            exiftool = exiftool_facts(named, Path(temporary) / "links", threads)
            pillow = pillow_facts(named, threads)
    comparisons = [
        comparison for path in named for comparison in compared(path, ours.get(path), *pillow[path], exiftool.get(path))
    ]
    for line in report(folder, named, others, ours, comparisons):
        click.echo(line)
    if json_path:
        Path(json_path).write_text(json.dumps(_as_json(named, others, ours, comparisons), indent=1))


def _files(folder: str) -> tuple[list[str], int]:
    """(regular files that are named as images, how many others there are); as `mmsearch index` sees them."""
    named, others = [], 0
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith(".") and stat.S_ISREG(os.lstat(path).st_mode):
                named.append(path)
            else:
                others += 1
    return named, others


# mmsearch


def index(folder: str, place: Path) -> dict[str, Seen]:
    """What the index holds of each image file after a first run. Raises ClickException if the run fails."""
    command = [sys.executable, "-m", "mmsearch", "index", folder, "--index", str(place), "--model", "lite", "--quiet"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if ran.returncode not in (0, 1) or "Traceback" in ran.stderr or not (place / "index.db").exists():
        raise click.ClickException(f"mmsearch index ended with {ran.returncode}: {ran.stderr[-2000:]}")
    with closing(sqlite3.connect(place / "index.db")) as connection:
        rows = connection.execute(
            """SELECT f.path, f.path_bytes, f.skipped, i.width, i.height, i.format, i.taken_at, i.camera,
                      i.latitude_deg, i.longitude_deg
               FROM files f LEFT JOIN items i ON i.file_id = f.id AND i.kind = 'image' WHERE f.kind = 'image'"""
        ).fetchall()
    return {
        from_columns(path, path_bytes): Seen(
            reason=None if width is not None else skipped or "is not in the index",
            size=None if width is None else (width, height),
            taken_at=taken_at,
            camera=camera,
            place=None if latitude is None else (latitude, longitude),
            format=format_,
        )
        for path, path_bytes, skipped, width, height, format_, taken_at, camera, latitude, longitude in rows
    }


# Pillow


def pillow_facts(paths: Sequence[str], threads: ThreadPoolExecutor) -> dict[str, tuple[Seen, int | None]]:
    """path -> (what Pillow says, the orientation that mmsearch's reader finds in what Pillow hands out)."""
    workers: list[_Worker] = []
    free: list[_Worker] = []

    def read(path: str) -> tuple[Seen, int | None]:
        worker = free.pop() if free else _Worker()
        if worker not in workers:
            workers.append(worker)
        answer = worker.read(path)
        free.append(worker)
        size = answer.pop("size", None)
        ours = answer.pop("our_orientation", None)
        return Seen(size=None if size is None else (size[0], size[1]), **answer), ours

    try:
        return dict(zip(paths, threads.map(read, paths), strict=True))
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that reads one file after the other, and is replaced when one of them ends it or takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: str) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(path).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], READ_S)
            line = process.stdout.readline() if ready else b""
        except OSError:
            line = b""
            ready = [process.stdout]
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        return {"reason": "ended the process" if ready else f"took more than {READ_S:.0f} s"}

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-W", "ignore", "-c", "from benchmarks.corpus import serve; serve()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve() -> None:
    """Answer paths on stdin with what Pillow says of the files, one JSON value a line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    from pi_heif import register_heif_opener  # type: ignore[import-untyped,unused-ignore]

    register_heif_opener()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a decoder prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(_by_pillow(json.loads(line))) + "\n")
        answers.flush()


def _by_pillow(path: str) -> dict[str, Any]:
    import numpy as np
    from PIL import Image, ImageOps

    from mmsearch import media
    from mmsearch.errors import MediaError
    from mmsearch.exif import exif_block, read_exif

    Image.MAX_IMAGE_PIXELS = media.MAX_PIXELS // 2  # Pillow refuses what is twice as large
    answer: dict[str, Any] = {}
    try:
        with Image.open(path) as image:
            answer["format"] = image.format
            orientation = image.getexif().get(0x0112, 1)
            image.load()
            if image.format == "TIFF":  # which is upright by now
                with open(path, "rb") as file:
                    answer["our_orientation"] = read_exif(file).orientation
            else:
                answer["our_orientation"] = read_exif(exif_block(image.info)).orientation
            answer["orientation"] = orientation if orientation in range(1, 9) else 1
            upright = ImageOps.exif_transpose(image)
            answer["size"] = upright.size
            if image.format not in FORMATS:
                return answer
            if upright.mode.startswith("I") or upright.mode == "F":
                return answer  # what is white in these is a matter of taste
            theirs = upright.convert("RGBA") if upright.has_transparency_data else upright.convert("RGB")
    except Exception as error:  # whatever Pillow raises, which is much, is an answer here
        return {"reason": f"{type(error).__name__}: {error}"[:200], "format": answer.get("format")}
    try:
        ours = media.load_rgb(path)
    except (MediaError, OSError):
        return answer
    if theirs.mode == "RGBA":
        white = Image.new("RGBA", theirs.size, "white")
        theirs = Image.alpha_composite(white, theirs).convert("RGB")
    a, b = (np.asarray(part.resize((TILE, TILE), Image.Resampling.BOX), dtype=float) for part in (ours, theirs))
    turns = {1: b, 2: b[:, ::-1], 3: b[::-1, ::-1], 4: b[::-1]}
    turns |= {5: b.swapaxes(0, 1), 6: np.rot90(b, -1), 7: np.rot90(b, 2).swapaxes(0, 1), 8: np.rot90(b)}
    distances = {turn: float(np.abs(a - tile).mean()) for turn, tile in turns.items()}
    best = min(distances, key=lambda turn: distances[turn])
    answer["distance"] = distances[1]
    answer["turn"] = best if distances[best] < 0.7 * distances[1] - 1.0 else 1
    return answer


# exiftool


def exiftool_facts(paths: Sequence[str], links: Path, threads: ThreadPoolExecutor) -> dict[str, Seen]:
    """path -> what exiftool says of it; of no path where there is no exiftool."""
    if shutil.which("exiftool") is None:
        click.echo("exiftool is not installed; dates, places and cameras are not compared.", err=True)
        return {}
    links.mkdir()
    names: dict[str, str] = {}
    for number, path in enumerate(path for path in paths if os.path.getsize(path) < EXIFTOOL_BYTES):
        suffix = os.path.splitext(path)[1].lower()
        link = links / f"{number:07}{suffix}"
        link.symlink_to(path)
        names[str(link)] = path
    batches = [list(names)[at : at + EXIFTOOL_FILES] for at in range(0, len(names), EXIFTOOL_FILES)]
    found: dict[str, Seen] = {}
    for rows in threads.map(_exiftool, batches):
        found |= {names[row["SourceFile"]]: _by_exiftool(row) for row in rows if row.get("SourceFile") in names}
    return found


def _exiftool(links: Sequence[str]) -> list[dict[str, Any]]:
    """exiftool's own JSON; where it does not end in time, file by file."""
    tags = ["Orientation", "Make", "Model", "DateTimeOriginal", "CreateDate", "ModifyDate"]
    tags += ["OffsetTimeOriginal", "OffsetTimeDigitized", "OffsetTime", "GPSLatitude", "GPSLongitude"]
    tags += ["GPSLatitudeRef", "GPSLongitudeRef"]
    asked = [f"-EXIF:{tag}" for tag in tags] + ["-Composite:ImageSize", "-QuickTime:Rotation", "-File:FileType"]
    command = ["exiftool", "-config", "", "-j", "-n", "-a", "-G1", "-q", "-q", *asked, *links]
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=EXIFTOOL_S)
        rows: list[dict[str, Any]] = json.loads(ran.stdout or b"[]")
        return rows
    except (subprocess.TimeoutExpired, ValueError):
        return [] if len(links) == 1 else [row for link in links for row in _exiftool([link])]


def _by_exiftool(row: Mapping[str, Any]) -> Seen:
    """The EXIF values alone: XMP and IPTC are not read here, and are not compared."""

    def first(tag: str) -> Any:
        return next((row[key] for group in ("ExifIFD", "IFD0") if (key := f"{group}:{tag}") in row), None)

    orientation = row.get("IFD0:Orientation", 1)
    orientation = orientation if orientation in range(1, 9) else 1
    make, model = (" ".join(str(row.get(f"IFD0:{tag}", "")).split()) for tag in ("Make", "Model"))
    size = [int(side) for side in re.findall(r"\d+", str(row.get("Composite:ImageSize", "")))[:2]]
    is_film = row.get("File:FileType") in ("HEIC", "HEIF", "AVIF")  # whose own rotation counts, and is no EXIF
    turned = row.get("QuickTime:Rotation", row.get("Meta:Rotation", 0)) in (90, 270) if is_film else orientation >= 5
    return Seen(
        size=(size[1], size[0]) if turned and len(size) == 2 else (size[0], size[1]) if len(size) == 2 else None,
        orientation=None if is_film else orientation,
        taken_at=_taken_at(first),
        place=_place(row),
        camera=(make, model) if make or model else None,
        format=row.get("File:FileType"),
    )


def _taken_at(first: Callable[[str], Any]) -> str | None:
    """The first time that has the standard's form; else the first that has another, marked with a question mark."""
    pairs = (
        ("DateTimeOriginal", "OffsetTimeOriginal"),
        ("CreateDate", "OffsetTimeDigitized"),
        ("ModifyDate", "OffsetTime"),
    )
    others = []
    for tag, offset_tag in pairs:
        text, offset = str(first(tag) or "").strip(), str(first(offset_tag) or "").strip()
        try:
            time = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
        except ValueError:
            if any(letter in "123456789" for letter in text):
                others.append(text)
            continue
        if text >= OLDEST:
            return time.isoformat() + (offset if re.fullmatch(r"[+-]\d\d:\d\d", offset) else "")
    return f"? {others[0]}" if others else None


def _place(row: Mapping[str, Any]) -> tuple[float, float] | None:
    sides = []
    for tag, letters in (("Latitude", "NS"), ("Longitude", "EW")):
        value, ref = row.get(f"GPS:GPS{tag}"), str(row.get(f"GPS:GPS{tag}Ref", ""))[:1].upper()
        if not isinstance(value, int | float) or not ref or ref not in letters:
            return None
        sides.append(-float(value) if ref == letters[1] else float(value))
    return None if sides == [0.0, 0.0] else (sides[0], sides[1])


# Comparison


def compared(
    path: str, ours: Seen | None, pillow: Seen, our_orientation: int | None, exiftool: Seen | None
) -> Iterator[Comparison]:
    """Each field that at least one of two programs says something of."""

    def comparison(field: str, by: str, agreed: bool, mine: object, theirs: object) -> Comparison:
        return Comparison(
            path, field, by, agreed, "" if mine is None else str(mine), "" if theirs is None else str(theirs)
        )

    if ours is None:
        yield comparison("pixels", "Pillow", False, "is not in the index", pillow.reason)
        return
    is_known = pillow.format in FORMATS or pillow.reason is not None
    if is_known or ours.reason is None:
        theirs = pillow.reason or f"read as {pillow.format}"
        agreed = (ours.reason is None) == (pillow.reason is None)
        yield comparison("pixels", "Pillow", agreed, ours.reason or f"read as {ours.format}", theirs)
    if ours.reason is not None:
        return
    if pillow.size is not None:
        yield comparison("size", "Pillow", ours.size == pillow.size, ours.size, pillow.size)
        yield comparison(
            "orientation", "Pillow", our_orientation == pillow.orientation, our_orientation, pillow.orientation
        )
    if pillow.turn is not None and pillow.distance is not None:
        yield comparison("turn", "Pillow", pillow.turn == 1, 1, pillow.turn)
        yield comparison("colours", "Pillow", pillow.distance < FAR, "", f"{pillow.distance:.0f} of 255 apart")
    if exiftool is None:
        return
    if exiftool.size is not None:
        yield comparison("size", "exiftool", ours.size == exiftool.size, ours.size, exiftool.size)
    if exiftool.orientation is not None and our_orientation is not None:
        agreed = our_orientation == exiftool.orientation
        if exiftool.orientation != 1 or not agreed:
            yield comparison("orientation", "exiftool", agreed, our_orientation, exiftool.orientation)
    if ours.taken_at or exiftool.taken_at:
        yield comparison("date", "exiftool", ours.taken_at == exiftool.taken_at, ours.taken_at, exiftool.taken_at)
    if ours.place or exiftool.place:
        yield comparison("place", "exiftool", _is_near(ours.place, exiftool.place), ours.place, exiftool.place)
    if ours.camera or exiftool.camera:
        agreed = _is_camera(ours.camera, exiftool.camera)
        yield comparison("camera", "exiftool", agreed, ours.camera, " + ".join(exiftool.camera or ()))


def _is_near(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return one is not None and other is not None and math.dist(one, other) < NEAR_DEG


def _is_camera(ours: object, theirs: tuple[str, str] | str | None) -> bool:
    """Both parts are there; the maker's first word may be in the model."""
    if not isinstance(ours, str) or not isinstance(theirs, tuple):
        return False
    make, model = theirs
    return model in ours and (not make or make.split()[0].casefold() in ours.casefold())


# Report


def report(
    folder: str, named: Sequence[str], others: int, ours: Mapping[str, Seen], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """The disagreements, and how many there are beside what agrees."""
    for field in FIELDS:
        rows = [
            (os.path.relpath(row.path, folder), row.by, row.ours, row.theirs)
            for row in comparisons
            if row.field == field and not row.agreed
        ]
        if rows:
            yield f"{field}\n"
            yield table(
                ("file", "beside", "mmsearch", "the other"), [[printable(cell) for cell in row] for row in rows]
            )
            yield ""
    yield table(
        ("compared", "beside", "files", "agree", "%"),
        [(*key, total, agreed, f"{100 * agreed / total:.2f}") for key, (total, agreed) in _counts(comparisons).items()],
        right=(2, 3, 4),
    )
    read = sum(seen.reason is None for seen in ours.values())
    refused = len(ours) - read
    yield f"\n{len(named):,} files named as images, {read:,} read, {refused:,} refused; {others:,} other files."


def _counts(comparisons: Iterable[Comparison]) -> dict[tuple[str, str], tuple[int, int]]:
    """(field, by) -> (compared, agreed)"""
    counts: defaultdict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
    for row in comparisons:
        counts[row.field, row.by][row.agreed] += 1
    return {key: (counts[key].total(), counts[key][True]) for key in sorted(counts, key=lambda key: (key[1], key[0]))}


def _as_json(
    named: Sequence[str], others: int, ours: Mapping[str, Seen], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    return {
        "files": len(named),
        "other_files": others,
        "refused": {path: seen.reason for path, seen in ours.items() if seen.reason is not None},
        "counts": [
            {"field": field, "by": by, "compared": total, "agreed": agreed}
            for (field, by), (total, agreed) in _counts(comparisons).items()
        ],
        "disagreements": [asdict(row) for row in comparisons if not row.agreed],
    }


if __name__ == "__main__":
    main()
