"""What the EXIF block of an image says: which way is up, when it was taken, with which camera, and where.

Pillow reads EXIF too, but wholly: it warns on the embedding program's stderr, raises a dozen kinds of errors for
damaged blocks, and copies whatever length each of up to 65,535 entries claims. Here a bounded number of entries is
looked at, and only the few tags that are kept are read. Nothing in here raises: what cannot be read is missing.

A tag is read where writers put it, which is not always where the standard wants it: the times of the EXIF directory
and the pointer to the GPS directory are looked for in the main directory too.
"""

import io
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta, timezone
from typing import IO, NamedTuple

_MAX_ENTRIES = 1024  # of one directory; cameras write below 100
_MAX_TEXT_BYTES = 200
_MAX_NUMBERS = 4
_MAX_LEAD_BYTES = 32  # before the TIFF header: "Exif" and two zeros, once or twice, or an offset

_MAKE, _MODEL, _ORIENTATION = 0x010F, 0x0110, 0x0112
_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
_TAKEN, _DIGITIZED, _CHANGED = 0x9003, 0x9004, 0x0132
_TAKEN_OFFSET, _DIGITIZED_OFFSET, _CHANGED_OFFSET = 0x9011, 0x9012, 0x9010
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_TIMES = ((_TAKEN, _TAKEN_OFFSET), (_DIGITIZED, _DIGITIZED_OFFSET), (_CHANGED, _CHANGED_OFFSET))  # best first
_KEPT = frozenset(
    {_MAKE, _MODEL, _ORIENTATION, _EXIF_DIRECTORY, _GPS_DIRECTORY}
    | {tag for pair in _TIMES for tag in pair}
    | {_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE}
)

# TIFF types. 13 is a LONG that points to a directory; 16, 17 and 18 are those of BigTIFF; 129 is EXIF 3.0's UTF-8
_TEXTS = frozenset({1, 2, 7, 129})
_RATIONALS = {5: "I", 10: "i"}
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_WIDTHS = {kind: struct.calcsize("=" + code) for kind, code in _NUMBERS.items()} | {2: 1, 5: 8, 7: 1, 10: 8, 129: 1}

_HEADER = re.compile(rb"II[*+]\0|MM\0[*+]")
_HALF_HEADERS = ((b"II*\0", b"\x08\0\0\0"), (b"MM\0*", b"\0\0\0\x08"))
_PROFILE = re.compile(r"\s*\S*\s*\n\s*(\d{1,9})\s*\n(.*)", re.ASCII | re.DOTALL)
_DAY = re.compile(r"(\d{4})(?:\D ?(\d{1,2})\D ?(\d{1,2})|(\d\d)(\d\d))(?!\d)", re.ASCII)
_CLOCK = re.compile(r"\D{1,2}(\d{1,2})\D ?(\d{1,2})(?!\d)(?:\D ?(\d{1,2})(?!\d)(?:[.,]\d*)?)?", re.ASCII)
_HALF = re.compile(r" ?([ap])\.?m\b", re.ASCII | re.IGNORECASE)
_OFFSET = re.compile(r" ?(?:([+-])(\d{1,2}):?([0-5]\d)|Z)$", re.ASCII)
_MAX_OFFSET = timedelta(hours=14)  # of the Line Islands
_OLDEST_YEAR = 1826  # of the oldest photograph that is left

_REFS = {"N": 1, "NORTH": 1, "S": -1, "SOUTH": -1, "E": 1, "EAST": 1, "W": -1, "WEST": -1}


@dataclass(frozen=True)
class ExifFacts:
    """orientation is 1..8 as in the EXIF standard; all else is None where it is missing or makes no sense.

    taken_at: ISO 8601, by the camera's own clock: a time, with its offset from UTC where the camera wrote one
    (2019-07-14T10:20:30+02:00), or the day alone where no time of day is given or it makes no sense (2019-07-14).
    """

    orientation: int = 1
    taken_at: str | None = None
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None


class _Entry(NamedTuple):
    kind: int  # TIFF type
    raw: bytes
    order: str  # "<" or ">"


_Directory = Mapping[int, _Entry]


