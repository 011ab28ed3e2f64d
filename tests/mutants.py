"""Mutants of image files: of their structure (chunks, boxes, entries), with checksums right, and of any bytes."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests import bitmaps, pictures
from tests.tiffs import tiff

Mutation = Callable[[random.Random, bytearray], bytes]
SIZE = (96, 80)  # eight times and more of what the fuzz run asks for, so that JPEGs are decoded at an eighth

_NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def originals(folder: Path) -> dict[str, list[bytes]]:
    """Undamaged files by their format, several of each."""
    scene, block = pictures.scene(SIZE), pictures.exif(orientation=6, make="Canon", latitude_deg=1.0, longitude_deg=2.0)
    files: dict[str, list[bytes]] = {}
    for name, path in pictures.every_format(folder, scene).items():
        format_ = {"codestream": "JPEG2000", "2000": "JPEG2000"}.get(name.split()[-1], name.split()[-1])
        files.setdefault("TIFF" if "TIFF" in name else format_, []).append(path.read_bytes())
    profile = pictures.linear_light_profile()
    for format_, how in (
        ("JPEG", {"exif": block, "icc_profile": profile, "comment": b"a comment"}),
        ("JPEG", {"restart_marker_blocks": 3, "subsampling": "4:2:2"}),
        ("JPEG", {"progressive": True, "exif": block}),
        ("PNG", {"exif": block, "icc_profile": profile}),
        ("WebP", {"exif": block, "icc_profile": profile, "xmp": b"<x/>"}),
        ("AVIF", {"exif": block, "icc_profile": profile, "speed": 9}),
        ("TIFF", {"exif": block, "icc_profile": profile}),
        ("TIFF", {"compression": "tiff_deflate", "icc_profile": profile}),
        ("JPEG2000", {"tile_size": (33, 33)}),
    ):
        out = io.BytesIO()
        scene.save(out, format_, **how)
        files[format_].append(out.getvalue())
    samples = np.asarray(scene)
    for order in ("<", ">"):
        files["TIFF"].append(tiff(samples.astype(np.uint16) * 257, 2, order=order, planes=True))  # type: ignore[arg-type]
        files["TIFF"].append(tiff(samples, 2, order=order, tile=16, compression="deflate", predictor=2))  # type: ignore[arg-type]
        files["TIFF"].append(tiff(samples, 2, order=order, big=True))  # type: ignore[arg-type]
        files["TIFF"].append(tiff(samples, 2, order=order, tile=16, names={324: 273, 325: 279, 262: 0}))  # type: ignore[arg-type]
    files["HEIC"].append(pictures.heic(folder / "exif.heic", scene, block).read_bytes())
    gif = io.BytesIO()
    scene.quantize(200).save(gif, "GIF", interlace=1, transparency=3, comment=b"a comment")
    files["GIF"].append(gif.getvalue())
    for mode in ("1", "P", "L", "RGBA"):
        bmp = io.BytesIO()
        scene.convert(mode).save(bmp, "BMP")
        files["BMP"].append(bmp.getvalue())
    files["BMP"].append(bitmaps.bitfields(samples, 32, (0xFF000000, 0xFF0, 0xFF0000), dib=True))
    files["BMP"].append(bitmaps.bitfields(samples, 16, (0xF, 0x7F0, 0x7800)))
    files["BMP"].append(bitmaps.palette(samples[:, :, 0], bytes(range(256)) * 4, header=16))
    return files


def mutants(files: dict[str, list[bytes]], seed: int) -> Iterator[tuple[str, bytes]]:
    """(format, mutant) without end, each format in its turn; half of them changed in their structure."""
    draw = random.Random(seed)
    while True:
        for format_, whole in files.items():
            data = bytearray(draw.choice(whole))
            structure = STRUCTURES.get(format_)
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                if structure is not None and draw.random() < 0.6:
                    data = bytearray(structure(draw, data))
                else:
                    data = bytearray(draw.choice(_BYTES)(draw, data))
            yield format_, bytes(data)


# Any bytes


def _place(draw: random.Random, data: bytearray) -> int:
    return draw.randrange(min(len(data), 700) if draw.random() < 0.5 else len(data)) if data else 0


def _changed(draw: random.Random, data: bytearray) -> bytes:
    for _ in range(draw.randrange(1, 5)):
        if data:
            at = _place(draw, data)
            data[at] = draw.choice((draw.randrange(256), 0, 255, data[at] ^ (1 << draw.randrange(8))))
    return data


def _number_set(draw: random.Random, data: bytearray) -> bytes:
    at, order, form = _place(draw, data), draw.choice("<>"), draw.choice("HI")
    number = draw.choice(_NUMBERS) & (0xFFFF if form == "H" else 0xFFFFFFFF)
    data[at : at + struct.calcsize(form)] = struct.pack(order + form, number)
    return data


def _cut(draw: random.Random, data: bytearray) -> bytes:
    return data[: draw.randrange(len(data) + 1)] if draw.random() < 0.5 else data[: -draw.randrange(1, 40)]


def _taken_out(draw: random.Random, data: bytearray) -> bytes:
    at = _place(draw, data)
    del data[at : at + draw.choice((1, 2, 4, 30, 300))]
    return data


def _doubled(draw: random.Random, data: bytearray) -> bytes:
    at, length = _place(draw, data), draw.choice((1, 2, 4, 30, 300))
    return data[: at + length] + data[at : at + length] * draw.choice((1, 1, 5)) + data[at + length :]


def _noise(draw: random.Random, data: bytearray) -> bytes:
    at = _place(draw, data)
    new = draw.randbytes(draw.choice((1, 3, 20, 200)))
    return data[:at] + new + data[at + draw.choice((0, len(new))) :]


_BYTES: tuple[Mutation, ...] = (_changed, _changed, _changed, _number_set, _cut, _taken_out, _doubled, _noise)


def _rearranged(draw: random.Random, parts: list[bytes]) -> list[bytes]:
    """One taken out, doubled, moved, or put somewhere else."""
    if not parts:
        return parts
    at, other = draw.randrange(len(parts)), draw.randrange(len(parts))
    way = draw.randrange(3)
    if way == 0:
        del parts[at]
    elif way == 1:
        parts.insert(other, parts[at])
    else:
        parts[at], parts[other] = parts[other], parts[at]
    return parts


# Formats


def _png(draw: random.Random, data: bytearray) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    if not chunks:
        return _changed(draw, data)
    number = draw.randrange(len(chunks))
    name, body = chunks[number]
    way = draw.randrange(5)
    if way == 0:  # what was compressed
        try:
            plain = bytearray(zlib.decompress(body))
            body = zlib.compress(_changed(draw, plain) if draw.random() < 0.5 else _cut(draw, plain))
        except zlib.error:
            pass
    elif way == 1:
        body = bytes(_changed(draw, bytearray(body)))
    elif way == 2:
        body = bytes(_cut(draw, bytearray(body)))
    elif way == 3:
        name = draw.choice((b"tRNS", b"PLTE", b"iCCP", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"eXIf", b"IDAT", b"gAMA"))
    chunks[number] = name, body
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    if way == 4:
        parts = _rearranged(draw, parts)
    return bytes(data[:8]) + b"".join(parts)


def _jpeg(draw: random.Random, data: bytearray) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(bytes(data[at : at + length]))
        at += length
    rest = bytes(data[at:])
    if not segments:
        return _changed(draw, data)
    number, way = draw.randrange(len(segments)), draw.randrange(5)
    segment = bytearray(segments[number])
    if way == 0:
        segments = _rearranged(draw, segments)
    elif way == 1 and len(segment) > 4:  # what is in it
        at = draw.randrange(4, len(segment))
        segment[at] = draw.choice((0, 1, 2, 0x11, 0x22, 0x44, 255, draw.randrange(256)))
        segments[number] = bytes(segment)
    elif way == 2:  # shorter, and it says so
        body = bytes(segment[4 : 4 + draw.randrange(len(segment))])
        segments[number] = bytes(segment[:2]) + struct.pack(">H", 2 + len(body)) + body
    elif way == 3:
        segments[number] = bytes(segment[:1]) + bytes(
            [draw.choice((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE))]
        )
        segments[number] += bytes(segment[2:])
    else:  # markers in the scan
        scan = bytearray(rest)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(max(1, len(scan)))
            scan[at:at] = bytes([0xFF, draw.choice((0, 0xD0, 0xD3, 0xD7, 0xD9, 0xDA, 0xFF, 0x01, 0xC4))])
        rest = bytes(scan)
    return bytes(data[:2]) + b"".join(segments) + rest


def _riff(draw: random.Random, data: bytearray) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append(bytearray(data[at : at + 8 + length + (length & 1)]))
        at += 8 + length + (length & 1)
    if not chunks:
        return _changed(draw, data)
    number, way = draw.randrange(len(chunks)), draw.randrange(4)
    if way == 0:
        chunks = [bytearray(part) for part in _rearranged(draw, [bytes(part) for part in chunks])]
    elif way == 1:
        chunks[number][4:8] = struct.pack("<I", draw.choice(_NUMBERS))
    elif way == 2:
        chunks[number][:4] = draw.choice(
            (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ")
        )
    else:
        head, body = chunks[number][:8], chunks[number][8:]
        chunks[number] = head + bytearray(_changed(draw, body))
    body = b"".join(bytes(part) for part in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_HOLDERS = (b"meta", b"iprp", b"ipco", b"jp2h", b"iinf", b"iref", b"moov")


def _box_places(data: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of every box, those within others too."""
    while start + 8 <= end:
        length = int.from_bytes(data[start : start + 4], "big")
        if length < 8 or start + length > end:
            return
        yield start, start + length
        name = bytes(data[start + 4 : start + 8])
        if name in _HOLDERS:
            yield from _box_places(data, start + 8 + {b"meta": 4, b"iref": 4, b"iinf": 6}.get(name, 0), start + length)
        start += length


