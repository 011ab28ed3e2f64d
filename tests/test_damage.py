"""Harmless damage does not cost the image: what a reference decoder passes over is read, with the same pixels."""

import io
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from mmsearch import media
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import MediaError
from tests import pictures

SIZE = (64, 48)
TINY = PixelSpec(8, 6, "squash")
Change = Callable[[bytes], bytes]


def saved(image: Image.Image, format_: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **how)
    return out.getvalue()


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """Undamaged files."""
    scene = pictures.scene(SIZE)
    clear = scene.copy()
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    block = pictures.exif(make="Canon", orientation=1)
    heic = io.BytesIO()
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(scene).save(heic, quality=90, exif=block)
    return {
        "JPEG": saved(scene, "JPEG", quality=92),
        "progressive": saved(scene, "JPEG", quality=92, progressive=True),
        "PNG": saved(scene, "PNG"),
        "APNG": saved(scene, "PNG", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "grey PNG": saved(scene.convert("L"), "PNG"),
        "palette PNG": saved(scene.quantize(64), "PNG"),
        "GIF": saved(scene, "GIF"),
        "WebP": saved(scene, "WEBP", quality=92, exif=block),
        "lossless WebP": saved(clear, "WEBP", lossless=True),
        "animated WebP": saved(scene, "WEBP", save_all=True, append_images=[Image.new("RGB", SIZE)]),
        "BMP": saved(scene, "BMP"),
        "TIFF": saved(scene, "TIFF"),
        "alpha TIFF": saved(clear, "TIFF", compression="tiff_lzw"),
        "JPEG 2000": saved(scene, "JPEG2000"),
        "codestream": saved(scene, "JPEG2000", no_jp2=True),
        "HEIC": heic.getvalue(),
        "AVIF": saved(scene, "AVIF", quality=90, exif=block),
    }


# Ways of damage


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def wrong_checksum(chunk_: bytes) -> bytes:
    return chunk_[:-1] + bytes([chunk_[-1] ^ 1])


def after_ihdr(*chunks: bytes) -> Change:
    return lambda data: data[:33] + b"".join(chunks) + data[33:]


def before_idat(*chunks: bytes) -> Change:
    return lambda data: data[: data.index(b"IDAT") - 4] + b"".join(chunks) + data[data.index(b"IDAT") - 4 :]


def before_iend(*chunks: bytes) -> Change:
    return lambda data: data[:-12] + b"".join(chunks) + data[-12:]


def after_soi(segment: bytes) -> Change:
    return lambda data: data[:2] + segment + data[2:]


def before_dqt(junk: bytes) -> Change:
    return lambda data: data[: data.index(b"\xff\xdb")] + junk + data[data.index(b"\xff\xdb") :]


def without_last(n_bytes: int) -> Change:
    return lambda data: data[:-n_bytes]


def and_after(junk: bytes) -> Change:
    return lambda data: data + junk


def before_gif_frame(extension: bytes) -> Change:
    return lambda data: data[: data.index(b"\x2c", 13 + 768)] + extension + data[data.index(b"\x2c", 13 + 768) :]


def riff(change: Change) -> Change:
    """With the length right again."""

    def changed(data: bytes) -> bytes:
        new = change(data)
        return new[:4] + struct.pack("<I", len(new) - 8) + new[8:]

    return changed


def put(what: bytes, offset: int, new: bytes) -> Change:
    """Overwrite what lies so many bytes after the first `what`."""

    def changed(data: bytes) -> bytes:
        at = data.index(what) + offset
        return data[:at] + new + data[at + len(new) :]

    return changed


def tiff_entry(tag: int, kind: int, count: int, value: int) -> Change:
    """One more entry in the directory of a little-endian TIFF."""

    def changed(data: bytes) -> bytes:
        start = struct.unpack_from("<I", data, 4)[0]
        number = struct.unpack_from("<H", data, start)[0]
        entries = [data[start + 2 + 12 * place : start + 14 + 12 * place] for place in range(number)]
        entries.append(struct.pack("<HHII", tag, kind, count, value))
        entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
        directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        data += b"\0" * (len(data) % 2)
        return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory

    return changed


def exif_of_junk(data: bytes) -> bytes:
    """Where there was a block of `pictures.exif`."""
    start = data.rindex(pictures.exif(make="Canon")[6:14])
    return data[:start] + b"\xff" * 20 + data[start + 20 :]


def res_box(data: bytes) -> bytes:
    """A box too short for what is in it, within the header of a JPEG 2000."""
    at = data.index(b"jp2h") - 4
    length = struct.unpack_from(">I", data, at)[0]
    return (
        data[:at]
        + struct.pack(">I", length + 10)
        + data[at + 4 : at + length]
        + b"\0\0\0\x0ares \0\0"
        + data[at + length :]
    )


# Programs differ in how they enlarge halved colours and go from YCbCr to RGB; what is damaged looks quite different
TOLERANCE = {"HEIC": 3, "AVIF": 5, "WebP": 3}  # mean difference, of 255
PROFILE = b"icc\0\0" + zlib.compress(pictures.linear_light_profile())
LARGE = zlib.compress(bytes(3_000_000))
FAR = 0x7FFFFF  # behind the end of each file here

# (name, file, change, whether the reference reads it; False for what is read here alone)
HARMLESS: list[tuple[str, str, Change, bool]] = [
    *(
        (f"wrong checksum of {name.decode()}", file, after_ihdr(wrong_checksum(chunk(name, data))), True)
        for file in ("PNG", "APNG", "grey PNG", "palette PNG")
        for name, data in (
            (b"iCCP", PROFILE),
            (b"tEXt", b"a\0b"),
            (b"zTXt", b"a\0\0" + zlib.compress(b"b")),
            (b"iTXt", b"a\0\0\0\0\0b"),
            (b"gAMA", b"\0\0\xb1\x8f"),
            (b"pHYs", bytes(9)),
            (b"tIME", bytes(7)),
            (b"cHRM", bytes(32)),
            (b"sRGB", b"\0"),
            (b"vpAg", b"own"),
        )
    ),
    ("wrong checksum of eXIf", "PNG", after_ihdr(wrong_checksum(chunk(b"eXIf", pictures.exif(orientation=6)))), True),
    ("wrong checksum of tRNS", "PNG", before_idat(wrong_checksum(chunk(b"tRNS", bytes(6)))), True),
    ("wrong checksum of tRNS", "palette PNG", before_idat(wrong_checksum(chunk(b"tRNS", bytes(6)))), True),
    ("tRNS too short", "PNG", before_idat(chunk(b"tRNS", b"a")), True),
    ("tRNS too short", "grey PNG", before_idat(chunk(b"tRNS", b"a")), True),
    ("gAMA too short", "PNG", after_ihdr(chunk(b"gAMA", b"a")), True),
    ("cHRM too short", "PNG", after_ihdr(chunk(b"cHRM", b"a")), True),
    ("pHYs too short", "PNG", after_ihdr(chunk(b"pHYs", b"a")), True),
    ("sRGB empty", "PNG", after_ihdr(chunk(b"sRGB", b"")), True),
    ("iCCP of another method", "PNG", after_ihdr(chunk(b"iCCP", b"icc\0\7" + PROFILE[5:])), True),
    ("iCCP of a name alone", "PNG", after_ihdr(chunk(b"iCCP", b"icc\0")), True),
    ("iCCP empty", "PNG", after_ihdr(chunk(b"iCCP", b"")), True),
    ("iCCP that is no zlib", "PNG", after_ihdr(chunk(b"iCCP", b"icc\0\0aaaa")), True),
    ("iCCP of 3 MB", "PNG", after_ihdr(chunk(b"iCCP", b"icc\0\0" + LARGE)), True),
    ("zTXt of 3 MB", "PNG", after_ihdr(chunk(b"zTXt", b"workflow\0\0" + LARGE)), True),
    ("zTXt of another method", "PNG", after_ihdr(chunk(b"zTXt", b"a\0\7bcd")), True),
    ("iTXt of 3 MB", "PNG", after_ihdr(chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE)), True),
    ("tEXt of 3 MB", "PNG", after_ihdr(chunk(b"tEXt", b"workflow\0" + bytes(3_000_000).replace(b"\0", b" "))), True),
    (
        "80 MB of text in all",
        "PNG",
        after_ihdr(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 80),
        True,
    ),
    ("text after the pixels", "PNG", before_iend(wrong_checksum(chunk(b"tEXt", b"a\0b"))), True),
    ("3 MB of text after the pixels", "PNG", before_iend(chunk(b"zTXt", b"a\0\0" + LARGE)), True),
    ("more data than pixels", "PNG", before_iend(chunk(b"IDAT", b"junk")), True),
    ("animation with a damaged start", "PNG", after_ihdr(chunk(b"acTL", bytes(3))), True),
    (
        "animation with a frame out of order",
        "PNG",
        before_idat(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\0\0\0\3" + bytes(22))),
        True,
    ),
    (
        "animation with a frame off the canvas",
        "PNG",
        before_idat(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", bytes(4) + b"\0\0\1\0" * 4 + bytes(6))),
        True,
    ),
    ("later frame damaged", "APNG", put(b"fdAT", 12, b"\xff" * 8), True),
    ("junk after the end", "PNG", and_after(b"junk" * 100), True),
    ("no end marker", "PNG", without_last(12), False),
    ("no checksum of the pixels", "PNG", without_last(16), False),
    ("no checksum of zlib's", "PNG", without_last(20), False),
    ("a chunk longer than the file after the pixels", "PNG", lambda data: data[:-12] + b"\x7f\0\0\0tEXta\0b", False),
    ("junk in place of the end", "PNG", lambda data: data[:-12] + b"\xff" * 50, False),
    *(
        (name, file, change, True)
        for file in ("JPEG", "progressive")
        for name, change in (
            ("no end marker", without_last(2)),
            ("junk after the end", and_after(b"junk" * 50)),
            ("junk in place of the end", lambda data: data[:-2] + bytes(500)),
            ("JFIF too short", after_soi(b"\xff\xe0\0\x06JFIF")),
            ("Adobe too short", after_soi(b"\xff\xee\0\x08Adobe\0")),
            ("EXIF too short", after_soi(b"\xff\xe1\0\x08Exif\0\0")),
            ("EXIF of junk", after_soi(b"\xff\xe1\0\x20Exif\0\0" + b"\xff" * 24)),
            ("profile too short", after_soi(b"\xff\xe2\0\x0eICC_PROFILE\0")),
            ("profile with a part missing", after_soi(b"\xff\xe2\0\x14ICC_PROFILE\0\1\2abcd")),
            ("profile of junk", after_soi(b"\xff\xe2\x01\0ICC_PROFILE\0\1\1" + bytes(240))),
            ("MPF of nothing", after_soi(b"\xff\xe2\0\x06MPF\0")),
            ("Photoshop cut short", after_soi(b"\xff\xed\0\x16Photoshop 3.0\x008BIM\x03\xed")),
            ("Photoshop with a name too long", after_soi(b"\xff\xed\0\x17Photoshop 3.0\x008BIM\x03\xed\xff")),
            (
                "Photoshop with a size too short",
                after_soi(b"\xff\xed\0\x1ePhotoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab"),
            ),
            ("segment of no length", after_soi(b"\xff\xe5\0\0")),
            ("comment of no length", after_soi(b"\xff\xfe\0\1")),
            ("junk between segments", before_dqt(b"junk" * 5)),
            ("bytes that fill up", before_dqt(b"\xff\xff\xff")),
            ("restart marker between segments", before_dqt(b"\xff\xd0")),
            ("marker 01 between segments", before_dqt(b"\xff\x01")),
            (
                "a profile of 255 empty parts",
                after_soi(b"".join(b"\xff\xe2\0\x10ICC_PROFILE\0" + bytes([n, 255]) for n in range(1, 256))),
            ),
        )
    ),
    ("no end marker", "GIF", without_last(1), True),
    ("no last block", "GIF", without_last(2), True),
    ("junk after the end", "GIF", and_after(b"junk" * 50), True),
    ("control too short", "GIF", before_gif_frame(b"\x21\xf9\1\0\0"), True),
    ("application too short", "GIF", before_gif_frame(b"\x21\xff\2ab\0"), True),
    ("loop count too short", "GIF", before_gif_frame(b"\x21\xff\x0bNETSCAPE2.0\1\1\0"), True),
    ("extension that nobody knows", "GIF", before_gif_frame(b"\x21\x77\2ab\0"), True),
    ("zeros between blocks", "GIF", before_gif_frame(b"\0\0"), True),
    *(
        (name, file, change, "animated" not in file)
        for file in ("WebP", "lossless WebP", "animated WebP")
        for name, change in (
            ("junk after the end", and_after(b"junk" * 50)),
            ("a chunk that nobody knows", riff(and_after(b"XXXX\4\0\0\0abcd"))),
            ("a chunk that ends behind the file", riff(and_after(b"EXIF\xf4\0\0\0abcd"))),
        )
    ),
    ("EXIF longer than the file", "WebP", put(b"EXIF", 4, b"\xff\xff\0\0"), True),
    ("EXIF gone", "WebP", riff(lambda data: data[: data.index(b"EXIF")]), True),
    ("EXIF cut short", "WebP", lambda data: data[: data.index(b"EXIF") + 12], False),
    ("EXIF of junk", "WebP", put(b"EXIF", 8, b"\xff" * 20), True),
    ("junk after the end", "BMP", and_after(b"junk" * 50), False),
    ("length of the file wrong", "BMP", lambda data: data[:2] + bytes(4) + data[6:], False),
    ("resolution of junk", "BMP", lambda data: data[:38] + b"\xff" * 8 + data[46:], True),
    ("length of the pixels wrong", "BMP", lambda data: data[:34] + b"\xff" * 4 + data[38:], True),
    *(
        (name, file, change, True)
        for file in ("TIFF", "alpha TIFF")
        for name, change in (
            ("junk after the end", and_after(b"junk" * 50)),
            ("text behind the end", tiff_entry(270, 2, 100, FAR)),
            ("text of 2 GB", tiff_entry(270, 2, 0x7FFFFFFF, 8)),
            ("text of no length", tiff_entry(305, 2, 0, 0)),
            ("a type that nobody knows", tiff_entry(270, 99, 1, 1)),
            ("type 0", tiff_entry(305, 0, 3, 9)),
            ("profile behind the end", tiff_entry(34675, 7, 1000, FAR)),
            ("profile of junk", tiff_entry(34675, 7, 1000, 8)),
            ("EXIF behind the end", tiff_entry(0x8769, 4, 1, FAR)),
            ("place in the header", tiff_entry(0x8825, 4, 1, 4)),
            ("resolution behind the end", tiff_entry(283, 5, 1, FAR)),
            ("resolution of none", tiff_entry(283, 5, 0, 0)),
            ("unit that is text", tiff_entry(296, 2, 1, 2)),
            ("orientation 99", tiff_entry(274, 3, 1, 99)),
            ("orientation that is text", tiff_entry(274, 2, 1, 99)),
            ("XMP of 2 GB", tiff_entry(700, 1, 0x7FFFFFF, 8)),
            ("IPTC behind the end", tiff_entry(33723, 4, 10, FAR)),
            ("a million directories", tiff_entry(330, 4, 1_000_000, 8)),
        )
    ),
    ("junk after the end", "JPEG 2000", and_after(b"junk" * 50), True),
    ("resolution too short", "JPEG 2000", res_box, True),
    (
        "another box before the pixels",
        "JPEG 2000",
        lambda data: data[: data.index(b"jp2c") - 4] + b"\0\0\0\x0cuuidabcd" + data[data.index(b"jp2c") - 4 :],
        True,
    ),
    ("no length of the pixels", "JPEG 2000", put(b"jp2c", -4, bytes(4)), True),
    ("length of the pixels behind the end", "JPEG 2000", put(b"jp2c", -4, b"\0\1\0\0"), True),
    ("a box that ends behind the file", "JPEG 2000", and_after(b"\0\1\0\x0cuuidabcd"), True),
    ("colours that nobody knows", "JPEG 2000", put(b"colr", 4, b"\x09"), True),
    ("another brand", "JPEG 2000", put(b"ftyp", 4, b"xxxx"), True),
    ("junk after the end", "codestream", and_after(b"junk" * 50), True),
    *(
        (name, file, change, True)
        for file in ("HEIC", "AVIF")
        for name, change in (
            ("junk after the end", and_after(b"junk" * 50)),
            ("a box that ends behind the file", and_after(b"\0\1\0\x0cfreeabcd")),
            ("a box too short", and_after(b"\0\0\0\2free")),
            ("no length of the pixels", put(b"mdat", -4, bytes(4))),
            ("EXIF of junk", exif_of_junk),
        )
    ),
]

REFERENCES = {  # (program, arguments), of what a file's format is read by; pixels come as PPM
    "PNG": ("pngtopnm", "{file}"),
    "JPEG": ("djpeg", "-pnm {file}"),
    "progressive": ("djpeg", "-pnm {file}"),
    "WebP": ("dwebp", "-quiet {file} -ppm -o -"),
    "lossless WebP": ("dwebp", "-quiet {file} -ppm -o -"),
    "GIF": ("convert", "gif:{file}[0] ppm:-"),
    "BMP": ("convert", "bmp:{file} ppm:-"),
    "TIFF": ("tiff2rgba", "{file} {out}.tif"),
    "alpha TIFF": ("tiff2rgba", "{file} {out}.tif"),
    "JPEG 2000": ("opj_decompress", "-quiet -i {file} -o {out}.ppm"),
    "codestream": ("opj_decompress", "-quiet -i {file} -o {out}.ppm"),
    "HEIC": ("heif-convert", "{file} {out}.png"),
    "AVIF": ("heif-convert", "{file} {out}.png"),
}
SUFFIXES = {"JPEG 2000": "jp2", "codestream": "j2k", "HEIC": "heic", "AVIF": "avif", "TIFF": "tif", "alpha TIFF": "tif"}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(media.load_rgb(data))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", sorted({file for _, file, _, _ in HARMLESS}))
def test_damage_that_no_pixel_needs_costs_no_pixel(whole: dict[str, bytes], file: str) -> None:
    undamaged, small = pixels(whole[file]), media.read(whole[file], TINY).pixels
    for name, file_, change, _ in HARMLESS:
        if file_ == file:
            damaged = change(whole[file])
            assert damaged != whole[file], name
            assert np.array_equal(pixels(damaged), undamaged), name
            assert np.array_equal(media.read(damaged, TINY).pixels, small), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", sorted(REFERENCES))
def test_what_another_decoder_reads_is_read_with_the_same_pixels(
    whole: dict[str, bytes], file: str, tmp_path: Path
) -> None:
    program, arguments = REFERENCES[file]
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    n_read = 0
    for name, file_, change, is_read in HARMLESS:
        if file_ != file or not is_read or file in ("lossless WebP", "alpha TIFF"):
            continue  # transparency, which some programs show over black
        by_reference = _by_reference(program, arguments, SUFFIXES.get(file, "bin"), change(whole[file]), tmp_path)
        assert by_reference is not None, name
        n_read += 1
        difference = np.abs(pixels(change(whole[file])).astype(int) - by_reference)
        assert difference.mean() <= TOLERANCE.get(file, 0), name
    assert n_read or file in ("lossless WebP", "alpha TIFF")


def _by_reference(program: str, arguments: str, suffix: str, data: bytes, folder: Path) -> np.ndarray | None:
    source, out = folder / f"in.{suffix}", folder / "out"
    source.write_bytes(data)
    command = [program, *arguments.format(file=source, out=out).split()]
    ran = subprocess.run(command, capture_output=True, timeout=60)
    written = next(folder.glob("out*"), None)
    if written is None:
        return np.asarray(Image.open(io.BytesIO(ran.stdout)).convert("RGB")).astype(int) if ran.stdout else None
    with Image.open(written) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    written.unlink()
    return shown


# The end of a JPEG


def test_a_jpeg_without_its_last_bytes_is_what_libjpeg_makes_of_it(whole: dict[str, bytes], tmp_path: Path) -> None:
    scene = pictures.scene((320, 240))
    for how in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}):
        data = saved(scene, "JPEG", quality=90, **how)
        for n_bytes in (2, 3, 5, 10, 40, 150):
            got = pixels(data[:-n_bytes])
            assert (got != pixels(data)).any(axis=2).mean() < 1 / 32
            if shutil.which("djpeg"):
                assert np.array_equal(got, _by_reference("djpeg", "-pnm {file}", "jpg", data[:-n_bytes], tmp_path))
            assert media.read(data[:-n_bytes], TINY).facts.width == 320
            assert media.thumbnail(data[:-n_bytes], 40)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (320, 240)])