def read_exif(block: "bytes | IO[bytes]") -> ExifFacts:
    """The facts in an EXIF block, or in a TIFF file, which is built alike."""
    file = io.BytesIO(_from_header(block)) if isinstance(block, bytes) else block
    head = _bytes_at(file, 0, 16)
    if not _HEADER.match(head):
        return ExifFacts()
    order, is_big = "<" if head.startswith(b"II") else ">", b"+" in head[:4]
    start = _unsigned(head[8:16] if is_big else head[4:8], order)
    main = dict(_entries(file, order, is_big, start))
    shot = main | dict(_entries(file, order, is_big, _integer(main.get(_EXIF_DIRECTORY))))
    place = dict(_entries(file, order, is_big, _integer(shot.get(_GPS_DIRECTORY))))
    orientation = _integer(main.get(_ORIENTATION))
    latitude, longitude = _place(place)
    return ExifFacts(
        orientation=orientation if 1 <= orientation <= 8 else 1,
        taken_at=next((taken for tag, offset in _TIMES if (taken := _time(shot, tag, offset))), None),
        camera=_camera(_text(main.get(_MAKE)), _text(main.get(_MODEL))),
        latitude_deg=latitude,
        longitude_deg=longitude,
    )


def exif_block(info: Mapping[str | tuple[int, int], object]) -> bytes:
    """The EXIF block in what Pillow tells of an image (`Image.info`), b"" if there is none.

    A PNG has it in a chunk of its own, or as ImageMagick wrote it before there was one: as a text in hexadecimal.
    """
    for key in ("exif", "Raw profile type exif", "Raw profile type APP1"):
        value = info.get(key)
        block = _raw_profile(value) if isinstance(value, str) else value
        if isinstance(block, bytes) and _from_header(block):
            return block
    return b""


def _raw_profile(text: str) -> bytes:
    """A line with a name, one with the length, and lines in hexadecimal: coders/png.c of ImageMagick."""
    found = _PROFILE.match(text)
    if not found:
        return b""
    digits = "".join(found[2].split())[: 2 * int(found[1])]  # some programs leave bytes behind the end
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _from_header(block: bytes) -> bytes:
    """The block from its TIFF header on, to which all offsets in it refer."""
    found = _HEADER.search(block, 0, _MAX_LEAD_BYTES)
    if found:
        return block[found.start() :]
    # Where the offset is left out that the standard wants ahead of it, pi-heif takes the half of the header for it
    return next((header + block for header, rest in _HALF_HEADERS if block.startswith(rest)), b"")


