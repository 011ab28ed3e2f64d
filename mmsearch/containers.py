"""What of an image file its pixels need, where Pillow would give the image up for damage to the rest.

Pillow reads a file's metadata before its pixels and refuses the whole for a comment with a wrong checksum, a profile of
2 MB or a directory entry that points behind the end. The libraries that decode the pixels (libpng, libjpeg, libwebp,
OpenJPEG, libtiff) pass such parts over, and so do other programs. The functions here give a view of the file without
those parts: the bytes stay where they are, nothing is decoded, and what the pixels depend on is left as it is.
"""

import bisect
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, TypeAlias

MAX_METADATA_BYTES = 4 * 2**20  # of one profile or text, unpacked
MAX_PARTS = 65_536  # of a file that is looked through; more is no image that a program wrote

Part: TypeAlias = "bytes | tuple[int, int]"  # new bytes, or (start, length) of the file


class View(io.RawIOBase):
    """A file that is put together from parts of another one and from new bytes."""

    def __init__(self, file: IO[bytes], parts: Iterable[Part]) -> None:
        self._file = file
        self._parts = [part for part in parts if (len(part) if isinstance(part, bytes) else part[1]) > 0]
        self._starts = [0]
        for part in self._parts:
            self._starts.append(self._starts[-1] + (len(part) if isinstance(part, bytes) else part[1]))
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise ValueError("a place before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As of any file; at most up to the end of a part."""
        if self._at >= self._starts[-1] or not len(buffer):
            return 0
        number = bisect.bisect_right(self._starts, self._at) - 1
        part, skipped = self._parts[number], self._at - self._starts[number]
        if isinstance(part, bytes):
            data = part[skipped : skipped + len(buffer)]
        else:
            self._file.seek(part[0] + skipped)
            data = self._file.read(min(len(buffer), part[1] - skipped))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def view(file: IO[bytes], parts: Iterable[Part]) -> IO[bytes]:
    """A file that is read as the parts, one after the other."""
    return io.BufferedReader(View(file, parts), 2**16)


def with_tail(file: IO[bytes], tail: bytes) -> IO[bytes]:
    """The file and more bytes behind it."""
    return view(file, [(0, size_of(file)), tail])


def size_of(file: IO[bytes]) -> int:
    """Its length in bytes."""
    return file.seek(0, io.SEEK_END)


def _bytes_at(file: IO[bytes], start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def without_damaged_metadata(file: IO[bytes], format_: str) -> Iterator[IO[bytes]]:
    """Views without what no pixel needs, of a file that its plugin does not open; the one that keeps most comes first.

    format_: as in `media.sniff`. PNG and TIFF have functions of their own.
    """
    parts = {
        "JPEG": [_jpeg_parts],
        "WEBP": [_webp_parts],
        "GIF": [_gif_parts],
        "JPEG2000": [_jp2_parts],
        "AVIF": [_avif_parts, _avif_parts_without_exif],
    }
    for kept in parts.get(format_, []):
        yield view(file, kept(file))


# PNG


_TEXT_WITH_EXIF = (b"Raw profile type exif", b"Raw profile type APP1", b"exif")  # as ImageMagick and others write it


def png_and_metadata(file: IO[bytes]) -> tuple[IO[bytes], dict[str, Any]]:
    """A view of a PNG's chunks for its first image alone, and of its metadata what is used, as Pillow names it.

    As libpng does, an ancillary chunk whose checksum is wrong, or that makes no sense, counts as missing, and so do the
    chunks of an animation. Text is read where it holds EXIF alone.
    """
    metadata: dict[str, Any] = {}
    parts: list[Part] = [(0, 8)]
    size, at, kind, has_pixels = size_of(file), 8, (0, 0), False
    for _ in range(MAX_PARTS):
        header = _bytes_at(file, at, 8)
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or not name.isalpha() or length >= 2**31:
            if not has_pixels:
                parts.append((at, size - at))  # for the plugin to say what is wrong with it
            break
        if name == b"IDAT" or (name[0:1].isupper() and not has_pixels):
            if name == b"IHDR":
                depth, colour_type = _bytes_at(file, at + 16, 2).ljust(2, b"\0")
                kind = colour_type, depth
            has_pixels = has_pixels or name == b"IDAT"
            if at + 12 + length <= size:
                _append(parts, at, 12 + length)
            else:  # the last, without its end
                length = min(length, size - at - 8)
                parts += [length.to_bytes(4, "big") + name, (at + 8, length)]
                break
        elif name in _PNG_METADATA or (name == b"tRNS" and not has_pixels):
            if length <= 4 * MAX_METADATA_BYTES and (data := _checked(file, at, length)) is not None:
                if name != b"tRNS":
                    for key, value in _PNG_METADATA[name](data):
                        metadata.setdefault(key, value)
                elif length in _TRANSPARENCY_BYTES.get(kind[0], ()):
                    parts.append(_chunk(name, _transparency(data, *kind)))
        elif name == b"IEND":
            break
        at += 12 + length
    parts.append(_chunk(b"IEND", b""))
    return view(file, parts), metadata


def _transparency(data: bytes, colour_type: int, depth: int) -> bytes:
    """What tRNS says, in the numbers that Pillow unpacks the pixels to: of 8 bits, but for 16 of grey."""
    values = struct.unpack(f">{len(data) // 2}H", data) if colour_type != 3 else ()
    if colour_type == 0 and depth in (2, 4):
        values = tuple((value & 2**depth - 1) * 255 // (2**depth - 1) for value in values)
    elif colour_type == 2 and depth == 16:
        values = tuple(value >> 8 for value in values)
    return struct.pack(f">{len(values)}H", *values) if values else data


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


_TRANSPARENCY_BYTES = {0: (2,), 2: (6,), 3: range(1, 257)}  # of tRNS, by the colour type


def _append(parts: list[Part], start: int, length: int) -> None:
    """Bytes of the file; what follows on the last part becomes one with it, since a PNG may have 100,000 chunks."""
    last = parts[-1]
    if not isinstance(last, bytes) and sum(last) == start:
        parts[-1] = (last[0], last[1] + length)
    else:
        parts.append((start, length))


def _checked(file: IO[bytes], at: int, length: int) -> bytes | None:
    """What is in the chunk at a place; None where its checksum is another."""
    chunk = _bytes_at(file, at + 4, length + 8)
    if len(chunk) < length + 8 or zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
        return None
    return chunk[4:-4]


def _inflated(data: bytes) -> bytes:
    """Nothing where it is damaged, or longer than is read."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return plain if stream.eof else b""


def _profile(data: bytes) -> Iterator[tuple[str, Any]]:
    _, _, packed = data.partition(b"\0")
    if packed[:1] == b"\0":
        yield "icc_profile", _inflated(packed[1:])


def _exif(data: bytes) -> Iterator[tuple[str, Any]]:
    yield "exif", b"Exif\0\0" + data


def _text(data: bytes) -> Iterator[tuple[str, Any]]:
    key, _, value = data.partition(b"\0")
    if key in _TEXT_WITH_EXIF:
        yield key.decode(), value if key == b"exif" else value.decode("latin-1")


def _packed_text(data: bytes) -> Iterator[tuple[str, Any]]:
    key, _, value = data.partition(b"\0")
    if key in _TEXT_WITH_EXIF and value[:1] == b"\0":
        yield key.decode(), _inflated(value[1:]).decode("latin-1")


def _international_text(data: bytes) -> Iterator[tuple[str, Any]]:
    key, _, value = data.partition(b"\0")
    parts = value[2:].split(b"\0", 2)
    if key in _TEXT_WITH_EXIF and len(parts) == 3:
        text = _inflated(parts[2]) if value[:1] == b"\1" else parts[2]
        yield key.decode(), text.decode("latin-1")


_PNG_METADATA = {
    b"iCCP": _profile,
    b"eXIf": _exif,
    b"tEXt": _text,
    b"zTXt": _packed_text,
    b"iTXt": _international_text,
}


# JPEG


def _jpeg_parts(file: IO[bytes]) -> list[Part]:
    """Without comments and application segments that are too short for what they say they are, as libjpeg reads it."""
    size, at = size_of(file), 2
    parts: list[Part] = [(0, 2)]
    for _ in range(MAX_PARTS):
        head = _bytes_at(file, at, 18)
        start = head.find(b"\xff")
        if start != 0 or head[1:2] == b"\xff" or len(head) < 4:  # between segments, or bytes that fill up
            at += start if start > 0 else 1 if start == 0 else len(head)
            if at >= size or not head:
                break
            continue
        marker, length, data = head[1], max(2, int.from_bytes(head[2:4], "big")), head[4:]
        if marker in _MARKERS_ALONE:
            at += 2
            continue
        if marker in (0xDA, 0xD9):
            parts.append((at, size - at))
            break
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or _is_of_use(marker, data, length - 2):
            _append(parts, at, 2 + length)
        at += 2 + length
    return parts


_MARKERS_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # without a length


def _is_of_use(marker: int, data: bytes, length: int) -> bool:
    """Of application segments: for the colours, and for what EXIF says."""
    return (
        (marker == 0xE0 and data.startswith(b"JFIF\0") and length >= 14)
        or (marker == 0xE1 and data.startswith(b"Exif\0\0"))
        or (marker == 0xE2 and data.startswith(b"ICC_PROFILE\0") and length >= 14)
        or (marker == 0xEE and data.startswith(b"Adobe") and length >= 12)
    )


class _Scan(NamedTuple):
    components: bytes  # their ids
    first: int  # of the 64 coefficients
    last: int
    low: int  # bits that a later scan brings


_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


def has_every_scan(data: bytes) -> bool:
    """Whether the last scan of a JPEG has begun: then all that its end lacks is the end of that scan."""
    components, is_progressive, scans = b"", False, []
    at = 2
    while (found := _NEXT_MARKER.search(data, at)) is not None:
        at = found.end()
        marker, length = data[at - 1], int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        if marker in (0xC0, 0xC1, 0xC2):
            components, is_progressive = segment[6::3], marker == 0xC2
        elif marker == 0xDA:
            if len(segment) < 4 or len(segment) != 2 * segment[0] + 4:
                return False
            scans.append(_Scan(segment[1:-3:2], segment[-3], segment[-2], segment[-1] & 15))
        at += length
    if not is_progressive:
        return bool(components) and set(components) == {one for scan in scans for one in scan.components}
    bits = {(component, place): 16 for component in components for place in range(64)}
    for scan in scans:
        bits.update({(one, place): scan.low for one in scan.components for place in range(scan.first, scan.last + 1)})
    return bool(components) and not any(bits.values())


# WebP


def _webp_parts(file: IO[bytes]) -> list[Part]:
    """The whole chunks, without metadata that ends after the file does; with the length that they have."""
    size, at = size_of(file), 12
    parts: list[Part] = []
    for _ in range(MAX_PARTS):
        header = _bytes_at(file, at, 8)
        length = int.from_bytes(header[4:], "little")
        length += length & 1
        if len(header) < 8 or at + 8 + length > size:
            break
        parts.append((at, 8 + length))
        at += 8 + length
    return [b"RIFF" + (at - 8).to_bytes(4, "little") + b"WEBP", *parts]


def webp_size(file: IO[bytes]) -> tuple[int, int]:
    """(width, height), which its plugin takes memory for before it says them; zeros where the header is damaged."""
    head = _bytes_at(file, 12, 18).ljust(18, b"\0")
    if head[:4] == b"VP8X":
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head[:4] == b"VP8L":
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head[:4] == b"VP8 ":
        return int.from_bytes(head[14:16], "little") & 0x3FFF, int.from_bytes(head[16:18], "little") & 0x3FFF
    return 0, 0


# GIF


def _gif_parts(file: IO[bytes]) -> list[Part]:
    """Up to the end of the first frame, with no extension but a whole graphic control."""
    head = _bytes_at(file, 0, 13)
    at = 13 + (3 << (head[10] & 7) + 1 if len(head) == 13 and head[10] & 0x80 else 0)
    parts: list[Part] = [(0, at)]
    for _ in range(MAX_PARTS):
        head = _bytes_at(file, at, 8)
        if head[:1] == b"\x2c":
            return [*parts, (at, size_of(file) - at)]
        if head[:1] == b"\x21":
            end = _after_sub_blocks(file, at + 2)
            if head[1] == 0xF9 and head[2] == 4 and end == at + 8:
                parts.append((at, 8))
            at = end
        elif head[:1] in (b"", b";"):
            break
        else:
            at += 1
    return [(0, size_of(file))]


def _after_sub_blocks(file: IO[bytes], at: int) -> int:
    while length := _bytes_at(file, at, 1):
        at += 1 + length[0]
        if length == b"\0":
            break
    return at


# JPEG 2000


class Box(NamedTuple):
    """Of an ISO media file: JPEG 2000, HEIC, AVIF."""

    name: bytes
    start: int  # of its header
    data: int  # of what is in it
    end: int


def boxes(file: IO[bytes], start: int, end: int) -> Iterator[Box]:
    """The boxes one after the other, up to one that is damaged; the last may say that it ends behind `end`."""
    for _ in range(MAX_PARTS):
        header = _bytes_at(file, start, 16)
        if start + 8 > end or len(header) < 8:
            return
        length, data = int.from_bytes(header[:4], "big"), start + 8
        if length == 1:
            length, data = int.from_bytes(header[8:16], "big"), start + 16
        box = Box(header[4:8], start, data, start + length if length else end)
        if box.end < data:
            return
        yield box
        start = box.end


_JP2_HEADER = frozenset({b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef"})
_COLR_BYTES = 7  # at least, of a box that says which colours
_EXIF_IDS = (
    b"JpgTiffExif->JP2",
    b"\x05\x37\xcd\xab\x9d\x0c\x44\x31\xa7\x2a\xfa\x56\x1f\x2a\x11\x3e",  # Photoshop's, as ExifTool reads it
)


def _jp2_parts(file: IO[bytes]) -> list[Part]:
    """The header's boxes for colours, and the pixels."""
    size = size_of(file)
    parts: list[Part] = []
    for box in boxes(file, 0, size):
        if box.name == b"jp2h":
            kept = [
                inner
                for inner in boxes(file, box.data, min(box.end, size))
                if inner.name in _JP2_HEADER and (inner.name != b"colr" or inner.end - inner.data >= _COLR_BYTES)
            ]
            length = 8 + sum(inner.end - inner.start for inner in kept)
            parts.append(length.to_bytes(4, "big") + b"jp2h")
            parts += [(inner.start, inner.end - inner.start) for inner in kept]
        elif box.name in (b"jP  ", b"ftyp", b"jp2c"):
            parts.append((box.start, min(box.end, size) - box.start))
    return parts


def jp2_exif(file: IO[bytes]) -> bytes:
    """The EXIF block of a JPEG 2000 file, in a `uuid` box or in an `Exif` box as of JPEG XL; nothing if it has none."""
    size = size_of(file)
    for box in boxes(file, 0, size):
        data = _bytes_at(file, box.data, min(box.end - box.data, MAX_METADATA_BYTES)) if box.end <= size else b""
        if box.name == b"uuid" and data[:16] in _EXIF_IDS:
            return data[16:]
        if box.name == b"Exif":
            return data[4 + int.from_bytes(data[:4], "big") :]
    return b""


def j2k_start(file: IO[bytes]) -> int:
    """Where the codestream of a JPEG 2000 file begins."""
    if _bytes_at(file, 0, 2) == b"\xff\x4f":
        return 0
    return next((box.data for box in boxes(file, 0, size_of(file)) if box.name == b"jp2c"), 0)


def jp2_colour_space(file: IO[bytes]) -> int | None:
    """The number for the colours in its first `colr` box: ISO 15444-1 annex I.5.3.3, 15444-2 annex M.11.7.3."""
    size = size_of(file)
    header = next((box for box in boxes(file, 0, size) if box.name == b"jp2h"), None)
    inner = boxes(file, header.data, min(header.end, size)) if header else ()
    data = next((_bytes_at(file, box.data, _COLR_BYTES) for box in inner if box.name == b"colr"), b"")
    return int.from_bytes(data[3:], "big") if data[:1] == b"\1" else None


def j2k_with_part_counts(file: IO[bytes]) -> IO[bytes] | None:
    """A view in which each tile says how many parts it has, where it says one too few; None of other files.

    Files of Adobe do; OpenJPEG corrects it, but not as Pillow calls it. ISO 15444-1 annex A.4.2: the SOT marker.
    """
    at = j2k_start(file) + 2
    places: dict[int, int] = {}
    is_one_too_few = False
    for _ in range(MAX_PARTS):
        marker = _bytes_at(file, at, 12)
        if len(marker) < 12 or marker[:1] != b"\xff":
            break
        if marker[1] != 0x90:
            at += 2 + int.from_bytes(marker[2:4], "big")
            continue
        length, number, count = int.from_bytes(marker[6:10], "big"), marker[10], marker[11]
        is_one_too_few = is_one_too_few or 0 < count == number
        if 0 < count < 255:
            places[at + 11] = count + 1
        if length < 12:
            break
        at += length
    if not is_one_too_few:
        return None
    parts: list[Part] = []
    at = 0
    for place, count in places.items():
        parts += [(at, place - at), bytes([count])]
        at = place + 1
    return view(file, [*parts, (at, size_of(file) - at)])


# AVIF


_EXIF_ITEM = re.compile(rb"infe[\2\3]...(?:..|....)..(?=Exif)", re.DOTALL)


def _avif_parts(file: IO[bytes], *, with_exif: bool = True) -> list[Part]:
    """With other names for the brand of gain maps, and for EXIF: the plugin wants both to be without fault."""
    size = size_of(file)
    brands = _bytes_at(file, 0, min(256, int.from_bytes(_bytes_at(file, 0, 4), "big")))
    changes = {at: b"mif1" for at in range(16, len(brands) - 3, 4) if brands[at : at + 4] == b"tmap"}
    meta = next((box for box in boxes(file, 0, size) if box.name == b"meta"), None)
    if meta is not None:
        changes |= _ipma_flags(file, meta)
    if meta is not None and not with_exif:
        data = _bytes_at(file, meta.data, min(meta.end - meta.data, MAX_METADATA_BYTES))
        changes |= {meta.data + item.end(): b"skip" for item in _EXIF_ITEM.finditer(data)}
    parts: list[Part] = []
    at = 0
    for place, new in sorted(changes.items())[:MAX_PARTS]:
        parts += [(at, place - at), new]
        at = place + len(new)
    return [*parts, (at, size - at)]


def _avif_parts_without_exif(file: IO[bytes]) -> list[Part]:
    return _avif_parts(file, with_exif=False)


def _ipma_flags(file: IO[bytes], meta: Box) -> dict[int, bytes]:
    """Place -> flags of each further `ipma` box: they are to differ, ISO 14496-12, 8.11.14, which libavif insists on.

    cavif, which made the AVIF samples of Link-U, writes one for each item. Only the lowest bit has a meaning.
    """
    iprp = next((box for box in boxes(file, meta.data + 4, meta.end) if box.name == b"iprp"), None)
    associations = [box for box in boxes(file, iprp.data, iprp.end) if box.name == b"ipma"] if iprp else []
    flags = {}
    for number, box in enumerate(associations[:128]):
        flags[box.data + 3] = bytes([_bytes_at(file, box.data + 3, 1).ljust(1, b"\0")[0] & 1 | number << 1])
    return flags


# TIFF


_TIFF_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_PIXELS = frozenset(
    {254, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 284, 292, 293, 301, 317, 318, 319, 320}
    | {322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521}
    | {529, 530, 531, 532, 34675, 37724, 50838}
)


class _Entry(NamedTuple):
    """Of a TIFF directory."""

    tag: int
    kind: int
    length: int  # how many values
    value: bytes | int  # its bytes, or where they are in the file


class _Form(NamedTuple):
    """How a TIFF or BigTIFF file writes its numbers."""

    order: str  # of bytes, as `struct` names it
    counting: str  # the entries of a directory
    pointing: str
    inline: int  # bytes of a pointer, which may be the value instead


def _form(order: str, *, is_big: bool) -> _Form:
    return _Form(order, f"{order}Q", f"{order}Q", 8) if is_big else _Form(order, f"{order}H", f"{order}I", 4)


class _Directory(NamedTuple):
    form: _Form
    entries: list[_Entry | None]  # None for one that is damaged


def tiff_as_pillow_reads_it(file: IO[bytes]) -> IO[bytes]:
    """The file, or a view with another first directory, of what pixels need alone, where Pillow would get it wrong.

    That is where an entry is damaged: Pillow reads no further than to one that points behind the end, and takes what
    follows for missing, which may be how the pixels are kept. Then where libtiff knows better (`_as_libtiff`), and in
    a BigTIFF in big-endian order, which Pillow takes for a TIFF that is not big.
    """
    directory = _tiff_directory(file)
    if directory is None:
        file.seek(0)
        return file
    form, entries = directory
    whole = [entry for entry in entries if entry is not None]
    wanted = _as_libtiff(whole, form.order)
    is_hidden = form.pointing == ">Q"
    if len(whole) == len(entries) and wanted == whole and not is_hidden:
        file.seek(0)
        return file
    by_tag = {entry.tag: entry for entry in wanted if entry.tag in _TIFF_PIXELS}  # one each, as a file may have 4096
    kept = [by_tag[tag] for tag in sorted(by_tag)]
    size = size_of(file)
    top = _bytes_at(file, 0, 8 if form.inline == 8 else 4)
    if is_hidden:
        if size >= 1 << 32:
            raise ValueError("a BigTIFF of more than 4 GB in big-endian order")
        form, kept, top = _form(">", is_big=False), [_short(file, entry) for entry in kept], b"MM\0*"
    end = size + (size & 1)
    top += struct.pack(form.pointing, end)
    return view(file, [top, (len(top), size - len(top)), bytes(end - size), _packed(kept, form, end)])


def tiff_layout(file: IO[bytes]) -> str:
    """How a TIFF keeps its pixels, in words."""
    _, entries = _tiff_directory(file) or ("", [])
    order = "<" if _bytes_at(file, 0, 2) == b"II" else ">"
    tags = {entry.tag: entry for entry in entries if entry is not None}
    numbers = {tag: _numbers(file, tags[tag], order) if tag in tags else () for tag in (258, 262, 277, 339)}
    photometric = next(iter(numbers[262]), None)
    colours = _PHOTOMETRIC.get(photometric, f"colours of kind {photometric}") if numbers[262] else "colours of no kind"
    samples = next(iter(numbers[277]), 1)
    bits = " and ".join(str(depth) for depth in sorted(set(numbers[258] or (1,)))[:4])
    kind = {2: ", signed", 3: ", floating-point", 5: ", complex", 6: ", complex"}.get(next(iter(numbers[339]), 1), "")
    return f"{colours}, {samples} number{'s' * (samples != 1)} of {bits} bits a pixel{kind}"


# fmt: off
_PHOTOMETRIC: dict[int | None, str] = {
    0: "grey", 1: "grey", 2: "RGB", 3: "a palette", 4: "a mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab",
    32803: "what a sensor saw", 32844: "LogL", 32845: "LogLuv", 34892: "what a sensor saw",
}
# fmt: on


def _tiff_directory(file: IO[bytes]) -> _Directory | None:
    """The first of a file; None where it has none."""
    order = "<" if _bytes_at(file, 0, 2) == b"II" else ">"
    form = _form(order, is_big=_number(order + "H", _bytes_at(file, 2, 2)) == 43)
    size, width = size_of(file), 4 + 2 * form.inline
    start = _number(form.pointing, _bytes_at(file, form.inline, form.inline))
    if not 8 <= start < size:
        return None
    count_bytes = struct.calcsize(form.counting)
    count = _number(form.counting, _bytes_at(file, start, count_bytes))
    if count > 4096:
        return None
    data = _bytes_at(file, start + count_bytes, width * count)
    places = range(0, len(data) - width + 1, width)
    return _Directory(form, [_entry(data[at : at + width], form, size) for at in places])


def _entry(data: bytes, form: _Form, size: int) -> _Entry | None:
    """None unless the value of an entry is of a type that there is, and lies inside the file."""
    tag, kind = struct.unpack(form.order + "HH", data[:4])
    count, value = _number(form.pointing, data[4 : 4 + form.inline]), data[4 + form.inline :]
    n_bytes = _TIFF_WIDTHS.get(kind, 0) * count
    if n_bytes <= form.inline:
        return _Entry(tag, kind, count, value) if n_bytes else None
    place = _number(form.pointing, value)
    return _Entry(tag, kind, count, place) if place + n_bytes <= size else None


_CCITT = (2, 3, 4, 32771)


def _as_libtiff(entries: list[_Entry], order: str) -> list[_Entry]:
    """What libtiff makes of tiles that are named strips, of extra samples, and of colours that are not named.

    It shows CMYK without what is see-through in it, takes Corel's 999 for the usual opacity, and black for zero.
    """

    def first(tag: int, default: int) -> int:
        value = tags[tag].value if tag in tags and tags[tag].kind in (3, 4) else None
        return _number(order + " HI"[tags[tag].kind - 2], value) if isinstance(value, bytes) else default

    tags = {entry.tag: entry for entry in entries}
    if {273, 322, 323} <= set(tags) and 324 not in tags:
        names = {273: 324, 279: 325}
        entries = [entry._replace(tag=names.get(entry.tag, entry.tag)) for entry in entries if entry.tag != 278]
    samples, compression = first(277, 1), first(259, 1)
    if 262 not in tags and 256 in tags and samples in (1, 3) and compression != 6:
        photometric = 2 if samples == 3 else 0 if compression in _CCITT else 1
        entries = [*entries, _Entry(262, 3, 1, struct.pack(order + "HH", photometric, 0))]
    opacity = {5: {1: 0, 2: 0, 999: 0}, 1: {999: 2}}.get(first(262, -1), {})
    if 338 in tags and tags[338].length == 1 and first(338, 0) in opacity:
        value = struct.pack(order + "HH", opacity[first(338, 0)], 0)
        entries = [entry._replace(kind=3, value=value) if entry.tag == 338 else entry for entry in entries]
    return entries


def _numbers(file: IO[bytes], entry: _Entry, order: str) -> tuple[int, ...]:
    """The whole numbers that an entry holds; of a long list the first."""
    letter = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}.get(entry.kind)
    if letter is None:
        return ()
    n_bytes = _TIFF_WIDTHS[entry.kind] * min(entry.length, MAX_METADATA_BYTES // 8)
    data = entry.value[:n_bytes] if isinstance(entry.value, bytes) else _bytes_at(file, entry.value, n_bytes)
    return struct.unpack(f"{order}{n_bytes // _TIFF_WIDTHS[entry.kind]}{letter}", data)


def _short(file: IO[bytes], entry: _Entry) -> _Entry:
    """An entry of a big-endian BigTIFF of less than 4 GB, with numbers of four bytes in place of eight."""
    if entry.kind in (16, 17, 18):
        numbers = [min(max(number, 0), 2**32 - 1) for number in _numbers(file, entry, ">")]
        return _Entry(entry.tag, 4, len(numbers), struct.pack(f">{len(numbers)}I", *numbers))
    if isinstance(entry.value, bytes):
        return entry._replace(value=entry.value[: _TIFF_WIDTHS[entry.kind] * entry.length])
    return entry


def _packed(entries: list[_Entry], form: _Form, start: int) -> bytes:
    """A directory that begins at a place, with the values that do not fit into it behind it."""
    directory, values = struct.pack(form.counting, len(entries)), b""
    behind = start + len(directory) + (4 + 2 * form.inline) * len(entries) + form.inline
    for tag, kind, length, value in entries:
        directory += struct.pack(form.order + "HH", tag, kind) + struct.pack(form.pointing, length)
        if isinstance(value, bytes) and len(value) <= form.inline:
            directory += value.ljust(form.inline, b"\0")
        elif isinstance(value, bytes):
            directory += struct.pack(form.pointing, behind + len(values))
            values += value + bytes(len(value) & 1)
        else:
            directory += struct.pack(form.pointing, value)
    return directory + bytes(form.inline) + values


def _number(form: str, data: bytes) -> int:
    """0 where the file has ended."""
    length = struct.calcsize(form)
    return int(struct.unpack(form, data[:length].ljust(length, b"\0"))[0])
