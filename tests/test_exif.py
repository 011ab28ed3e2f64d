"""EXIF blocks of every kind that is met outside: read where they can be, never raised at, never read wrongly."""

import io
import math
import re
import struct
import zlib
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from mmsearch import Index, media
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.exif import ExifFacts, exif_block, read_exif
from tests import pictures

TINY = PixelSpec(32, 32)

BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL, FLOAT, DOUBLE, IFD = range(1, 14)
LONG8, SLONG8, IFD8, UTF8 = 16, 17, 18, 129
CODES = {
    BYTE: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SBYTE: "b", SSHORT: "h", SLONG: "i", SRATIONAL: "i", FLOAT: "f",
    DOUBLE: "d", IFD: "I", LONG8: "Q", SLONG8: "q", IFD8: "Q",
}  # fmt: skip
WIDTHS = {kind: struct.calcsize("=" + code) for kind, code in CODES.items()} | {ASCII: 1, UNDEFINED: 1, UTF8: 1}
WIDTHS |= {RATIONAL: 8, SRATIONAL: 8}

MAKE, MODEL, ORIENTATION, CHANGED, TAKEN, DIGITIZED = 0x010F, 0x0110, 0x0112, 0x0132, 0x9003, 0x9004
CHANGED_OFFSET, TAKEN_OFFSET, DIGITIZED_OFFSET = 0x9010, 0x9011, 0x9012
SHOT, GPS = 0x8769, 0x8825

Field = tuple[int, int, Sequence[float] | bytes | str]  # tag, TIFF type, values; a rational is two of them
TIME = "2019:07:14 10:20:30"
PARIS: list[Field] = [
    (1, ASCII, "N"), (2, RATIONAL, (48, 1, 51, 1, 24, 1)), (3, ASCII, "E"), (4, RATIONAL, (2, 1, 21, 1, 0, 1)),
]  # fmt: skip


def tiff(
    main: Sequence[Field] = (),
    shot: Sequence[Field] = (),
    gps: Sequence[Field] = (),
    *,
    order: str = "<",
    big: bool = False,
    pointer: int = LONG,
    lies: dict[int, int] | None = None,
) -> bytes:
    """A TIFF structure with a directory, and the EXIF and GPS directories it points to, put together by hand.

    pointer: the TIFF type of the pointers. lies: tag -> the count that is written, whatever the value.
    """
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(
        order + ("HHHQ" if big else "HI"), *(43, 8, 0, 16) if big else (42, 8)
    )
    fields = [list(main), list(shot), list(gps)]
    starts = [len(head)]
    for number in range(2):  # how long a directory is does not depend on where the next one lies
        extra = [(tag, pointer, (0,)) for tag in (SHOT, GPS)] if number == 0 else []
        starts.append(starts[-1] + len(_directory([*fields[number], *extra], starts[-1], order, big, lies or {})))
    for tag, target, start in ((SHOT, shot, starts[1]), (GPS, gps, starts[2])):
        fields[0].append((tag, pointer, (start if target else 0,)))
    return head + b"".join(
        _directory(some, start, order, big, lies or {}) for some, start in zip(fields, starts, strict=True)
    )


def _directory(fields: Sequence[Field], start: int, order: str, big: bool, lies: dict[int, int]) -> bytes:
    room = 8 if big else 4
    table, rest = b"", b""
    data_at = start + (8 if big else 2) + len(fields) * (20 if big else 12) + room
    for tag, kind, value in fields:
        if isinstance(value, str):
            value = value.encode() + b"\0"
        raw = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{CODES[kind]}", *value)
        count = lies.get(tag, len(raw) // WIDTHS[kind])
        if WIDTHS[kind] * count <= room:
            here = raw[:room].ljust(room, b"\0")
        else:
            here = struct.pack(order + ("Q" if big else "I"), data_at + len(rest))
            rest += raw
        table += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + here
    return struct.pack(order + ("Q" if big else "H"), len(fields)) + table + bytes(room) + rest


def place(*fields: Field) -> tuple[float | None, float | None]:
    """What is read of Paris with some fields in place of its own."""
    merged = {field[0]: field for field in (*PARIS, *fields)}
    facts = read_exif(tiff(gps=list(merged.values())))
    return facts.latitude_deg, facts.longitude_deg


def taken(text: str | bytes, kind: int = ASCII, tag: int = TAKEN) -> str | None:
    return read_exif(tiff(shot=[(tag, kind, text)])).taken_at


# Where things are


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("pointer", "big"),
    [
        (LONG, False),
        (IFD, False),
        (LONG8, False),
        (IFD8, False),
        (SHORT, False),
        (LONG, True),
        (IFD, True),
        (LONG8, True),
        (IFD8, True),
    ],
)
def test_the_directories_are_found_by_a_pointer_of_any_type(order: str, pointer: int, big: bool) -> None:
    facts = read_exif(
        tiff([(MODEL, ASCII, "X100")], [(TAKEN, ASCII, TIME)], PARIS, order=order, big=big, pointer=pointer)
    )
    assert facts == ExifFacts(1, "2019-07-14T10:20:30", "X100", 48.8566667, 2.35)


