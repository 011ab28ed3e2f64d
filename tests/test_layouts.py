"""However a file keeps its pixels, they are read as drawn or refused: layouts of TIFF and BMP, sizes of JPEG 2000."""

import io
import struct
import tracemalloc
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch import media
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.errors import MediaError
from tests import bitmaps, pictures
from tests.tiffs import Samples, tiff

HEIGHT, WIDTH = 40, 35


def jp2(size: tuple[int, int], **how: object) -> bytes:
    out = io.BytesIO()
    pictures.scene(size).save(out, "JPEG2000", **how)
    return out.getvalue()


# TIFF


def scaled(values: np.ndarray, kind: str) -> Samples:
    """0..255 -> the whole range of a type, or what of it is not negative."""
    whole = {"u1": 255, "u2": 65535, "u4": 2**32 - 1, "i1": 127, "i2": 32767, "i4": 65535, "f4": 1.0}[kind]
    return (values.astype(np.float64) * whole / 255).astype(kind)


def drawn() -> Iterator[tuple[str, int, tuple[int, ...], Samples, np.ndarray]]:
    """(name, photometric, extra samples, samples, what is to be seen), for every kind of sample."""
    rgb = np.asarray(pictures.scene((WIDTH, HEIGHT), 3)).astype(float)
    grey = rgb[:, :, :1]
    alpha = np.broadcast_to(np.linspace(30, 255, WIDTH)[None, :, None], grey.shape)
    for kind in ("u1", "u2", "u4", "i1", "i2", "i4", "f4"):
        yield f"grey {kind}", 1, (), scaled(grey, kind), grey
        yield f"inverse grey {kind}", 0, (), scaled(255 - grey, kind), grey
        yield f"RGB {kind}", 2, (), scaled(rgb, kind), rgb
        for photometric, colours in ((1, grey), (2, rgb)):
            over_white = colours * alpha / 255 + 255 - alpha
            for extra, stored, seen in (
                (0, colours, colours),
                (1, colours * alpha / 255, over_white),
                (2, colours, over_white),
            ):
                samples = scaled(np.concatenate([stored, alpha], axis=2), kind)
                yield f"{photometric} with extra {extra} {kind}", photometric, (extra,), samples, seen
    cmyk = np.asarray(Image.fromarray(rgb.astype(np.uint8)).convert("CMYK"))
    yield "CMYK u1", 5, (), cmyk, rgb
    yield "CMYK u2", 5, (), scaled(cmyk, "u2"), rgb
    yield "YCbCr", 6, (), np.asarray(Image.fromarray(rgb.astype(np.uint8)).convert("YCbCr")), rgb


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
def test_a_tiff_is_read_as_drawn_or_refused(order: str, planes: bool) -> None:
    n_read = 0
    for name, photometric, extra, samples, seen in drawn():
        if planes and samples.shape[2] == 1:
            continue
        for tile, compression, predictor in product((0, 16), ("none", "deflate", "packbits"), (1, 2, 3)):
            if (predictor > 1 and compression != "deflate") or (predictor == 3 and samples.dtype.kind != "f"):
                continue
            data = tiff(
                samples,
                photometric,
                order=order,  # type: ignore[arg-type]
                extra=extra,
                planes=planes,
                tile=tile,
                compression=compression,  # type: ignore[arg-type]
                predictor=predictor,  # type: ignore[arg-type]
            )
            try:
                shown = np.asarray(media.load_rgb(data)).astype(float)
            except MediaError:
                continue
            n_read += 1
            # Three roundings: of what was drawn, of alpha, of what is shown
            assert np.abs(shown - seen).max() <= 3, f"{name} tile {tile} {compression} predictor {predictor}"
    assert n_read > (60 if planes else 140)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "LA", "La"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_the_usual_layouts_are_read(mode: str, kind: str) -> None:
    if mode in ("LA", "La") and kind == "u2":
        pytest.skip("Pillow has no mode for it: it is refused")
    photometric, extra, count = {
        "RGB": (2, (), 3),
        "RGBA": (2, (2,), 4),
        "CMYK": (5, (), 4),
        "LA": (1, (2,), 2),
        "La": (1, (1,), 2),
    }[mode]
    samples = scaled(np.full((HEIGHT, WIDTH, count), 255.0), kind)
    for planes in (False, True) if mode not in ("LA", "La") else (False,):
        media.load_rgb(tiff(samples, photometric, extra=extra, planes=planes))