def test_a_jpeg_without_more_than_its_end_is_cut_short(size: tuple[int, int], progressive: bool) -> None:
    data = saved(pictures.scene(size), "JPEG", quality=90, progressive=progressive)
    scan = data.index(b"\xff\xda")
    for kept in (0.1, 0.3, 0.5, 0.7):
        cut = data[: scan + int(kept * (len(data) - scan))]
        for spec in (None, TINY):
            with pytest.raises(MediaError, match="is cut short"):
                media.load_rgb(cut, spec)


def test_a_progressive_jpeg_without_its_last_scan_is_cut_short() -> None:
    data = saved(pictures.scene(SIZE), "JPEG", progressive=True)
    with pytest.raises(MediaError, match="is cut short"):
        media.load_rgb(data[: data.rindex(b"\xff\xda")])


@pytest.mark.parametrize("file", ["BMP", "TIFF"])
def test_bare_pixels_without_their_last_bytes_are_read(whole: dict[str, bytes], file: str) -> None:
    for n_bytes in (1, 10, 200):
        got = pixels(whole[file][:-n_bytes])
        assert (got != pixels(whole[file])).any(axis=2).mean() < 1 / 32
    with pytest.raises(MediaError, match="is cut short"):
        media.load_rgb(whole[file][:-500])


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_an_animation_whose_later_frames_are_cut_off_is_its_first(format_: str) -> None:
    noise = [Image.effect_noise((96, 80), 60).convert("L") for _ in range(2)]
    data = saved(noise[0], format_, save_all=True, append_images=noise[1:])
    for n_bytes in (1, 10, 100, len(data) // 4):
        assert np.array_equal(pixels(data[:-n_bytes]), pixels(data))
    with pytest.raises(MediaError, match="is cut short"):
        media.load_rgb(data[: len(data) // 3])


# Damage to what pixels need


CRITICAL: list[tuple[str, str, Change]] = [
    ("wrong checksum of IHDR", "PNG", put(b"IHDR", 17, b"abcd")),
    ("wrong checksum of PLTE", "palette PNG", lambda data: put(b"PLTE", 5, b"\xff\0\xff")(data)),
    ("pixels of junk", "PNG", put(b"IDAT", 40, b"\xff" * 64)),
    ("no pixels", "PNG", lambda data: data[: data.index(b"IDAT") - 4] + data[-12:]),
    ("a chunk that has to be known", "PNG", after_ihdr(wrong_checksum(chunk(b"ABCD", b"a")))),
    ("no Huffman tables' length", "JPEG", put(b"\xff\xc0", 2, b"\0\0")),
    ("no components", "JPEG", put(b"\xff\xc0", 9, b"\0")),
    ("no chunk of pixels", "lossless WebP", put(b"VP8L", 0, b"XXXX")),
    ("no header box", "JPEG 2000", put(b"jp2h", 0, b"xxxx")),
    ("no pixels", "HEIC", put(b"mdat", 4, b"\xff" * 500)),
    ("no offsets", "TIFF", put(struct.pack("<HH", 273, 4), 0, struct.pack("<HH", 272, 4))),
    ("a height behind all bounds", "TIFF", put(struct.pack("<HHII", 257, 4, 1, 48), 8, b"\xff\xff\0\0")),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "file", "change"), CRITICAL)
def test_damage_to_what_the_pixels_need_is_refused_with_a_reason(
    whole: dict[str, bytes], name: str, file: str, change: Change
) -> None:
    damaged = change(whole[file])
    assert damaged != whole[file]
    with pytest.raises(MediaError, match=r"is cut short|cannot be decoded|has no pixels"):
        media.load_rgb(damaged)


# What metadata still says


def test_metadata_that_is_whole_is_read_beside_what_is_damaged(whole: dict[str, bytes]) -> None:
    block, profile = pictures.exif(make="Canon", orientation=6), pictures.linear_light_profile()
    bad = wrong_checksum(chunk(b"tEXt", b"a\0b"))
    plain = saved(pictures.scene(SIZE), "PNG", icc_profile=profile)
    with_block = after_ihdr(bad, chunk(b"eXIf", block.removeprefix(b"Exif\0\0")))(plain)
    decoded = media.read(with_block, TINY)
    assert (decoded.facts.camera, decoded.facts.width, decoded.facts.height) == ("Canon", *SIZE[::-1])
    assert np.array_equal(pixels(with_block), np.rot90(pixels(plain), -1))
    jpeg = saved(pictures.scene(SIZE), "JPEG", exif=block, icc_profile=profile)
    damaged = after_soi(b"\xff\xe0\0\x06JFIF")(jpeg)
    assert media.read(damaged, TINY).facts.camera == "Canon"
    assert np.array_equal(pixels(damaged), pixels(jpeg))
    late = before_iend(bad, chunk(b"eXIf", block.removeprefix(b"Exif\0\0")))(whole["PNG"])
    assert media.read(late, TINY).facts.camera == "Canon"


def test_a_profile_of_more_than_a_megabyte_is_followed() -> None:
    profile = pictures.linear_light_profile()
    profile = struct.pack(">I", 2_000_000) + profile[4:] + bytes(2_000_000 - len(profile))
    large = after_ihdr(chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile)))(saved(pictures.scene(SIZE), "PNG"))
    small = saved(pictures.scene(SIZE), "PNG", icc_profile=pictures.linear_light_profile())
    assert np.array_equal(pixels(large), pixels(small))


