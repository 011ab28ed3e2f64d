"""What a picture's EXIF block says: which way is up, when it was taken, with which camera, and where.

Pillow reads EXIF too, but wholly: it warns on the embedding program's stderr, raises a dozen kinds of errors for
damaged blocks, and copies whatever length each of up to 65,535 entries claims. Here a bounded number of entries is
looked at, and only the few tags that are kept are read. Nothing in here raises: what cannot be read is missing.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import IO, TypeAlias

_MAX_ENTRIES = 1024  # of one directory; cameras write below 100
_MAX_TEXT_BYTES = 200

_MAKE, _MODEL, _ORIENTATION = 0x010F, 0x0110, 0x0112
_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
_TAKEN, _DIGITIZED = 0x9003, 0x9004
_TAKEN_OFFSET, _DIGITIZED_OFFSET = 0x9011, 0x9012
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_KEPT = frozenset(
    {_MAKE, _MODEL, _ORIENTATION, _EXIF_DIRECTORY, _GPS_DIRECTORY}
    | {_TAKEN, _DIGITIZED, _TAKEN_OFFSET, _DIGITIZED_OFFSET}
    | {_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE}
)
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 9: 4, 10: 8}  # bytes of one value, by TIFF type
_CODES = {1: "B", 3: "H", 4: "I", 9: "i"}

_Value: TypeAlias = str | list[float]


@dataclass(frozen=True)
class ExifFacts:
    """orientation is 1..8 as in the EXIF standard; all else is None where it is missing or makes no sense."""

    orientation: int = 1
    taken_at: str | None = None
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None


def read_exif(block: "bytes | IO[bytes]") -> ExifFacts:
    """The facts in an EXIF block, with or without "Exif" and two zeros before it; or in a TIFF file, built alike."""
    file = io.BytesIO(block.removeprefix(b"Exif\0\0")) if isinstance(block, bytes) else block
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(_bytes_at(file, 0, 4))
    if order is None:
        return ExifFacts()
    main = dict(_entries(file, order, _number_at(file, 4, order)))
    shot = dict(_entries(file, order, _integer(main.get(_EXIF_DIRECTORY))))
    place = dict(_entries(file, order, _integer(main.get(_GPS_DIRECTORY))))
    orientation = _integer(main.get(_ORIENTATION))
    latitude, longitude = _place(place)
    return ExifFacts(
        orientation=orientation if 1 <= orientation <= 8 else 1,
        taken_at=_time(shot, _TAKEN, _TAKEN_OFFSET) or _time(shot, _DIGITIZED, _DIGITIZED_OFFSET),
        camera=_camera(_text(main.get(_MAKE)), _text(main.get(_MODEL))),
        latitude_deg=latitude,
        longitude_deg=longitude,
    )


def _entries(file: IO[bytes], order: str, start: int) -> Iterator[tuple[int, _Value]]:
    """(tag, value) of the directory at `start`; entries that point outside of the file are left out."""
    if start < 8:
        return
    count = min(int.from_bytes(_bytes_at(file, start, 2), "little" if order == "<" else "big"), _MAX_ENTRIES)
    directory = _bytes_at(file, start + 2, 12 * count)
    for at in range(0, len(directory) - 11, 12):
        tag, kind, length, offset = struct.unpack_from(order + "HHII", directory, at)
        if tag not in _KEPT or kind not in _WIDTHS:
            continue
        n_bytes = _WIDTHS[kind] * length
        wanted = min(n_bytes, _WIDTHS[kind] * (_MAX_TEXT_BYTES if kind in (2, 7) else 4))
        raw = directory[at + 8 : at + 8 + n_bytes] if n_bytes <= 4 else _bytes_at(file, offset, wanted)
        if len(raw) == wanted:
            yield tag, _value(raw, kind, order)


def _bytes_at(file: IO[bytes], offset: int, n_bytes: int) -> bytes:
    """Fewer bytes where the file ends, or cannot be read."""
    try:
        file.seek(offset)
        return file.read(n_bytes)
    except (OSError, ValueError):
        return b""


def _number_at(file: IO[bytes], offset: int, order: str) -> int:
    return int.from_bytes(_bytes_at(file, offset, 4), "little" if order == "<" else "big")


def _value(raw: bytes, kind: int, order: str) -> _Value:
    if kind in (2, 7):
        text = raw.split(b"\0", 1)[0]
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:  # also a letter that the length limit cut in two
            return text.decode("latin-1")
    if kind in (5, 10):
        parts = struct.unpack(f"{order}{len(raw) // 4}{'I' if kind == 5 else 'i'}", raw)
        return [n / d if d else float("nan") for n, d in zip(parts[::2], parts[1::2], strict=True)]
    return list(struct.unpack(f"{order}{len(raw) // _WIDTHS[kind]}{_CODES[kind]}", raw))


def _integer(value: _Value | None) -> int:
    """The first number of a value, 0 if there is none."""
    return int(value[0]) if isinstance(value, list) and value and math.isfinite(value[0]) else 0


def _text(value: _Value | None) -> str:
    """One line of printable text, without the blanks that some cameras fill it up with."""
    if not isinstance(value, str):
        return ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())


def _camera(make: str, model: str) -> str | None:
    """Maker and model, with the maker once: Canon + Canon EOS 5D, NIKON CORPORATION + NIKON D90, Apple + iPhone 12."""
    if make and model and make.split()[0].casefold() != model.split()[0].casefold():
        return f"{make} {model}"
    return model or make or None


def _time(shot: dict[int, _Value], tag: int, offset_tag: int) -> str | None:
    """ISO 8601, with the camera's offset from UTC if it is known."""
    found = re.match(r"(\d{4})\D(\d\d)\D(\d\d)\D(\d\d)\D(\d\d)(?:\D(\d\d))?", _text(shot.get(tag)), re.ASCII)
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        time = datetime(year, month, day, hour, minute, second)
    except ValueError:  # 0000:00:00 00:00:00, which cameras write when their clock was never set
        return None
    if time.year < 1826:  # the oldest photograph that is left
        return None
    offset = re.fullmatch(r"([+-])(\d\d):?([0-5]\d)", _text(shot.get(offset_tag)), re.ASCII)
    if offset and int(offset[2]) <= 14:
        minutes = int(offset[2]) * 60 + int(offset[3])
        time = time.replace(tzinfo=timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes)))
    return time.isoformat()


def _place(place: dict[int, _Value]) -> tuple[float, float] | tuple[None, None]:
    """(latitude, longitude) in degrees, both or none; 0, 0 is what is written where there was no reception."""
    latitude = _degrees(place.get(_LATITUDE), _text(place.get(_LATITUDE_REF)), "N", "S", 90.0)
    longitude = _degrees(place.get(_LONGITUDE), _text(place.get(_LONGITUDE_REF)), "E", "W", 180.0)
    if latitude is None or longitude is None or latitude == longitude == 0.0:
        return None, None
    return latitude, longitude


def _degrees(value: _Value | None, ref: str, positive: str, negative: str, limit: float) -> float | None:
    sign = {positive: 1.0, negative: -1.0}.get(ref[:1].upper())
    if sign is None or not isinstance(value, list) or not 1 <= len(value) <= 3:
        return None
    degrees = sign * sum(part / 60.0**power for power, part in enumerate(value))
    return round(degrees, 7) if abs(degrees) <= limit else None  # 7 digits are a centimetre; NaN fails the comparison