def test_signed_numbers_below_zero_are_darker_than_those_above() -> None:
    ramp = np.linspace(-100, 100, WIDTH).round()[None, :, None].repeat(HEIGHT, 0)
    for kind, order in product(("i1", "i2", "i4"), "<>"):
        row = np.asarray(media.load_rgb(tiff(ramp.astype(kind), 1, order=order)))[0, :, 0]  # type: ignore[arg-type]
        assert (row[0], row[-1]) == (0, 255)
        assert (np.diff(row.astype(int)) > 0).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_a_bigtiff_in_either_order_of_bytes_is_read(order: str, kind: str, tile: int, compression: str) -> None:
    rgb = np.asarray(pictures.scene((WIDTH, HEIGHT), 3))
    for samples, photometric, seen in ((rgb, 2, rgb), (rgb[:, :, :1], 1, np.repeat(rgb[:, :, :1], 3, axis=2))):
        data = tiff(scaled(samples, kind), photometric, order=order, tile=tile, compression=compression, big=True)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(media.load_rgb(data)), seen)
        one_strip = tiff(scaled(samples, kind), photometric, order=order, rows_per_strip=HEIGHT, big=True)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(media.load_rgb(one_strip)), seen)


def test_a_bigtiff_of_many_equal_entries_takes_bounded_memory() -> None:
    numbers, entries = 100_000, 4000
    entry = struct.pack(">HHQQ", 273, 16, numbers, 1000)
    sides = struct.pack(">HHQII", 256, 4, 1, 10, 0) + struct.pack(">HHQII", 257, 4, 1, 10, 0)
    data = b"MM" + struct.pack(">HHHQ", 43, 8, 0, 16) + struct.pack(">Q", entries + 2) + sides + entry * entries
    tracemalloc.start()
    assert media.load_rgb(data.ljust(1000 + 8 * numbers, b"\0")).size == (10, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiles_that_a_tiff_names_strips_are_read(order: str) -> None:
    rgb = np.asarray(pictures.scene((WIDTH, HEIGHT), 3))
    data = tiff(rgb, 2, order=order, tile=16, names={324: 273, 325: 279})  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(media.load_rgb(data)), rgb)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_that_does_not_name_its_colours_is_read_as_libtiff_does(order: str) -> None:
    rgb = np.asarray(pictures.scene((WIDTH, HEIGHT), 3))
    data = tiff(rgb, 2, order=order, names={262: 0})  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(media.load_rgb(data)), rgb)
    grey = tiff(rgb[:, :, :1], 1, order=order, names={262: 0})  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(media.load_rgb(grey)), np.repeat(rgb[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", [0, 1, 2, 999])
def test_cmyk_with_a_fifth_number_is_read_without_it(order: str, extra: int) -> None:
    """As tiff2rgba shows it."""
    cmyk = np.asarray(pictures.scene((WIDTH, HEIGHT), 3).convert("CMYK"))
    fifth = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
    five = np.concatenate([cmyk, fifth], axis=2)
    for how in ({"compression": "deflate", "predictor": 2}, {}):
        with_it = tiff(five, 5, order=order, extra=(extra,), **how)  # type: ignore[arg-type]
        without = tiff(cmyk, 5, order=order, **how)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(media.load_rgb(with_it)), np.asarray(media.load_rgb(without)))


def test_grey_with_the_opacity_of_corel_is_shown_over_white() -> None:
    grey = np.asarray(pictures.scene((WIDTH, HEIGHT), 3).convert("L"))[:, :, None]
    opacity = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None], grey.shape)
    data = tiff(np.concatenate([grey, opacity], axis=2), 1, extra=(999,))
    seen = grey * (opacity / 255.0) + 255.0 - opacity
    assert np.abs(np.asarray(media.load_rgb(data)) - seen).max() <= 1.5