def _entries(file: IO[bytes], order: str, is_big: bool, start: int) -> Iterator[tuple[int, _Entry]]:
    """(tag, entry) of the directory at `start`; entries that point outside of the file are left out."""
    if start < 8:
        return
    count_bytes, layout = (8, order + "HHQ8s") if is_big else (2, order + "HHI4s")
    entry_bytes = struct.calcsize(layout)
    count = min(_unsigned(_bytes_at(file, start, count_bytes), order), _MAX_ENTRIES)
    directory = _bytes_at(file, start + count_bytes, entry_bytes * count)
    for tag, kind, length, here in struct.iter_unpack(layout, directory[: len(directory) // entry_bytes * entry_bytes]):
        if tag not in _KEPT or kind not in _WIDTHS:
            continue
        n_bytes = _WIDTHS[kind] * length
        wanted = min(n_bytes, _MAX_TEXT_BYTES if kind in _TEXTS else _WIDTHS[kind] * _MAX_NUMBERS)
        raw = here[:n_bytes] if n_bytes <= len(here) else _bytes_at(file, _unsigned(here, order), wanted)
        if len(raw) == wanted:
            yield tag, _Entry(kind, raw, order)


def _bytes_at(file: IO[bytes], offset: int, n_bytes: int) -> bytes:
    """Fewer bytes where the file ends, or cannot be read."""
    try:
        file.seek(offset)
        return file.read(n_bytes)
    except (OSError, ValueError, OverflowError):  # the last for an offset of more than 63 bits
        return b""


def _unsigned(raw: bytes, order: str) -> int:
    return int.from_bytes(raw, "little" if order == "<" else "big")


def _integer(entry: _Entry | None) -> int:
    """The first number of an entry if it is a whole one, else 0."""
    if entry is None or (entry.kind not in _NUMBERS and entry.kind not in _RATIONALS):
        return 0
    first = next(iter(_numbers(entry)), None)
    return int(first) if first is not None and first.is_integer() else 0


def _numbers(entry: _Entry) -> list[float | None]:
    """The numbers of an entry; None for 0/0, which stands for a missing one, NaN for what is none.

    A number of more than 53 bits is not exact; as an offset it points outside of any file.
    """
    n_values = len(entry.raw) // _WIDTHS[entry.kind]
    if entry.kind in _RATIONALS:
        parts = struct.unpack(f"{entry.order}{2 * n_values}{_RATIONALS[entry.kind]}", entry.raw)
        return [_quotient(n, d) for n, d in zip(parts[::2], parts[1::2], strict=True)]
    if entry.kind in _NUMBERS:
        return [float(n) for n in struct.unpack(f"{entry.order}{n_values}{_NUMBERS[entry.kind]}", entry.raw)]
    return []


def _quotient(numerator: int, denominator: int) -> float | None:
    if denominator == 0:
        return None if numerator == 0 else math.nan
    return numerator / denominator


def _text(entry: _Entry | None) -> str:
    """One line of printable text, without the blanks that some cameras fill it up with."""
    if entry is None or entry.kind not in _TEXTS:
        return ""
    raw = entry.raw.split(b"\0", 1)[0]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # also a letter that the length limit cut in two
        text = raw.decode("latin-1")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _camera(make: str, model: str) -> str | None:
    """Maker and model, with the maker once: Canon + Canon EOS 5D, NIKON CORPORATION + NIKON D90, Apple + iPhone 12."""
    if make and model and make.split()[0].casefold() != model.split()[0].casefold():
        return f"{make} {model}"
    return model or make or None


def _time(shot: _Directory, tag: int, offset_tag: int) -> str | None:
    """As in `ExifFacts`; None unless the day is known.

    The standard's form is 2019:07:14 10:20:30. Others are read as long as the year comes first: 2019-07-14T10:20:30Z,
    2019: 7: 4, 20190714 10:20:30.5, 2019:07:14 10:20:30+02:00. Cameras whose clock was never set write 0000:00:00.
    """
    text = _text(shot.get(tag))
    found = _DAY.match(text)
    if not found:
        return None
    try:
        day = date(*(int(part) for part in found.groups() if part))
    except ValueError:
        return None
    if day.year < _OLDEST_YEAR:
        return None
    clock = _CLOCK.match(text, found.end())
    if not clock:
        return day.isoformat()
    hour, minute, second = (int(part or 0) for part in clock.groups())
    half = _HALF.match(text, clock.end())
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half[1] in "pP" else 0)
    try:
        moment = time(hour, minute, second, tzinfo=_offset(text[clock.end() :]) or _offset(_text(shot.get(offset_tag))))
    except (
        ValueError
    ):  # 24:00:00, which some cameras write, and of which nobody knows whether the day has begun or ended
        return day.isoformat()
    return f"{day.isoformat()}T{moment.isoformat()}"


def _offset(text: str) -> timezone | None:
    """From UTC, as in +02:00."""
    found = _OFFSET.match(text)
    if not found:
        return None
    offset = timedelta(hours=int(found[2] or 0), minutes=int(found[3] or 0))
    return timezone(-offset if found[1] == "-" else offset) if offset <= _MAX_OFFSET else None


def _place(place: _Directory) -> tuple[float, float] | tuple[None, None]:
    """(latitude, longitude) in degrees, both or none; 0, 0 is what is written where there was no reception."""
    latitude = _degrees(place.get(_LATITUDE), _text(place.get(_LATITUDE_REF)), "NS", 90.0)
    longitude = _degrees(place.get(_LONGITUDE), _text(place.get(_LONGITUDE_REF)), "EW", 180.0)
    if latitude is None or longitude is None or latitude == longitude == 0.0:
        return None, None
    return latitude, longitude


def _degrees(entry: _Entry | None, ref: str, letters: str, limit: float) -> float | None:
    """Degrees, minutes and seconds; the last two may be left out, or be 0/0.

    None where the side of the equator or of Greenwich is not known, or a number makes no sense: a guess would be a
    wrong place. Some programs write the sign into the numbers as well, which has to agree then.
    """
    sign = _REFS.get(ref.upper()) if ref.isascii() and ref[:1].upper() in letters else None
    parts = _numbers(entry)[:3] if entry is not None else []
    if sign is None or not parts or parts[0] is None:
        return None
    degrees, minutes, seconds = (part or 0.0 for part in (*parts, 0.0, 0.0)[:3])
    if sign < 0 and degrees <= 0.0 and minutes <= 0.0 and seconds <= 0.0:
        degrees, minutes, seconds = -degrees, -minutes, -seconds
    # Comparisons that NaN fails; 60 seconds are what 59.999 is rounded to
    if not (0.0 <= degrees <= limit and 0.0 <= minutes <= 60.0 and 0.0 <= seconds <= 60.0):
        return None
    total = round(degrees + minutes / 60.0 + seconds / 3600.0, 7)  # 7 digits are a centimetre
    return sign * total + 0.0 if total <= limit else None