def test_a_tiff_with_pointers_of_type_ifd_keeps_its_time_and_place(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(
        path := tmp_path / "a.tif", exif=pictures.exif(taken_at=TIME, latitude_deg=48.5, longitude_deg=2.5)
    )
    data = bytearray(path.read_bytes())
    for tag in (SHOT, GPS):
        at = data.index(struct.pack("<HHI", tag, LONG, 1))
        struct.pack_into("<H", data, at + 2, IFD)
    facts = media.read(bytes(data), TINY).facts
    assert (facts.taken_at, facts.latitude_deg, facts.longitude_deg) == ("2019-07-14T10:20:30", 48.5, 2.5)


def test_a_bigtiff_and_a_raw_file_built_like_dng_are_read_where_they_say() -> None:
    dng = tiff(
        [(ORIENTATION, SHORT, (6,)), (TAKEN, ASCII, TIME), (MAKE, ASCII, "Leica"), (0xC612, BYTE, (1, 4, 0, 0))],
        gps=PARIS,
    )
    assert read_exif(io.BytesIO(dng)) == ExifFacts(6, "2019-07-14T10:20:30", "Leica", 48.8566667, 2.35)


def test_a_gps_directory_is_found_from_the_exif_directory_too() -> None:
    main = tiff(shot=[(TAKEN, ASCII, TIME), (GPS, LONG, (0,))], gps=PARIS)
    at = main.index(struct.pack("<HHI", GPS, LONG, 1))  # of the main directory
    start = struct.unpack_from("<I", main, at + 8)[0]
    moved = bytearray(main)
    struct.pack_into("<I", moved, at + 8, 0)
    inner = (
        main.index(struct.pack("<HHI", GPS, LONG, 1), at + 1)
        if main.count(struct.pack("<HHI", GPS, LONG, 1)) > 1
        else at
    )
    struct.pack_into("<I", moved, inner + 8, start)
    assert read_exif(bytes(moved)).longitude_deg == 2.35


@pytest.mark.parametrize(
    "lead", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0", b"Exif\0\xff", b"exif\0", b"\0\0\0\x06Exif\0\0"]
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_begins_with_its_tiff_header(lead: bytes, order: str) -> None:
    assert read_exif(lead + tiff(shot=[(TAKEN, ASCII, TIME)], order=order)).taken_at == "2019-07-14T10:20:30"


# In which files


def _png(*chunks: tuple[bytes, bytes], after: bool = False) -> bytes:
    """A PNG of four colours with further chunks, before its pixels or after them."""
    out = io.BytesIO()
    pictures.quadrants().transpose(Image.Transpose.ROTATE_90).save(out, "PNG")
    data = out.getvalue()
    at = data.index(b"IEND" if after else b"IDAT") - 4
    made = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return data[:at] + made + data[at:]


def _raw_profile(name: bytes, block: bytes) -> bytes:
    """As ImageMagick writes it: coders/png.c, Magick_png_write_raw_profile."""
    digits = block.hex().encode()
    lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (name, len(block), lines)


TURNED = tiff([(ORIENTATION, SHORT, (6,)), (MODEL, ASCII, "X100")], [(TAKEN, ASCII, TIME)], PARIS)
PROFILE_EXIF = _raw_profile(b"exif", b"Exif\0\0" + TURNED)
PROFILE_APP1 = _raw_profile(b"app1", b"Exif\0\0" + TURNED)
PNG_WAYS: dict[str, tuple[bytes, bytes]] = {
    "eXIf": (b"eXIf", TURNED),
    "eXIf with Exif before it": (b"eXIf", b"Exif\0\0" + TURNED),
    "tEXt exif": (b"tEXt", b"Raw profile type exif\0" + PROFILE_EXIF),
    "zTXt exif": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE_EXIF)),
    "iTXt exif": (b"iTXt", b"Raw profile type exif\0\0\0\0\0" + PROFILE_EXIF),
    "tEXt APP1": (b"tEXt", b"Raw profile type APP1\0" + PROFILE_APP1),
    "zTXt exif with bytes behind it": (
        b"zTXt",
        b"Raw profile type exif\0\0" + zlib.compress(PROFILE_EXIF + b'$"\x1d!'),
    ),
    "zTXt APP1": (b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(PROFILE_APP1)),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("way", PNG_WAYS)
def test_a_png_is_upright_and_keeps_its_facts_whichever_way_its_exif_was_written(way: str, after: bool) -> None:
    data = _png(PNG_WAYS[way], after=after)
    facts = media.read(data, TINY).facts
    assert (facts.width, facts.height) == (320, 200)
    assert (facts.taken_at, facts.camera) == ("2019-07-14T10:20:30", "X100")
    assert (facts.latitude_deg, facts.longitude_deg) == (48.8566667, 2.35)
    assert media.load_rgb(data).getpixel((5, 5)) == pictures.QUADRANTS["top left"]
    with Image.open(io.BytesIO(data)) as image:  # in memory: what index.add_images takes
        assert media.read(image, TINY).facts.taken_at == "2019-07-14T10:20:30"


def test_a_profile_that_is_no_exif_does_not_hide_one_that_is() -> None:
    xmp = _raw_profile(b"app1", b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    data = _png((b"eXIf", b"nonsense"), (b"tEXt", b"Raw profile type APP1\0" + xmp), PNG_WAYS["zTXt exif"])
    assert media.read(data, TINY).facts.taken_at == "2019-07-14T10:20:30"
    for broken in (
        b"",
        b"\n",
        b"\nexif\n 12\n",
        b"\nexif\n 12\nzz",
        b"\nexif\n -4\n4d4d",
        b"exif 6 45",
        b"\nexif\n3\n4d4",
    ):
        assert media.read(_png((b"tEXt", b"Raw profile type exif\0" + broken)), TINY).facts.taken_at is None


def test_webp_with_and_without_the_mark(tmp_path: Path) -> None:
    for lead in (b"", b"Exif\0\0"):
        pictures.quadrants().save(path := tmp_path / "a.webp", exif=TURNED)
        data = path.read_bytes()
        at = data.index(b"EXIF")
        chunk = lead + TURNED + b"\0" * (len(TURNED) % 2)
        body = data[8:at] + b"EXIF" + struct.pack("<I", len(lead + TURNED)) + chunk
        facts = media.read(b"RIFF" + struct.pack("<I", len(body)) + body, TINY).facts
        assert (facts.taken_at, facts.width, facts.height) == ("2019-07-14T10:20:30", 200, 320)


@pytest.mark.parametrize("suffix", ["avif", "heic"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_heic_and_avif_with_an_offset_before_the_block(tmp_path: Path, suffix: str, order: str) -> None:
    block = tiff([(MODEL, ASCII, "X100")], [(TAKEN, ASCII, TIME)], PARIS, order=order)
    path = tmp_path / f"a.{suffix}"
    pictures.heic(path, pictures.quadrants(), block) if suffix == "heic" else pictures.quadrants().save(
        path, exif=block
    )
    data = path.read_bytes()
    assert struct.pack(">I", 0) + block in data or struct.pack(">I", 6) + b"Exif\0\0" + block in data
    facts = media.read(str(path), TINY).facts
    assert (facts.taken_at, facts.camera, facts.latitude_deg) == ("2019-07-14T10:20:30", "X100", 48.8566667)


@pytest.mark.parametrize("order", ["<", ">"])
def test_heic_without_the_offset_that_belongs_before_the_block(tmp_path: Path, order: str) -> None:
    block = tiff([(MODEL, ASCII, "X100")], [(TAKEN, ASCII, TIME)], order=order)
    path = pictures.heic(tmp_path / "a.heic", pictures.quadrants(), block)
    data = path.read_bytes()
    lead = next(lead for lead in (struct.pack(">I", 0), struct.pack(">I", 6) + b"Exif\0\0") if lead + block in data)
    path.write_bytes(data.replace(lead + block, block + bytes(len(lead))))
    facts = media.read(str(path), TINY).facts
    assert (facts.taken_at, facts.camera) == ("2019-07-14T10:20:30", "X100")


def test_exif_that_pillow_cannot_write_anew_does_not_cost_a_turned_avif() -> None:
    """Pillow puts the container's orientation into the EXIF block, and raises where it cannot."""
    room = tiff([(ORIENTATION, SHORT, (6,)), (MODEL, ASCII, "Q" * 300)])
    out = io.BytesIO()
    pictures.quadrants().transpose(Image.Transpose.ROTATE_90).save(out, "AVIF", exif=room)
    data = out.getvalue()
    start, end = data.index(b"II*\0"), data.index(b"Q" * 300) + 300
    for odd in ((0x0128, BYTE, (2,)), (0x0213, ASCII, "abc"), (0x011A, ASCII, "72/1"), (0x011A, SRATIONAL, (72, -1))):
        block = tiff([(MODEL, ASCII, "X100"), odd], [(TAKEN, ASCII, TIME)])
        turned = data[:start] + block.ljust(end - start, b"\0") + data[end:]
        facts = media.read(turned, TINY).facts
        assert (facts.width, facts.height) == (320, 200)
        assert is_upright(media.load_rgb(turned))


def is_upright(image: Image.Image) -> bool:
    found = np.array(image.getpixel((20, 20)), dtype=int)
    return bool(np.abs(found - pictures.QUADRANTS["top left"]).max() < 30)


def _jpeg(*segments: bytes) -> bytes:
    """A JPEG with APP segments right after its start, as they are given."""
    out = io.BytesIO()
    pictures.quadrants().save(out, "JPEG")
    return out.getvalue()[:2] + b"".join(segments) + out.getvalue()[2:]


def _app(number: int, body: bytes) -> bytes:
    return bytes((0xFF, 0xE0 + number)) + struct.pack(">H", len(body) + 2) + body


def test_a_jpeg_with_several_segments() -> None:
    exif = _app(1, b"Exif\0\0" + TURNED)
    xmp = _app(1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    other = tiff([(ORIENTATION, SHORT, (3,))], [(TAKEN, ASCII, "2001:01:01 00:00:00")])
    ways = {
        "after others": (_app(0, b"JFIF\0" + bytes(9)), _app(13, b"Photoshop 3.0\0"), _app(2, b"ICC"), xmp, exif),
        "before others": (exif, xmp, _app(0, b"JFIF\0" + bytes(9))),
        "the first of two": (exif, _app(1, b"Exif\0\0" + other)),
        "in two pieces": (_app(1, b"Exif\0\0" + TURNED[:70]), _app(1, b"Exif\0\0" + TURNED[70:])),
    }
    for name, segments in ways.items():
        facts = media.read(_jpeg(*segments), TINY).facts
        assert (facts.taken_at, facts.width) == ("2019-07-14T10:20:30", 200), name


# Times


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2019:07:14 10:20:30", "2019-07-14T10:20:30"),
        ("2025:01:14", "2025-01-14"),
        ("2025:01:14 ", "2025-01-14"),
        ("2003: 5: 4", "2003-05-04"),
        ("2003: 5: 4  9: 3: 1", "2003-05-04T09:03:01"),
        ("2003:5:4 9:3", "2003-05-04T09:03:00"),
        ("2012:05:04 24:00:00", "2012-05-04"),
        ("2012:05:04 24:30:00", "2012-05-04"),
        ("2012:05:04 10:61:00", "2012-05-04"),
        ("2012:05:04 10:20:60", "2012-05-04"),
        ("2012:05:04   :  :  ", "2012-05-04"),
        ("2012:05:04 --:--:--", "2012-05-04"),
        ("2004:05:04 오후 3:04:05", "2004-05-04"),
        ("2008-06-16 16:39:39 ", "2008-06-16T16:39:39"),
        ("2015-06-29T18:19:12+01:00", "2015-06-29T18:19:12+01:00"),
        ("2004-07-13T21:23:44Z", "2004-07-13T21:23:44+00:00"),
        ("2019:06:06 05:15:13+02:00", "2019-06-06T05:15:13+02:00"),
        ("2024-04-22T14:38:09GMT+2", "2024-04-22T14:38:09"),
        ("2005.09.15 16:28:54", "2005-09-15T16:28:54"),
        ("2005/09/15 16:28:54.123", "2005-09-15T16:28:54"),
        ("1997:08:25:13:12:50", "1997-08-25T13:12:50"),
        ("20111006 17:47:14.264", "2011-10-06T17:47:14"),
        ("20111006", "2011-10-06"),
        ("2012:05:04 03:04:05 PM", "2012-05-04T15:04:05"),
        ("2012:05:04 12:04 am", "2012-05-04T00:04:00"),
        ("2012:05:04\0 10:20:30", "2012-05-04"),
        ("9999:12:31 23:59:59", "9999-12-31T23:59:59"),
        ("1826:01:01 00:00:00", "1826-01-01T00:00:00"),
        ("1825:12:31 00:00:00", None),
        ("0000:00:00 00:00:00", None),
        ("0000:01:01 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2019:13:14 10:20:30", None),
        ("2019:00:14 10:20:30", None),
        ("2019:07:00 10:20:30", None),
        ("2019:02:29 10:20:30", None),
        ("2019:07", None),
        ("06:01:1998", None),  # June or January
        ("19:07:14 10:20:30", None),
        ("201907141", None),
        ("2019:07:145", None),
        ("２０１９:07:14", None),
        ("-2019:07:14", None),
        ("now", None),
        ("", None),
    ],
)
def test_a_time_is_read_in_every_form_in_which_the_year_comes_first(written: str, read: str | None) -> None:
    assert taken(written) == read


@pytest.mark.parametrize("kind", [ASCII, UNDEFINED, BYTE, UTF8])
def test_a_time_of_any_type_of_text(kind: int) -> None:
    assert taken(TIME.encode() + b"\0", kind) == taken(TIME.encode(), kind) == "2019-07-14T10:20:30"


def test_the_best_time_is_taken_wherever_it_lies() -> None:
    original, digitized, changed = (
        (tag, ASCII, f"20{n}:01:01 00:00:00") for tag, n in ((TAKEN, 11), (DIGITIZED, 12), (CHANGED, 13))
    )
    broken = (TAKEN, ASCII, "0000:00:00 00:00:00")
    for main, shot, year in (
        ([changed], [digitized, original], "2011"),
        ([changed, original], [digitized], "2011"),
        ([changed], [digitized, broken], "2012"),
        ([changed, digitized], [], "2012"),
        ([changed], [broken], "2013"),
        ([changed], [], "2013"),
        ([], [changed], "2013"),
    ):
        assert (read_exif(tiff(main, shot)).taken_at or "")[:4] == year


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("+02:00", "+02:00"), ("-09:30", "-09:30"), ("+0530", "+05:30"), ("+2:00", "+02:00"), ("Z", "+00:00"),
        ("-00:00", "+00:00"),
        ("+14:00", "+14:00"), ("-14:00", "-14:00"), ("+14:30", ""), ("+15:00", ""), ("-14:01", ""), ("+99:99", ""),
        ("+02:60", ""), ("   :  ", ""), ("02:00", ""), ("+", ""), ("", ""), ("summer", ""),
    ],
)  # fmt: skip
def test_an_offset_is_one_that_exists(written: str, read: str) -> None:
    for tag, offset in ((TAKEN, TAKEN_OFFSET), (DIGITIZED, DIGITIZED_OFFSET), (CHANGED, CHANGED_OFFSET)):
        facts = read_exif(tiff(shot=[(tag, ASCII, TIME), (offset, ASCII, written)]))
        assert facts.taken_at == "2019-07-14T10:20:30" + read


def test_an_offset_belongs_to_its_own_time() -> None:
    facts = read_exif(tiff([(CHANGED, ASCII, TIME)], [(TAKEN_OFFSET, ASCII, "+02:00")]))
    assert facts.taken_at == "2019-07-14T10:20:30"


_numbers = st.integers(0, 99).map(str) | st.integers(0, 99).map("{:02}".format)
_separators = st.sampled_from(":-/. T\t,_") | st.characters()


@given(
    st.lists(st.tuples(_numbers, _separators), max_size=6).map(lambda parts: "".join(a + b for a, b in parts)),
    st.integers(0, 9999),
    st.text(max_size=8),
)
@example("07:14 24:00:00", 2019, "+14:01")
@example("12:31 23:59:59", 9999, "-14:00")
def test_a_time_is_iso_8601_or_none_and_its_day_is_the_written_one(rest: str, year: int, offset: str) -> None:
    text = f"{year:04}:{rest}"
    facts = read_exif(tiff(shot=[(TAKEN, ASCII, text), (TAKEN_OFFSET, ASCII, offset)]))
    if facts.taken_at is not None:
        day = date.fromisoformat(facts.taken_at[:10])
        assert len(facts.taken_at) == 10 or datetime.fromisoformat(facts.taken_at).date() == day
        digits = [int(part) for part in re.findall(r"[0-9]{1,4}", text)]
        compact = re.match(r"[0-9]{4}\D?[0-9]{4}", text)
        assert compact or [day.year, day.month, day.day] == digits[:3]


def test_filters_by_day_find_a_picture_of_which_the_day_alone_is_known(tmp_path: Path) -> None:
    """What U1-3 asks: an image with a day alone, in ModifyDate alone, or in the main directory, is found by its day."""
    blocks = {
        "day": tiff(shot=[(TAKEN, ASCII, "2025:01:14")]),
        "midnight": tiff(shot=[(TAKEN, ASCII, "2025:01:14 24:00:00")]),
        "changed": tiff([(CHANGED, ASCII, "2025:01:14 08:00:00")]),
        "main": tiff([(TAKEN, ASCII, "2025:01:14 08:00:00")]),
        "blanks": tiff(shot=[(TAKEN, ASCII, "2025: 1:14")]),
        "before": tiff(shot=[(TAKEN, ASCII, "2025:01:13 23:59:59")]),
        "after": tiff(shot=[(TAKEN, ASCII, "2025:01:15")]),
    }
    (folder := tmp_path / "photos").mkdir()
    for seed, (name, block) in enumerate(blocks.items()):
        pictures.photo(folder / f"{name}.jpg", (64, 48), seed, exif=b"Exif\0\0" + block)
    with Index(tmp_path / "index", model="lite") as index:
        index.add(folder)

        def found(after: str | None, before: str | None) -> set[str]:
            hits = index.search("a photo", k=20, after=after, before=before)
            return {Path(hit.path).stem for hit in hits if hit.path}

        same_day = {"day", "midnight", "changed", "main", "blanks"}
        assert found("2025-01-14", "2025-01-15") == same_day
        assert found("2025-01-14", None) == same_day | {"after"}
        assert found(None, "2025-01-14") == {"before"}
        assert found("2025-01", "2025-02") == found("2025", "2026") == set(blocks)


# Places


@pytest.mark.parametrize(
    ("latitude", "read"),
    [
        ((48, 1, 51, 1, 0, 0), 48.85),  # F22
        ((48, 1, 0, 0, 0, 0), 48.0),
        ((48, 1, 51, 1), 48.85),
        ((48, 1), 48.0),
        ((488566, 10000), 48.8566),
        ((48, 1, 513, 10, 0, 1), 48.855),
        ((48, 1, 51, 1, 60, 1), 48.8666667),
        ((48, 1, 51, 1, 24, 1, 7, 1), 48.8566667),  # a fourth one is nothing
        ((90, 1, 0, 1, 0, 1), 90.0),
        ((0, 1, 0, 1, 1, 10), 0.0000278),
        ((4294967248, 89478484, 0, 1, 0, 1), 48.0000002),
        # None of these is a place
        ((0, 0, 0, 0, 0, 0), None),
        ((0, 0, 51, 1, 0, 1), None),
        ((48, 0, 51, 1, 0, 1), None),
        ((48, 1, 51, 0, 0, 1), None),
        ((48, 1, 51, 1, 24, 0), None),
        ((90, 1, 0, 1, 1, 1), None),
        ((91, 1, 0, 1, 0, 1), None),
        ((48, 1, 61, 1, 0, 1), None),
        ((48, 1, 51, 1, 61, 1), None),
        ((4294967295, 1, 0, 1, 0, 1), None),
        ((48, 1, 51, 1, 4294967295, 1), None),
        ((), None),
    ],
)
def test_a_latitude_in_rationals(latitude: tuple[int, ...], read: float | None) -> None:
    assert place((2, RATIONAL, latitude)) == ((read, 2.35) if read is not None else (None, None))


@pytest.mark.parametrize(
    ("ref", "kind", "values", "read"),
    [
        ("S", SRATIONAL, (33, 1, 30, 1, 0, 1), -33.5),
        ("S", SRATIONAL, (-33, 1, -30, 1, 0, 1), -33.5),
        ("S", SRATIONAL, (-335, 10), -33.5),
        ("N", SRATIONAL, (-33, 1, 30, 1, 0, 1), None),  # it cannot be both
        ("S", SRATIONAL, (-33, 1, 30, 1, 0, 1), None),
        ("S", SRATIONAL, (33, -1, 30, -1, 0, 1), -33.5),
        ("N", DOUBLE, (48.8566,), 48.8566),
        ("N", FLOAT, (48.5,), 48.5),
        ("N", DOUBLE, (math.nan, 1.0, 1.0), None),
        ("N", DOUBLE, (48.0, math.nan, 0.0), None),
        ("N", DOUBLE, (math.inf,), None),
        ("N", DOUBLE, (1e308, 1e308, 1e308), None),
        ("S", DOUBLE, (-math.inf,), None),
        ("N", SHORT, (48, 30, 0), 48.5),
        ("N", BYTE, (48, 30, 0), 48.5),
        ("N", ASCII, b"48.8566\0", None),
        ("N", UNDEFINED, b"\x30", None),
    ],
)
def test_a_latitude_of_other_types(ref: str, kind: int, values: tuple[float, ...] | bytes, read: float | None) -> None:
    assert place((1, ASCII, ref), (2, kind, values))[0] == read


@pytest.mark.parametrize(
    ("ref", "sign"),
    [
        ("N", 1), ("n", 1), ("S", -1), ("s", -1), ("N ", 1), (" S", -1), ("North", 1), ("SOUTH", -1), (b"S", -1),
        (b"S\0", -1),
        ("", None), ("E", None), ("W", None), ("N/A", None), ("None", None), ("unknown", None), ("?", None),
        ("1", None),
        ("\u017f", None), ("\u0421", None), (b"\xd1", None), (b"\0S", None), (b"\xff\xff", None),
    ],
)  # fmt: skip
def test_a_side_of_the_equator_is_said_or_there_is_no_place(ref: str | bytes, sign: int | None) -> None:
    expected = (None, None) if sign is None else (sign * 48.8566667, 2.35)
    for kind in (ASCII, BYTE, UNDEFINED, UTF8):
        assert place((1, kind, ref if isinstance(ref, bytes) else ref.encode() + b"\0")) == expected


def test_a_place_with_half_of_it_missing_is_none() -> None:
    for missing in range(1, 5):
        facts = read_exif(tiff(gps=[field for field in PARIS if field[0] != missing]))
        assert (facts.latitude_deg, facts.longitude_deg) == (None, None)
    zero: tuple[Field, ...] = ((2, RATIONAL, (0, 1, 0, 1, 0, 1)), (4, RATIONAL, (0, 1, 0, 1, 0, 1)))
    assert place(*zero) == (None, None)
    assert place(zero[0]) == (0.0, 2.35)  # on the equator
    assert str(place((1, ASCII, "S"), zero[0])[0]) == "0.0"
    assert place((4, RATIONAL, (180, 1, 0, 1, 0, 1)), (3, ASCII, "W"))[1] == -180.0
    assert place((4, RATIONAL, (180, 1, 0, 1, 1, 1))) == (None, None)


_values = st.integers(0, 2**32 - 1) | st.sampled_from((0, 1, 2**31, 2**32 - 1))
_doubles = st.floats(width=64)


@given(
    st.sampled_from((RATIONAL, SRATIONAL, DOUBLE, FLOAT, SHORT, LONG8, SLONG)),
    st.lists(_values, max_size=8),
    st.lists(_doubles, max_size=4),
    st.text(max_size=3) | st.sampled_from("NSEWnsew"),
    st.sampled_from("<>"),
)
def test_a_place_is_on_the_globe_or_none(kind: int, whole: list[int], reals: list[float], ref: str, order: str) -> None:
    raw: bytes | tuple[float, ...]
    if kind in (DOUBLE, FLOAT):
        with np.errstate(over="ignore"):
            raw = np.array(reals, dtype=order + ("f8" if kind == DOUBLE else "f4")).tobytes()
    else:
        pairs = whole[: len(whole) // 2 * 2]
        dtype = {RATIONAL: "u4", SRATIONAL: "u4", SHORT: "u2", LONG8: "u8", SLONG: "u4"}[kind]
        raw = np.array(pairs, dtype="u8").astype(order + dtype).tobytes()
    gps: list[Field] = [(1, ASCII, ref), (2, kind, raw), (3, ASCII, ref), (4, kind, raw)]
    for fields in (gps, [*PARIS[:2], *gps[2:]], [*gps[:2], *PARIS[2:]]):
        facts = read_exif(tiff(gps=fields, order=order))
        if facts.latitude_deg is None or facts.longitude_deg is None:
            assert facts.latitude_deg is facts.longitude_deg is None
        else:
            assert -90 <= facts.latitude_deg <= 90 and -180 <= facts.longitude_deg <= 180


# Which way is up


@pytest.mark.parametrize(
    ("kind", "values", "read"),
    [
        (SHORT, (6,), 6), (BYTE, (6,), 6), (LONG, (6,), 6), (SBYTE, (6,), 6), (SSHORT, (6,), 6), (SLONG, (6,), 6),
        (LONG8, (6,), 6),
        (RATIONAL, (12, 2), 6), (SRATIONAL, (6, 1), 6), (FLOAT, (6.0,), 6), (DOUBLE, (6.0,), 6), (SHORT, (6, 3, 8), 6),
        (SHORT, (0,), 1), (SHORT, (9,), 1), (SHORT, (65535,), 1), (SHORT, (), 1), (SSHORT, (-6,), 1),
        (LONG, (2**32 - 2,), 1),
        (RATIONAL, (13, 2), 1), (RATIONAL, (6, 0), 1), (RATIONAL, (0, 0), 1), (DOUBLE, (math.nan,), 1),
        (DOUBLE, (math.inf,), 1),
        (DOUBLE, (6.5,), 1), (ASCII, b"6\0", 1), (UNDEFINED, b"\x06", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_a_whole_number_from_1_to_8_of_any_type(
    kind: int, values: tuple[float, ...] | bytes, read: int, order: str
) -> None:
    assert read_exif(tiff([(ORIENTATION, kind, values)], order=order)).orientation == read


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG, RATIONAL, FLOAT, DOUBLE])
def test_a_tiff_is_turned_once_whatever_the_type_of_its_orientation(kind: int, order: str) -> None:
    image = pictures.quadrants().transpose(Image.Transpose.ROTATE_90)
    pixels = image.tobytes()
    fields: list[Field] = [
        (256, SHORT, (image.width,)), (257, SHORT, (image.height,)), (258, SHORT, (8, 8, 8)), (259, SHORT, (1,)),
        (262, SHORT, (2,)), (273, LONG, (0,)), (ORIENTATION, kind, (6, 1) if kind == RATIONAL else (6,)),
        (277, SHORT, (3,)), (278, SHORT, (image.height,)), (279, LONG, (len(pixels),)),
    ]  # fmt: skip
    start = len(tiff(fields, order=order))
    data = (
        tiff([(tag, type_, (start,) if tag == 273 else values) for tag, type_, values in fields], order=order) + pixels
    )
    facts = media.read(data, TINY).facts
    assert (facts.width, facts.height) == (320, 200)
    assert is_upright(media.load_rgb(data))


# Damage


def test_counts_that_lie_cost_one_field_alone() -> None:
    for lie in (0, 1, 5, 2**16, 2**31, 2**32 - 1):
        block = tiff(
            [(MAKE, ASCII, "Leica"), (MODEL, ASCII, "LEICA M10 of the workshop")],
            [(TAKEN, ASCII, TIME)],
            PARIS,
            lies={MODEL: lie},
        )
        facts = read_exif(block)
        assert (facts.taken_at, facts.latitude_deg, facts.longitude_deg) == ("2019-07-14T10:20:30", 48.8566667, 2.35)


@pytest.mark.parametrize("target", [0, 1, 7, 8, 9, 2**31, 2**32 - 1])
@pytest.mark.parametrize("order", ["<", ">"])
def test_directories_that_loop_or_lie_outside_end(target: int, order: str) -> None:
    """8 is the main directory itself."""
    block = bytearray(
        tiff([(MODEL, ASCII, "X100"), (CHANGED, ASCII, TIME)], [(TAKEN, ASCII, TIME)], PARIS, order=order)
    )
    for tag in (SHOT, GPS):
        at = block.index(struct.pack(order + "HHI", tag, LONG, 1))
        struct.pack_into(order + "I", block, at + 8, target)
    facts = read_exif(bytes(block))
    assert (facts.camera, facts.taken_at, facts.latitude_deg) == ("X100", "2019-07-14T10:20:30", None)


def test_offsets_of_64_bits_end() -> None:
    for start in (2**63 - 1, 2**63, 2**64 - 1):
        assert read_exif(b"II+\0\x08\0\0\0" + struct.pack("<Q", start)) == ExifFacts()
        block = tiff([(MODEL, ASCII, "X100")], big=True)
        at = block.index(struct.pack("<HHQ", SHOT, LONG, 1))
        far = block[:at] + struct.pack("<HHQQ", SHOT, LONG8, 1, start) + block[at + 20 :]
        assert read_exif(far).camera == "X100"
        assert read_exif(io.BytesIO(far)).camera == "X100"


def test_a_directory_of_65535_entries_is_read_in_part(tmp_path: Path) -> None:
    entries = struct.pack("<HHII", MODEL, ASCII, 4, 0x00313158) * 65535
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + entries
    assert read_exif(block).camera == "X11"


def test_a_maker_note_with_bad_offsets_does_not_matter() -> None:
    note = struct.pack("<HHHII", 40, 1, ASCII, 2**31, 2**31) * 20
    assert read_exif(tiff(shot=[(0x927C, UNDEFINED, note), (TAKEN, ASCII, TIME)])).taken_at == "2019-07-14T10:20:30"


@pytest.mark.parametrize("big", [False, True])
def test_a_block_cut_anywhere_says_less_but_nothing_else(big: bool) -> None:
    whole = tiff([(ORIENTATION, SHORT, (6,)), (MODEL, ASCII, "X100")], [(TAKEN, ASCII, TIME)], PARIS, big=big)
    right = read_exif(whole)
    for at in range(len(whole)):
        facts = read_exif(whole[:at])
        assert facts.orientation in (1, right.orientation)
        for name in ("taken_at", "camera", "latitude_deg", "longitude_deg"):
            assert getattr(facts, name) in (None, getattr(right, name))


@given(st.data())
def test_whatever_a_block_holds_nothing_raises_and_the_facts_make_sense(data: st.DataObject) -> None:
    order, big = data.draw(st.sampled_from("<>")), data.draw(st.booleans())
    block = bytearray(
        tiff([(ORIENTATION, SHORT, (6,)), (MODEL, ASCII, "X")], [(TAKEN, ASCII, TIME)], PARIS, order=order, big=big)
    )
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(block) - 1), st.integers(0, 255)), max_size=12)):
        block[at] = value
    for source in (bytes(block), io.BytesIO(bytes(block))):
        facts = read_exif(source)
        assert 1 <= facts.orientation <= 8
        assert (facts.latitude_deg is None) == (facts.longitude_deg is None)
        if facts.taken_at is not None:
            assert date.fromisoformat(facts.taken_at[:10]).year >= 1826


@given(
    st.dictionaries(
        st.sampled_from(("exif", "Raw profile type exif", "Raw profile type APP1")), st.binary() | st.text() | st.none()
    )
)
def test_what_pillow_tells_is_a_block_or_nothing(info: dict[str, object]) -> None:
    assert read_exif(exif_block(info)).taken_at is None