def test_a_large_file_on_disk_is_mended_as_one_in_memory_is(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = after_ihdr(wrong_checksum(chunk(b"tEXt", b"a\0b")))(whole["PNG"]) + bytes(media.READ_ONCE_BYTES)
    path = tmp_path / "large.png"
    path.write_bytes(damaged)
    assert np.array_equal(np.asarray(media.load_rgb(str(path))), pixels(whole["PNG"]))


# AVIF files whose boxes libavif is strict about


def avif_with(data: bytes, old: bytes, new: bytes, parents: tuple[bytes, ...]) -> bytes:
    """With a box inside its parents, which are before the pixels, put in place of another."""
    grown = len(new) - len(old)
    out = bytearray(data.replace(old, new, 1))
    for parent in parents:
        at = data.index(parent) - 4
        out[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + grown).to_bytes(4, "big")
    at = out.index(b"iloc") + 4
    assert out[at : at + 6] == b"\0\0\0\0\x44\0"  # version 0, numbers of four bytes
    for item in range(int.from_bytes(out[at + 6 : at + 8], "big")):
        place = at + 8 + 14 * item + 6
        out[place : place + 4] = (int.from_bytes(out[place : place + 4], "big") + grown).to_bytes(4, "big")
    return bytes(out)


def box(data: bytes, name: bytes) -> bytes:
    at = data.index(name) - 4
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


def avif_of_cavif(data: bytes) -> bytes:
    """With one `ipma` box for each item, all of the same flags."""
    ipma = box(data, b"ipma")
    count, at, new = int.from_bytes(ipma[12:16], "big"), 16, b""
    for _ in range(count):
        entry = ipma[at : at + 3 + ipma[at + 2]]
        new += struct.pack(">I4sII", 16 + len(entry), b"ipma", 0, 1) + entry
        at += len(entry)
    return avif_with(data, ipma, new, (b"meta", b"iprp"))


def avif_with_damaged_gain_map(data: bytes) -> bytes:
    """Its EXIF block says that it is a gain map, which `altr` offers in place of the image."""
    named = data.replace(b"Exif\0", b"tmap\0", 1).replace(b"MA1B", b"tmap", 1)
    hdlr = box(named, b"hdlr")
    group = struct.pack(">I4sI4sIIIII", 36, b"grpl", 28, b"altr", 0, 9, 2, 2, 1)
    return avif_with(named, hdlr, hdlr + group, (b"meta",))


@pytest.mark.parametrize("change", [avif_of_cavif, avif_with_damaged_gain_map])
def test_avif_boxes_that_no_pixel_needs(change: Change) -> None:
    scene = pictures.scene(SIZE)
    scene.putalpha(Image.linear_gradient("L").resize(SIZE))
    data = saved(scene, "AVIF", quality=90, exif=pictures.exif(make="Canon", orientation=1))
    changed = change(data)
    with pytest.raises(Exception, match="Failed to decode image"):
        AvifImagePlugin.AvifImageFile(io.BytesIO(changed))
    assert np.array_equal(pixels(changed), pixels(data))
    if change is avif_of_cavif:
        assert media.read(changed, TINY).facts.camera == "Canon"
