"""The compiled part: to the bit what Pillow gives, or nothing."""

import contextlib
import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path
from random import Random
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmsearch import compiled, media
from mmsearch.encoders.preprocess import Interpolation, PixelSpec, _resized, fit
from tests import pictures
from tests.damage import damaged_jpegs, jpeg
from tests.fuzz import sanitized

INCLUDE = sysconfig.get_paths()["include"]
pytestmark = pytest.mark.skipif(
    compiled._module() is None and not (shutil.which("cc") and Path(INCLUDE, "Python.h").exists()),
    reason="mmsearch could not be compiled here when it was installed",
)

ROOT = Path(__file__).parents[1]
INTERPOLATIONS = get_args(Interpolation)
Sides = st.integers(1, 150)
Sizes = st.tuples(st.integers(8, 150), st.integers(8, 150))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    assert compiled._module() is not None, "a compiler is here, and the compiled part is not: pip install -e . again"


def decode(data: bytes) -> tuple[int, int, bytes] | None:
    return compiled.jpeg_eighth(memoryview(data))


def by_libjpeg(data: bytes) -> tuple[int, int, bytes]:
    image = opened(data)
    assert image.decoderconfig[0] == 8
    return (*image.size, pixels_by_libjpeg(image))


def pixels_by_libjpeg(image: ImageFile.ImageFile) -> bytes:
    try:
        image.load()
    except OSError as error:
        raise AssertionError("libjpeg does not decode it") from error
    return image.tobytes()


def opened(data: bytes) -> ImageFile.ImageFile:
    """Ready to be loaded at an eighth."""
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    assert isinstance(image, ImageFile.ImageFile)
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    return image


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """Of soft scenes, and of noise that fills every coefficient; as cameras and programs write them."""
    size = draw(Sizes)
    if draw(st.booleans()):
        image = pictures.scene(size, draw(st.integers(0, 99)))
    else:
        image = Image.frombytes("RGB", size, draw(st.randoms(use_true_random=False)).randbytes(3 * size[0] * size[1]))
    how: dict[str, object] = {
        "quality": draw(st.integers(1, 100)),
        "subsampling": draw(st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])),
        "optimize": draw(st.booleans()),
    }
    every = draw(st.integers(0, 9))
    if draw(st.booleans()):
        how["progressive"] = True
    elif every:
        how["restart_marker_blocks"] = every
    return jpeg(image.convert(draw(st.sampled_from(["RGB", "L"]))), **how)


def without_last_scan(data: bytes) -> bytes:
    return data[: data.rindex(b"\xff\xda")] + b"\xff\xd9"


@given(jpegs())
def test_a_plain_jpeg_is_decoded_to_the_bit_as_by_libjpeg(data: bytes) -> None:
    assert decode(data) == by_libjpeg(data)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_damaged_is_left_to_libjpeg_or_decoded_alike(seed: int) -> None:
    n_decoded = 0
    for data in itertools.islice(damaged_jpegs(seed), 2000):
        with contextlib.suppress(
            OSError, SyntaxError, ValueError, struct.error
        ):  # Pillow's own part, which comes first
            image = opened(data)
            decoded = media._eighth(image, io.BytesIO(data))
            if decoded is not None:
                n_decoded += 1
                assert decoded.tobytes() == pixels_by_libjpeg(image)
    assert n_decoded > 200


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_nothing_makes_it_read_or_write_what_it_was_not_given(tmp_path: Path, plain: bool) -> None:
    needed = sanitized(tmp_path, plain=plain)
    if needed is None:
        pytest.skip("there is no gcc with sanitizers here")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.damage", str(tmp_path), "30000"],
        cwd=ROOT,
        env={**os.environ, **needed},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[0]) > 3000


def test_tables_that_no_scan_uses_are_passed_over_as_by_libjpeg() -> None:
    data = jpeg(pictures.scene((64, 48)).convert("L"))
    table = bytes([0x13, 1, 1, *[0] * 14, 1, 1])  # two codes, the second of ones alone: refused if it is used
    segment = b"\xff\xc4" + (2 + 3000 * len(table)).to_bytes(2, "big") + 3000 * table
    crowded = data[:2] + 100 * segment + data[2:]  # 6 MB, which took 17 s when every table was made ready
    assert decode(crowded) == by_libjpeg(crowded)


def test_a_table_with_a_code_of_ones_alone_is_left_to_libjpeg_which_refuses_it() -> None:
    data = jpeg(pictures.scene((64, 48)).convert("L"))
    at = data.index(b"\xff\xc4")  # the DC table, of 31 bytes
    table = bytes([0xFF, 0xC4, 0, 21, 0, 2, *[0] * 15, 0, 1])
    odd = data[:at] + table + data[at + 33 :]
    assert decode(odd) is None
    with pytest.raises(AssertionError, match="does not decode"):
        by_libjpeg(odd)


@given(st.binary(max_size=300))
def test_nonsense_is_left_to_libjpeg(data: bytes) -> None:
    assert decode(b"\xff\xd8\xff" + data) is None