@pytest.mark.parametrize(
    ("kind", "photometric", "count", "said"),
    [
        ("i1", 2, 3, "RGB, 3 numbers of 8 bits a pixel, signed"),
        ("i2", 2, 3, "RGB, 3 numbers of 16 bits a pixel, signed"),
        ("f4", 2, 3, "RGB, 3 numbers of 32 bits a pixel, floating-point"),
        ("i1", 5, 4, "CMYK, 4 numbers of 8 bits a pixel, signed"),
        ("u2", 8, 3, "Lab, 3 numbers of 16 bits a pixel"),
        ("u2", 32845, 3, "LogLuv, 3 numbers of 16 bits a pixel"),
        ("u2", 77, 1, "colours of kind 77, 1 number of 16 bits a pixel"),
    ],
)
def test_a_refused_tiff_says_how_it_keeps_its_pixels(kind: str, photometric: int, count: int, said: str) -> None:
    for order in ("<", ">"):
        for big in (False, True):
            data = tiff(np.zeros((4, 4, count), kind), photometric, order=order, big=big)  # type: ignore[arg-type]
            with pytest.raises(MediaError, match=f"^keeps its pixels as {said}, which is not read in a TIFF$"):
                media.load_rgb(data)


def test_a_tiff_that_lacks_strips_is_not_filled_up_in_black() -> None:
    data = tiff(scaled(np.full((HEIGHT, WIDTH, 3), 200.0), "u1"), 2, rows_per_strip=HEIGHT)
    height = struct.pack("<HHII", 257, 4, 1, HEIGHT)
    with pytest.raises(MediaError, match="is cut short"):
        media.load_rgb(data.replace(height, struct.pack("<HHII", 257, 4, 1, 4 * HEIGHT)))


# JPEG 2000


@pytest.mark.parametrize("form", [{}, {"no_jp2": True}])
def test_jpeg_2000_of_any_size_is_read_at_a_fraction(form: dict[str, object]) -> None:
    for width in range(1, 72):
        size = (width, 72 - width)
        data = jp2(size, **form)
        whole = np.asarray(media.load_rgb(data)).astype(int)
        for spec in (PixelSpec(1, 1, "squash"), PixelSpec(3, 3, "squash"), PixelSpec(8, 8)):
            decoded = media.read(data, spec)
            assert (decoded.facts.width, decoded.facts.height) == size
        small = media.read(data, PixelSpec(2, 2, "squash")).pixels
        assert np.abs(small.mean((0, 1)) - whole.mean((0, 1))).max() < 25
        with Image.open(io.BytesIO(media.thumbnail(data, 5))) as thumbnail:
            assert max(thumbnail.size) == min(5, max(size))


@pytest.mark.parametrize("width", [*range(2090, 4101, 67), 4001])
def test_wide_jpeg_2000_is_read_at_a_fraction(width: int) -> None:
    data = jp2((width, 40))
    assert media.read(data, PixelSpec(64, 4, "squash")).facts.width == width
    assert media.thumbnail(data, 480)


@pytest.mark.parametrize(
    "how",
    [
        {"tile_size": (17, 13)},
        {"offset": (5, 3), "tile_offset": (0, 0), "tile_size": (32, 32)},
        {"num_resolutions": 1},
    ],
)
def test_jpeg_2000_in_tiles_off_its_grid_or_of_one_resolution_is_read(how: dict[str, object]) -> None:
    for size in ((61, 47), (64, 48), (50, 33)):
        data = jp2(size, **how)
        whole = np.asarray(media.load_rgb(data)).astype(int)
        small = media.read(data, PixelSpec(4, 4, "squash")).pixels
        assert np.abs(small.mean((0, 1)) - whole.mean((0, 1))).max() < 25


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4001, 3000), (4000, 3001), (2091, 2345), (3333, 2222)])
def test_large_jpeg_2000_is_read(size: tuple[int, int]) -> None:
    data = jp2(size)
    assert media.read(data, PixelSpec(224, 224)).facts.width == size[0]
    assert media.thumbnail(data, 480)