def _boxes(draw: random.Random, data: bytearray) -> bytes:
    places = list(_box_places(data, 0, len(data)))
    if not places:
        return _changed(draw, data)
    start, end = draw.choice(places)
    way = draw.randrange(5)
    if way == 0:
        data[start : start + 4] = struct.pack(">I", draw.choice((*_NUMBERS, end - start - 1, end - start + 1)))
    elif way == 1:
        other = draw.choice(places)[0]
        data[start + 4 : start + 8] = data[other + 4 : other + 8]
    elif way == 2:
        del data[start:end]
    elif way == 3:
        data[end:end] = data[start:end]
    else:
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(start, end)
            data[at] = draw.choice((0, 1, 255, draw.randrange(256)))
    return data


def _tiff(draw: random.Random, data: bytearray) -> bytes:
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 10:
        return _changed(draw, data)
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0] if start + 2 <= len(data) else 0
    if not count or start + 2 + 12 * count > len(data):
        return _changed(draw, data)
    at = start + 2 + 12 * draw.randrange(count)
    field, form = draw.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H")))
    old = struct.unpack_from(order + form, data, at + field)[0]
    tags = (256, 257, 258, 259, 262, 273, 277, 278, 284, 317, 322, 338, 339, 274, 34675, 0x8769)
    new = draw.choice(tags) if field == 0 else draw.choice((*_NUMBERS, old + 1, old - 1, old * 2))
    struct.pack_into(order + form, data, at + field, new & (0xFFFF if form == "H" else 0xFFFFFFFF))
    return data


def _header(n_bytes: int) -> Mutation:
    """Numbers in the first bytes: of GIF and BMP, whose structure is little else."""

    def mutation(draw: random.Random, data: bytearray) -> bytes:
        at, form = draw.randrange(n_bytes), draw.choice("HI")
        number = draw.choice(_NUMBERS) & (0xFFFF if form == "H" else 0xFFFFFFFF)
        data[at : at + struct.calcsize(form)] = struct.pack("<" + form, number)
        return data

    return mutation


STRUCTURES: dict[str, Mutation] = {
    "PNG": _png,
    "APNG": _png,
    "JPEG": _jpeg,
    "WebP": _riff,
    "HEIC": _boxes,
    "AVIF": _boxes,
    "JPEG2000": _boxes,
    "TIFF": _tiff,
    "GIF": _header(30),
    "BMP": _header(60),
}