def test_other_kinds_of_jpeg_are_left_to_libjpeg() -> None:
    scene = pictures.scene((64, 48))
    assert decode(jpeg(scene, progressive=True, restart_marker_blocks=2)) is None
    assert decode(jpeg(scene.convert("CMYK"))) is None
    assert decode(jpeg(scene)[:-2]) is None  # without its end
    assert decode(without_last_scan(jpeg(scene, progressive=True))) is None  # which libjpeg smooths
    assert decode(b"") is None


def test_what_follows_the_picture_in_its_file_is_passed_over() -> None:
    data = jpeg(pictures.scene((64, 48)))
    assert decode(data + b"\xff\xd8 a film, as telephones add it") == decode(data)


def test_a_photograph_is_read_by_it_and_a_small_picture_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = compiled.jpeg_eighth

    def counted(data: memoryview) -> tuple[int, int, bytes] | None:
        read.append(len(data))
        return whole(data)

    monkeypatch.setattr(compiled, "jpeg_eighth", counted)
    photo = pictures.photo(tmp_path / "photo.jpg", (2700, 2500))
    small = pictures.photo(tmp_path / "small.jpg", (512, 384))
    spec = PixelSpec(260, 260)
    by_both = [media.read(photo, spec), media.read(small, spec)]
    assert read == [photo.stat().st_size]
    monkeypatch.setattr(compiled, "_module", lambda: None)
    by_pillow = [media.read(photo, spec), media.read(small, spec)]
    for one, other in zip(by_both, by_pillow, strict=True):
        assert (one.pixels == other.pixels).all()
        assert one.facts == other.facts


def test_a_picture_that_another_decoder_would_see_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg(pictures.scene((64, 48)))
    monkeypatch.setattr(compiled, "jpeg_eighth", lambda data: (8, 7, bytes(3 * 8 * 7)))
    assert media._eighth(opened(data), io.BytesIO(data)) is None


@given(Sides, Sides, Sides, Sides, st.sampled_from(INTERPOLATIONS), st.randoms(use_true_random=False))
def test_what_is_kept_of_a_resized_picture_is_to_the_bit_what_pillow_gives(
    width: int, height: int, new_width: int, new_height: int, interpolation: Interpolation, random: Random
) -> None:
    image = Image.frombytes("RGB", (width, height), random.randbytes(3 * width * height))
    image = image.point(lambda value: 255 * (value > 127)) if random.random() < 0.3 else image  # which overshoots
    left, top = random.randrange(new_width), random.randrange(new_height)
    kept = (left, top, random.randint(1, new_width - left), random.randint(1, new_height - top))
    resized = _resized(image, (new_width, new_height), kept, interpolation)
    by_pillow = image.resize((new_width, new_height), Image.Resampling[interpolation.upper()])
    assert resized.flags.writeable
    assert (resized == np.asarray(by_pillow)[top : top + kept[3], left : left + kept[2]]).all()


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (500, 375), (3000, 17)])
def test_pictures_are_resized_by_it(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image, spec = pictures.scene(size), PixelSpec(260, 260)
    with monkeypatch.context() as without:
        without.setattr(Image.Image, "resize", None)
        resized = fit(image, spec)
    monkeypatch.setattr(compiled, "_module", lambda: None)
    assert (fit(image, spec) == resized).all()


@pytest.mark.parametrize("size", [(3, 1200), (1200, 3), (9_000_000, 1), (1, 9_000_000)])
def test_strips_are_resized_alike_with_it_and_without(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.frombytes("RGB", size, Random(0).randbytes(3 * size[0] * size[1]))
    resized = fit(image, PixelSpec(260, 260))
    monkeypatch.setattr(compiled, "_module", lambda: None)
    assert (fit(image, PixelSpec(260, 260)) == resized).all()


def test_it_was_compiled_from_the_sources_that_are_here() -> None:
    sources = sorted((ROOT / "native").glob("*.[ch]"))
    checksum = zlib.crc32(b"".join(path.read_bytes() for path in sources)) >> 1
    assert checksum == compiled._module().SOURCES, "pip install -e . again"


def test_sizes_that_do_not_fit_together_are_refused() -> None:
    for arguments in (
        (bytes(4 * 12), (4, 4), (2, 2), (0, 0, 2, 2)),
        (bytes(4 * 16), (4, 4), (2, 2), (1, 0, 2, 2)),
        (bytes(4 * 16), (4, 4), (2, 2), (-1, 0, 2, 2)),
        (bytes(4 * 16), (4, 4), (0, 2), (0, 0, 0, 2)),
        (bytes(4 * 16), (-4, -4), (2, 2), (0, 0, 2, 2)),
        (b"", (0, 0), (2, 2), (0, 0, 2, 2)),
    ):
        with pytest.raises(ValueError, match="sizes"):
            compiled.resize(*arguments, True)
    assert compiled.resize(bytes(4 * 3000), (3000, 1), (1, 1), (0, 0, 1, 1), True) is None  # by Pillow


def test_one_of_other_sources_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert compiled._module.__wrapped__() is None