def test_exif_in_jpeg_2000_is_read() -> None:
    block = pictures.exif(orientation=6, make="Canon", taken_at="2019:07:14 10:20:30")
    data = jp2((64, 48))
    uuid = b"JpgTiffExif->JP2" + block.removeprefix(b"Exif\0\0")
    box = struct.pack(">I", 8 + len(uuid)) + b"uuid" + uuid
    exif = struct.pack(">I", 6) + block
    other = struct.pack(">I", 8 + len(exif)) + b"Exif" + exif
    pixels = data.index(b"jp2c") - 4
    for with_block in (data[:pixels] + box + data[pixels:], data + box, data + other):
        decoded = media.read(with_block, PixelSpec(8, 8))
        assert (decoded.facts.camera, decoded.facts.taken_at) == ("Canon", "2019-07-14T10:20:30")
        assert (decoded.facts.width, decoded.facts.height) == (48, 64)
    junk = data[:pixels] + box[:24] + b"\xff" * (len(box) - 24) + data[pixels:]
    assert media.read(junk, PixelSpec(8, 8)).facts.camera is None


def test_a_codestream_behind_much_metadata_is_still_decoded_small(tmp_path: Path) -> None:
    data = jp2((640, 480))
    pixels = data.index(b"jp2c") - 4
    box = struct.pack(">I", 200_000) + b"uuid" + bytes(200_000 - 8)
    with_box = io.BytesIO(data[:pixels] + box + data[pixels:])
    assert media._j2k_levels(with_box) == media._j2k_levels(io.BytesIO(data)) > 2


def in_two_parts(data: bytes, said: int) -> bytes:
    """A JPEG 2000 of one tile, which is divided in the middle of its packets. said: how many parts it says it has."""
    at = data.index(b"\xff\x90")
    end = at + int.from_bytes(data[at + 6 : at + 10], "big")
    cut = (data.index(b"\xff\x93", at) + end) // 2
    first = data[at : at + 6] + struct.pack(">IBB", cut - at, 0, said) + data[at + 12 : cut]
    second = b"\xff\x90\0\x0a\0\0" + struct.pack(">IBB", 14 + end - cut, 1, said) + b"\xff\x93" + data[cut:end]
    box = data.index(b"jp2c") - 4
    codestream = data[box + 4 : at] + first + second + data[end:]
    return data[:box] + struct.pack(">I", len(codestream) + 4) + codestream


@pytest.mark.parametrize("said", [0, 1, 2])
def test_jpeg_2000_that_says_one_part_too_few_is_read(said: int) -> None:
    """As files of Adobe do; none said is right."""
    data = jp2((400, 300))
    divided = in_two_parts(data, said)
    for spec in (None, PixelSpec(32, 24)):
        assert np.array_equal(np.asarray(media.load_rgb(divided, spec)), np.asarray(media.load_rgb(data, spec)))


def test_jpeg_2000_whose_colours_are_of_no_length_is_read() -> None:
    data = jp2((40, 30))
    at, head = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    short = data[:at] + struct.pack(">I4sI", 12, b"colr", 0x02000000) + data[at + 15 :]
    short = short[:head] + struct.pack(">I", int.from_bytes(data[head : head + 4], "big") - 3) + short[head + 4 :]
    assert np.array_equal(np.asarray(media.load_rgb(short)), np.asarray(media.load_rgb(data)))


@pytest.mark.parametrize(("number", "name"), [(14, "CIELab"), (19, "CIEJab"), (24, "e-sYCC")])
def test_jpeg_2000_of_colours_that_pillow_takes_for_rgb_is_refused(number: int, name: str) -> None:
    data = jp2((40, 30))
    at = data.index(b"colr") + 7
    with pytest.raises(MediaError, match=f"keeps its colours as {name}, which is not read in a JPEG 2000"):
        media.load_rgb(data[:at] + struct.pack(">I", number) + data[at + 4 :])


# BMP


