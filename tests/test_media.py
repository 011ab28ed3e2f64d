"""Pictures of every kind come out upright, in the right colours and small; broken ones with their reason."""

import io
import os
import socket
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsearch import containers, media
from mmsearch.decoding import DecodePool
from mmsearch.encoders.preprocess import LONGEST_WITHIN, PixelSpec, fit
from mmsearch.errors import MediaError
from mmsearch.exif import ExifFacts, read_exif
from mmsearch.facts import Decoded
from tests import pictures

CLIP = PixelSpec(224, 224)
TINY = PixelSpec(40, 30, "squash")
GREY_FORMATS = ("grey", "16 bit", "32 bit", "float", "1 bit")
RGB = tuple[int, int, int]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pictures.every_format(tmp_path_factory.mktemp("formats"))


def near(pixel: np.ndarray, colour: RGB, by: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= by)


def corners(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Top left, top right, bottom left, bottom right; a little inside."""
    high, wide = pixels.shape[0] // 4, pixels.shape[1] // 4
    return pixels[high, wide], pixels[high, -wide], pixels[-high, wide], pixels[-high, -wide]


def is_upright(pixels: np.ndarray, by: int = 12) -> bool:
    return all(near(*pair, by) for pair in zip(corners(pixels), pictures.QUADRANTS.values(), strict=True))


def reason(source: media.Source) -> str:
    with pytest.raises(MediaError) as caught:
        media.read(source, CLIP)
    return str(caught.value)


# To the pixel


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (501, 333), (333, 501), (224, 223), (1999, 1501)])
def test_fit_gives_the_very_pixels_of_open_clips_transform(size: tuple[int, int]) -> None:
    transform = pytest.importorskip("open_clip.transform")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    shapes = (224, (64, 37), (5, 5))
    for mode, interpolation, shape in product(("shortest", "longest", "squash"), ("bicubic", "bilinear"), shapes):
        cfg = transform.PreprocessCfg(size=shape, resize_mode=mode, interpolation=interpolation, fill_color=7)
        theirs = transform.image_transform_v2(cfg, is_train=False)
        theirs.transforms = theirs.transforms[:-2]  # to a tensor, normalise
        height, width = (shape, shape) if isinstance(shape, int) else shape
        ours = fit(image, PixelSpec(width, height, mode, interpolation, fill=7))
        try:
            expected = np.asarray(theirs(image))
        except ValueError:  # it rounds the shorter side of a strip down to nothing
            assert ours.shape == (height, width, 3)
        else:
            np.testing.assert_array_equal(ours, expected, f"{mode} {interpolation} {shape}")


def test_within_keeps_the_shape_and_enlarges_nothing() -> None:
    spec = PixelSpec(224, 224, "within")
    assert fit(Image.new("RGB", (1000, 500)), spec).shape == (224, 448, 3)
    assert fit(Image.new("RGB", (30, 20)), spec).shape == (20, 30, 3)
    assert fit(Image.new("RGB", (100_000, 10)), spec).shape[1] == 224 * LONGEST_WITHIN


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash", "within"])
def test_a_strip_of_a_million_pixels_is_fitted_without_growing(mode: str) -> None:
    for size in ((1, 1_000_000), (1_000_000, 1)):
        pixels = fit(Image.new("RGB", size, (9, 8, 7)), PixelSpec(224, 224, mode, fill=9))  # type: ignore[arg-type]
        assert pixels.nbytes <= 3 * 224 * 224


# Formats and colours


def test_every_format_is_read_as_what_was_drawn(files: dict[str, Path]) -> None:
    scene = pictures.scene()
    over_white = Image.composite(
        scene, Image.new("RGB", scene.size, "white"), Image.linear_gradient("L").resize(scene.size)
    )
    for name, path in files.items():
        drawn = over_white if "alpha" in name or name == "lossless WebP" else scene
        if any(part in name for part in GREY_FORMATS):
            drawn = drawn.convert("L").convert("RGB")
        decoded = media.read(str(path), CLIP)
        assert decoded.pixels.shape == (224, 224, 3), name
        assert (decoded.facts.width, decoded.facts.height) == scene.size, name
        error = np.abs(decoded.pixels.astype(int) - fit(drawn, CLIP)).mean()
        assert error < (12 if name in ("palette PNG", "1 bit PNG") else 6), f"{name}: {error:.1f}"


def test_the_content_decides_and_not_the_suffix(tmp_path: Path, files: dict[str, Path]) -> None:
    wrong = tmp_path / "really-a-png.jpg"
    wrong.write_bytes(files["PNG"].read_bytes())
    assert media.read(str(wrong), CLIP).facts.format == "PNG"


def test_other_formats_that_pillow_knows_are_not_tried(tmp_path: Path) -> None:
    for suffix in ("eps", "ppm", "tga", "pcx", "icns", "pdf"):
        pictures.quadrants((64, 64)).save(path := tmp_path / f"picture.{suffix}")
        assert reason(str(path))


@pytest.mark.parametrize("spec", [TINY, None])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_a_picture_is_turned_upright_by_its_exif(
    tmp_path: Path, suffix: str, orientation: int, spec: PixelSpec | None
) -> None:
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # back from upright, as Pillow's transpositions
    image = pictures.quadrants((1280, 800))
    if orientation in turned:
        image = image.transpose(Image.Transpose(turned[orientation]))
    image.save(path := tmp_path / f"turned.{suffix}", exif=pictures.exif(orientation=orientation))
    assert is_upright(np.asarray(media.load_rgb(str(path), spec)))
    facts = media.read(str(path), TINY).facts
    assert (facts.width, facts.height) == (1280, 800)


def test_a_heic_is_turned_once_and_not_twice(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    image = pictures.quadrants().transpose(Image.Transpose.ROTATE_90)
    path = pictures.heic(tmp_path / "telephone.heic", image, pictures.exif(orientation=6))
    assert is_upright(media.read(str(path), TINY).pixels)


def test_a_picture_that_was_turned_is_not_turned_again_when_it_is_read_again(tmp_path: Path) -> None:
    path = pictures.photo(tmp_path / "a.jpg", image=pictures.quadrants(), exif=pictures.exif(orientation=3))
    once = media.load_rgb(str(path))
    assert np.array_equal(np.asarray(media.load_rgb(once)), np.asarray(once))


def test_a_colour_profile_is_followed_and_a_broken_one_left_aside(tmp_path: Path) -> None:
    grey = Image.new("RGB", (64, 64), (55, 55, 55))
    profile = pictures.linear_light_profile()
    plain = pictures.photo(tmp_path / "plain.jpg", image=grey)
    linear = pictures.photo(tmp_path / "linear.jpg", image=grey, icc_profile=profile)
    broken = pictures.photo(tmp_path / "broken.jpg", image=grey, icc_profile=profile[:400] + bytes(200))
    assert near(media.read(str(plain), TINY).pixels[0, 0], (55, 55, 55), 2)
    assert near(media.read(str(linear), TINY).pixels[0, 0], (128, 128, 128), 3)  # 55 / 255 of the light
    assert near(media.read(str(broken), TINY).pixels[0, 0], (55, 55, 55), 2)


def test_a_colour_profile_leaves_transparency_alone(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (55, 55, 55, 0))
    image.save(path := tmp_path / "clear.png", icc_profile=pictures.linear_light_profile())
    assert near(media.read(str(path), TINY).pixels[0, 0], (255, 255, 255), 1)


def test_cmyk_is_right_whether_adobe_inverted_it_or_not(tmp_path: Path) -> None:
    inverted = tmp_path / "adobe.jpg"
    pictures.quadrants().convert("CMYK").save(inverted, quality=95)
    assert b"Adobe" in inverted.read_bytes()
    assert is_upright(media.read(str(inverted), TINY).pixels)
    plain = pictures.cmyk_jpeg_without_adobe(tmp_path / "plain.jpg", pictures.quadrants())
    assert is_upright(media.read(str(plain), TINY).pixels)


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(64, 0)
    for name, values in {"u16.png": ramp, "u16.tif": ramp, "i32.tif": ramp.astype(np.int32)}.items():
        Image.fromarray(values).save(tmp_path / name)
        row = np.asarray(media.load_rgb(str(tmp_path / name)))[0, :, 0]
        assert np.abs(row.astype(int) - np.arange(256)).max() <= 1, name
    odd = np.array([[-5.0, 0.0], [np.nan, np.inf]], dtype=np.float32)
    Image.fromarray(odd).save(tmp_path / "odd.tif")
    assert media.load_rgb(str(tmp_path / "odd.tif")).size == (2, 2)


def test_transparency_is_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4000, 3000), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 2000, 3000))
    clear.save(path := tmp_path / "clear.png", compress_level=1)
    pixels = media.read(str(path), TINY).pixels
    assert near(pixels[15, 5], (0, 0, 200))
    assert near(pixels[15, 35], (255, 255, 255))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 0, 0])
    palette.save(path := tmp_path / "palette.png", transparency=0)
    assert near(media.read(str(path), TINY).pixels[0, 0], (255, 255, 255))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    for suffix in ("gif", "png", "webp"):
        black = [Image.new("RGB", (320, 200))] * 3
        pictures.quadrants().save(path := tmp_path / f"moves.{suffix}", save_all=True, append_images=black)
        assert is_upright(media.read(str(path), TINY).pixels, 20)


@pytest.mark.parametrize(
    "name", ["JPEG", "progressive JPEG", "PNG", "alpha PNG", "16 bit PNG", "JPEG 2000", "palette PNG"]
)
def test_a_big_picture_decoded_small_looks_like_one_decoded_whole(tmp_path: Path, name: str) -> None:
    path = pictures.every_format(tmp_path, pictures.scene((1400, 1050)), only=(name,))[name]
    whole = fit(media.load_rgb(str(path)), CLIP)
    small = media.read(str(path), CLIP).pixels
    assert np.abs(small.astype(int) - whole).mean() < 1.5


def test_the_pixels_own_their_memory(files: dict[str, Path]) -> None:
    pixels = media.read(str(files["JPEG"]), CLIP).pixels
    assert pixels.dtype == np.uint8
    assert pixels.flags.owndata
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


# Sources


def test_a_path_bytes_a_file_and_an_image_give_the_same(files: dict[str, Path]) -> None:
    path = files["PNG"]
    expected = media.read(str(path), CLIP)
    with path.open("rb") as file, Image.open(path) as image:
        for source in (path, path.read_bytes(), file):
            got = media.read(source, CLIP)
            assert np.array_equal(got.pixels, expected.pixels)
            assert got.facts == expected.facts
        assert np.array_equal(media.read(image, CLIP).pixels, expected.pixels)


def test_an_image_of_the_program_is_not_changed() -> None:
    image = pictures.quadrants().convert("RGBA")
    before = image.tobytes()
    media.load_rgb(image).putpixel((0, 0), (1, 2, 3))
    media.thumbnail(image, 10)
    assert (image.tobytes(), image.mode, image.size) == (before, "RGBA", (320, 200))


def test_pillows_own_limits_are_left_as_the_program_set_them(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    media.read(str(pictures.big_jpeg(tmp_path / "big.jpg", (16384, 12288))), CLIP)
    assert before == Image.MAX_IMAGE_PIXELS


def test_names_of_any_bytes_are_opened(tmp_path: Path) -> None:
    for name in ("-rf.jpg", "new\nline '\".jpg", "\N{SNOWMAN}.jpg", os.fsdecode(b"\xff\xfe.jpg")):
        path = pictures.photo(tmp_path / name, (40, 30))
        assert media.read(str(path), TINY).facts.format == "JPEG"


# Facts


def test_exif_facts_are_read(tmp_path: Path) -> None:
    block = pictures.exif(
        taken_at="2019:07:14 10:20:30",
        offset="+02:00",
        make="NIKON CORPORATION",
        model="NIKON D90",
        latitude_deg=-33.8568,
        longitude_deg=151.2153,
    )
    for suffix in ("jpg", "png", "webp", "tif", "avif", "heic"):
        path = tmp_path / f"facts.{suffix}"
        pictures.heic(path, exif=block) if suffix == "heic" else pictures.quadrants().save(path, exif=block)
        facts = media.read(str(path), TINY).facts
        assert facts.taken_at == "2019-07-14T10:20:30+02:00", suffix
        assert facts.camera == "NIKON D90"
        assert facts.latitude_deg == pytest.approx(-33.8568, abs=1e-5)
        assert facts.longitude_deg == pytest.approx(151.2153, abs=1e-5)


def test_a_time_is_exifs_own_or_none() -> None:
    assert read_exif(pictures.exif(taken_at="2019:07:14 10:20:30")).taken_at == "2019-07-14T10:20:30"
    assert (
        read_exif(pictures.exif(taken_at="2019:07:14 10:20:30", offset="-09:30")).taken_at
        == "2019-07-14T10:20:30-09:30"
    )
    assert read_exif(pictures.exif(taken_at="2019:07:14 10:20:30", offset="99:99")).taken_at == "2019-07-14T10:20:30"
    for nonsense in ("0000:00:00 00:00:00", "    :  :     :  :  ", "2019:13:14 10:20:30", "0001:01:01 00:00:00", "now"):
        assert read_exif(pictures.exif(taken_at=nonsense)).taken_at is None


def test_the_maker_is_named_once() -> None:
    assert read_exif(pictures.exif(make="Canon", model="Canon EOS 5D")).camera == "Canon EOS 5D"
    assert read_exif(pictures.exif(make="Apple", model="iPhone 12")).camera == "Apple iPhone 12"
    assert read_exif(pictures.exif(make="SONY\0\0 ", model="")).camera == "SONY"
    assert read_exif(pictures.exif()).camera is None


def test_a_place_off_the_globe_is_no_place() -> None:
    assert read_exif(pictures.exif(latitude_deg=91.0, longitude_deg=10.0)).latitude_deg is None
    assert read_exif(pictures.exif(latitude_deg=10.0, longitude_deg=181.0)).latitude_deg is None
    assert read_exif(pictures.exif(latitude_deg=0.0, longitude_deg=0.0)).longitude_deg is None


@given(st.binary(max_size=400), st.integers(0, 200), st.binary(min_size=1, max_size=30))
def test_no_exif_block_raises(noise: bytes, at: int, change: bytes) -> None:
    good = pictures.exif(taken_at="2019:07:14 10:20:30", make="Canon", latitude_deg=1.0, longitude_deg=2.0)
    for block in (noise, good[:at], good[:at] + change + good[at + len(change) :], b"II*\0" + noise):
        assert isinstance(read_exif(block), ExifFacts)


def test_damaged_exif_does_not_stop_a_good_picture(tmp_path: Path) -> None:
    path = pictures.photo(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 3000)
    assert media.read(str(path), CLIP).facts.taken_at is None


def test_the_hash_is_of_the_whole_file(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(files["TIFF"])
    once = media.read(path, CLIP)
    assert once.facts.content_hash == media.content_hash(path)
    monkeypatch.setattr(media, "READ_ONCE_BYTES", 1000)  # as if it were large: read from disk, twice
    twice = media.read(path, CLIP)
    assert twice.facts == once.facts
    assert np.array_equal(twice.pixels, once.pixels)


# Thumbnails


def test_a_thumbnail_is_a_small_upright_jpeg_without_metadata(tmp_path: Path) -> None:
    block = pictures.exif(orientation=6, make="Canon", latitude_deg=1.0, longitude_deg=2.0)
    turned = pictures.quadrants((1280, 800)).transpose(Image.Transpose.ROTATE_90)
    path = pictures.photo(tmp_path / "a.jpg", image=turned, exif=block)
    with Image.open(io.BytesIO(media.thumbnail(str(path), 160))) as small:
        assert (small.format, small.size) == ("JPEG", (160, 100))
        assert "exif" not in small.info
        assert is_upright(np.asarray(small))


def test_a_thumbnail_enlarges_nothing() -> None:
    with Image.open(io.BytesIO(media.thumbnail(pictures.quadrants((20, 10)), 160))) as small:
        assert small.size == (20, 10)


# Hostile


def test_a_picture_cut_short_says_so(files: dict[str, Path], tmp_path: Path) -> None:
    for name, path in files.items():
        for keep in (0.02, 0.5, 0.95):
            assert reason(str(pictures.broken_cut_short(tmp_path / "cut", path, keep))) == "is cut short", (
                f"{name} {keep}"
            )


def test_each_kind_of_no_picture_has_its_reason(tmp_path: Path) -> None:
    assert reason(str(pictures.broken_empty(tmp_path / "empty.jpg"))) == "is empty"
    assert reason(str(pictures.broken_text(tmp_path / "text.jpg"))) == "is text, not a picture"
    assert reason(b"%PDF-1.7 ...") == "is a PDF document, not a picture"
    assert reason(b'<?xml version="1.0"?><svg/>') == "is an SVG drawing, and only pictures made of pixels are read"
    assert (
        reason(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2")
        == "is a film, or another file that is no picture, in an MP4 container"
    )
    assert reason(os.urandom(64) + b"\0\xff") == "is not in a picture format that is known"
    assert reason(bytes(100)) == "is filled with zeros, not a picture"
    assert reason(str(tmp_path)) == "is a folder"


def test_a_png_bomb_is_refused_before_a_pixel_is_decoded(tmp_path: Path) -> None:
    bomb = pictures.png_bomb(tmp_path / "bomb.png")
    assert bomb.stat().st_size < 10_000
    assert reason(str(bomb)) == "is 50,000 x 50,000 pixels, more than the 250 million that are read"
    with pytest.raises(media.TooLargeError):
        media.read(str(pictures.png_bomb(tmp_path / "lesser.png", (10_000, 10_000))), CLIP, max_bytes=50_000_000)


def test_two_hundred_megapixels_of_jpeg_are_read(tmp_path: Path) -> None:
    facts = media.read(str(pictures.big_jpeg(tmp_path / "big.jpg", (16384, 12288))), CLIP).facts
    assert (facts.width, facts.height) == (16384, 12288)


def test_a_webp_is_measured_before_memory_is_taken_for_it(files: dict[str, Path]) -> None:
    for name in ("WebP", "lossless WebP", "animated WebP"):
        with pytest.raises(media.TooLargeError):
            media.read(files[name], CLIP, max_bytes=16 * 640 * 480 - 1)
        media.read(files[name], CLIP, max_bytes=16 * 640 * 480)
        assert containers.webp_size(io.BytesIO(files[name].read_bytes())) == (640, 480)
    huge = bytearray(files["animated WebP"].read_bytes())
    huge[24:30] = b"\xff" * 6
    assert reason(bytes(huge)) == "is 16,777,216 x 16,777,216 pixels, more than the 250 million that are read"


@pytest.mark.parametrize("tiles", [(2, 2), pytest.param((16, 12), marks=pytest.mark.slow)])
def test_a_heic_in_tiles_is_read_up_to_two_hundred_megapixels(
    tmp_path: Path, tiles: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_MAX_DECODE_MB", "2500")
    path = str(pictures.big_heic(tmp_path / "big.heic", tiles))
    with DecodePool(CLIP, workers=1, timeout_s=200) as pool:
        decoded = dict(pool.decode([path]))[path]
    assert isinstance(decoded, Decoded)
    assert (decoded.facts.width, decoded.facts.height) == (1024 * tiles[0], 1024 * tiles[1])
    assert decoded.pixels.std() > 10


def test_a_million_frames_cost_the_time_of_one(tmp_path: Path) -> None:
    assert media.read(str(pictures.gif_with_many_frames(tmp_path / "a.gif")), CLIP).facts.width == 8
    assert media.read(str(pictures.apng_with_many_frames(tmp_path / "a.png", 20_000)), CLIP).facts.width == 8


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(str(tmp_path / "pipe.jpg")) == "is not a regular file"
    assert reason("/dev/zero") == "is not a regular file"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.jpg"))
        assert reason(str(tmp_path / "socket.jpg")) == "is not a regular file"
    with pytest.raises(FileNotFoundError):
        media.read(str(tmp_path / "nothing.jpg"), CLIP)
    with pytest.raises(FileNotFoundError):
        media.read("nul\0.jpg", CLIP)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damaged_file_raises_anything_but_a_media_error(small_files: dict[str, bytes], data: st.DataObject) -> None:
    whole = small_files[data.draw(st.sampled_from(sorted(small_files)))]
    damaged = bytearray(whole[: data.draw(st.integers(1, len(whole)))] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, min(len(damaged), 600) - 1) | st.integers(0, len(damaged) - 1))
        damaged[at : at + 2] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        decoded = media.read(bytes(damaged), TINY, max_bytes=100_000_000)
    except MediaError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert decoded.pixels.shape == (30, 40, 3)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    block = pictures.exif(orientation=6, taken_at="2019:07:14 10:20:30", latitude_deg=1.0, longitude_deg=2.0)
    folder = tmp_path_factory.mktemp("small")
    files = pictures.every_format(folder, pictures.scene((64, 48)))
    files["JPEG with EXIF"] = pictures.photo(folder / "exif.jpg", (64, 48), exif=block)
    files["JPEG with profile"] = pictures.photo(
        folder / "icc.jpg", (64, 48), icc_profile=pictures.linear_light_profile()
    )
    return {name: path.read_bytes() for name, path in files.items()}
