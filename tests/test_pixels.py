"""One way from an image to the pixels of an encoder: for files, bytes and images in memory, in every mode."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from mmsearch import Index, Query, load_encoder, media
from mmsearch.encoders.preprocess import PixelSpec, fit
from mmsearch.query import Term
from tests import pictures
from tests.tiffs import tiff

SPEC = PixelSpec(48, 48)
SIZE = (150, 100)
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def in_mode(mode: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """The scene, see-through to the right where the mode can be."""
    scene = pictures.scene(size)
    clear = scene.copy()
    clear.putalpha(Image.linear_gradient("L").rotate(90).resize(size))
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = clear.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
        return image.convert(mode) if mode in ("La", "RGBa") else image
    if mode in ("I", "I;16"):
        deep = np.asarray(scene.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
    if mode == "F":
        return Image.fromarray(np.asarray(scene.convert("L"), np.float32) / 255)
    if mode == "LAB":
        lab = ImageCms.profileToProfile(
            scene, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert lab is not None
        return lab
    return scene.convert(mode)


def expected(mode: str) -> np.ndarray:
    """What is to be seen, from the scene itself."""
    scene = pictures.scene(SIZE)
    if mode in ("1", "L", "LA", "La", "I", "I;16", "F"):
        scene = scene.convert("L").convert("RGB")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        scene.putalpha(Image.linear_gradient("L").rotate(90).resize(SIZE))
        scene = Image.alpha_composite(Image.new("RGBA", SIZE, "white"), scene).convert("RGB")
    return fit(scene, SPEC).astype(int)


def encodings() -> Iterator[tuple[str, Image.Image, bytes]]:
    """(name, image, the same as a file), for all that a file can hold."""
    block, profile = pictures.exif(orientation=6), pictures.linear_light_profile()
    for mode in MODES:
        image = in_mode(mode)
        for format_ in ("PNG", "TIFF"):
            out = io.BytesIO()
            try:
                image.save(out, format_)
            except OSError:
                continue
            yield f"{mode} {format_}", image, out.getvalue()
    for format_, mode, how in (
        ("PNG", "RGB", {"icc_profile": profile}),
        ("PNG", "RGBA", {"icc_profile": profile, "exif": block}),
        ("PNG", "L", {"transparency": 90}),
        ("PNG", "P", {"transparency": 3}),
        ("TIFF", "RGB", {"exif": block}),
        ("TIFF", "LAB", {}),
        ("WEBP", "RGBA", {"lossless": True, "icc_profile": profile}),
        ("JPEG", "CMYK", {"exif": block}),
        ("JPEG", "L", {"exif": block}),
        ("JPEG", "RGB", {"exif": block, "icc_profile": profile}),
        ("JPEG2000", "RGBA", {}),
        ("AVIF", "RGB", {"exif": block}),
    ):
        out = io.BytesIO()
        in_mode(mode).save(out, format_, **how)
        yield f"{mode} {format_} {sorted(how)}", in_mode(mode), out.getvalue()
    for order in "<>":
        deep = np.asarray(pictures.scene(SIZE)).astype(np.uint16) * 257
        yield f"planes {order}", pictures.scene(SIZE), tiff(deep, 2, order=order, planes=True)  # type: ignore[arg-type]
        real = np.asarray(pictures.scene(SIZE).convert("L")).astype(np.float32)[:, :, None] / 255
        yield f"real {order}", in_mode("F"), tiff(real, 1, order=order, compression="deflate")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_is_seen_as_it_is(mode: str) -> None:
    shown = media.read(in_mode(mode), SPEC).pixels.astype(int)
    assert np.abs(shown - expected(mode)).mean() < (12 if mode in ("1", "P", "PA") else 3)


def test_a_file_its_bytes_and_the_image_opened_from_it_give_the_same_pixels(tmp_path: Path) -> None:
    for name, _, data in encodings():
        path = tmp_path / "image"
        path.write_bytes(data)
        as_file = media.read(str(path), SPEC)
        for source in (data, io.BytesIO(data), Image.open(io.BytesIO(data))):
            assert np.array_equal(media.read(source, SPEC).pixels, as_file.pixels), name
        with Image.open(path) as image:
            assert np.array_equal(fit(media.load_rgb(image, SPEC), SPEC), as_file.pixels), name
            assert np.array_equal(media.read(image.copy(), SPEC).pixels, as_file.pixels), name


@pytest.mark.parametrize(("colour_type", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 8)])
def test_the_colour_that_a_png_names_as_clear_is_white_and_no_other(colour_type: int, depth: int) -> None:
    most = 2**depth - 1
    clear, other = most // 3, most - most // 3  # of one bit: 0 and 1
    if colour_type == 3:
        chunks, row, clear, other = (
            chunk(b"PLTE", bytes([0, 0, 90, 90, 0, 0])) + chunk(b"tRNS", b"\0\xff"),
            bytes(2),
            0,
            1,
        )
        row = bytes([clear, other])
    else:
        channels = 3 if colour_type == 2 else 1
        chunks = chunk(b"tRNS", struct.pack(f">{channels}H", *[clear] * channels))
        bits = "".join(f"{value:0{depth}b}" * channels for value in (clear, other))
        row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    shown = np.asarray(media.load_rgb(pictures.png((2, 1), colour_type, depth, b"\0" + row, chunks)))[0]
    assert shown[0].tolist() == [255, 255, 255]
    assert shown[1].tolist() == ([90, 0, 0] if colour_type == 3 else [round(other * 255 / most)] * 3)


def test_what_a_program_notes_as_orientation_is_heeded() -> None:
    image = pictures.scene((40, 20))
    image.getexif()[0x0112] = 6
    assert media.load_rgb(image).size == (20, 40)


def test_an_index_and_its_encoder_see_the_same_pixels(tmp_path: Path) -> None:
    encoder = load_encoder("lite")
    (tmp_path / "files").mkdir()
    images = {f"memory {mode}": in_mode(mode) for mode in MODES}
    for name, _, data in encodings():
        path = tmp_path / "files" / name.replace(" ", "-")
        path = path.with_name(path.name + ".png")  # the content decides what a file is
        path.write_bytes(data)
        images[str(path)] = Image.open(path)
    vectors = encoder.encode_images(list(images.values()))
    with Index(tmp_path / "index", encoder=encoder) as index:
        index.add(tmp_path / "files")
        memory = [name for name in images if name.startswith("memory")]
        index.add_images([images[name] for name in memory], ids=memory)
        for name, vector in zip(images, vectors, strict=True):
            scores = {hit.path or hit.id: hit.score for hit in index.search(Query((Term(1.0, vector=vector),)), k=200)}
            assert scores[name] > 0.9995, name  # vectors are stored in 16 bits
        for name in list(images)[::9]:
            assert index.search(images[name], k=1)[0].score > 0.9995, name