MASKS = {  # as in bmpsuite, by the bits of a pixel
    "rgb32bf": (32, (0xFF000000, 0x00000FF0, 0x00FF0000)),
    "rgb32-111110": (32, (0xFFE00000, 0x001FFC00, 0x000003FF)),
    "rgb16-231": (16, (0x0030, 0x000E, 0x0001)),
    "rgb16-880": (16, (0xFF00, 0x00FF, 0)),
    "rgba16-4444": (16, (0x0F00, 0x00F0, 0x000F, 0xF000)),
    "rgba32-61754": (32, (0x0FC00000, 0x003FFFE0, 0x0000001F, 0xF0000000)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("top_down", [False, True])
def test_a_bmp_of_any_bitfields_is_read_as_drawn(name: str, top_down: bool) -> None:
    bits, masks = MASKS[name]
    scene = np.array(pictures.scene((WIDTH, HEIGHT), 3))
    alpha = np.broadcast_to(np.linspace(30, 255, WIDTH).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 1))
    samples = np.concatenate([scene, alpha], axis=2)
    headers = ((124, 3), (56, 3), (40, 6)) if len(masks) == 4 else ((40, 3), (52, 3), (108, 3))
    most = np.array([mask // (mask & -mask) if mask else 0 for mask in masks])
    rounded = np.rint(np.rint(samples[:, :, : len(masks)] / 255.0 * most) * 255.0 / np.maximum(most, 1))
    opacity = rounded[:, :, 3:] / 255.0 if len(masks) == 4 else 1.0
    seen = rounded[:, :, :3] * opacity + 255.0 * (1.0 - opacity)
    for header, compression in headers:
        for dib in (False, True):
            data = bitmaps.bitfields(
                samples, bits, masks, header=header, compression=compression, top_down=top_down, dib=dib
            )
            assert media.read(data, PixelSpec(8, 8)).facts.format == "BMP"
            assert np.abs(np.asarray(media.load_rgb(data)) - seen).max() <= 1.5


def test_a_wide_bmp_of_bitfields_is_unpacked_in_bands() -> None:
    samples = np.tile(np.array(pictures.scene((300, 100), 3)), (11, 1, 1))
    data = bitmaps.bitfields(samples, 32, (0x3FF, 0xFFC00, 0x3FF00000))
    assert np.array_equal(np.asarray(media.load_rgb(data)), samples)
    assert np.array_equal(np.asarray(media.load_rgb(data[:-100]))[2:], samples[2:])  # the first row is the last
    with pytest.raises(MediaError, match="is cut short"):
        media.load_rgb(data[: len(data) // 2])


@pytest.mark.parametrize("dib", [False, True])
def test_a_bmp_with_a_palette_and_an_odd_header(dib: bool) -> None:
    image = pictures.scene((WIDTH, HEIGHT), 3).quantize(256)
    colours = np.zeros((256, 4), np.uint8)
    rgb = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    colours[: len(rgb), :3] = rgb[:, ::-1]
    for header in (40, 64, 108) if dib else (16, 24, 36, 40, 48, 64, 108):
        data = bitmaps.palette(np.asarray(image), colours.tobytes(), header=header, dib=dib)
        assert np.array_equal(np.asarray(media.load_rgb(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("count", [300, 305_402_420])
def test_a_bmp_whose_palette_is_longer_than_it_can_be(count: int) -> None:
    image = pictures.scene((WIDTH, HEIGHT), 3).quantize(256)
    colours = np.zeros((300, 4), np.uint8)
    rgb = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    colours[: len(rgb), :3] = rgb[:, ::-1]
    data = bitmaps.palette(np.asarray(image), colours.tobytes(), count=count)
    assert np.array_equal(np.asarray(media.load_rgb(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("bits", "masks", "header", "compression", "reason"),
    [
        (32, (0xF0F, 0xF0, 0xF000), 40, 3, "bitfields layout"),  # in two pieces
        (16, (0xFF0000, 0xFF00, 0xFF), 40, 3, "bitfields layout"),  # beyond the pixel
        (24, (0xFF, 0xFF00, 0xFF0000), 40, 3, "bitfields layout"),
        (32, (0, 0, 0), 40, 4, "holds a JPEG or PNG"),
        (32, (0, 0, 0), 40, 5, "holds a JPEG or PNG"),
        (32, (0, 0, 0), 64, 3, "as OS/2 does it"),
    ],
)
def test_a_bmp_that_is_refused_says_why(
    bits: int, masks: tuple[int, ...], header: int, compression: int, reason: str
) -> None:
    samples = np.zeros((4, 4, 3), np.uint8)
    data = bytearray(bitmaps.bitfields(samples, 32, masks, header=header, compression=compression))
    data[28:30] = struct.pack("<H", bits)
    with pytest.raises(MediaError, match=reason):
        media.load_rgb(bytes(data))
