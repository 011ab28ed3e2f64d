"""The compiled decoder of JPEGs at an eighth: to the bit what libjpeg gives, or nothing."""

import contextlib
import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mmsearch import eighth, media
from mmsearch.encoders.preprocess import PixelSpec
from tests import pictures
from tests.damage import damaged_jpegs, jpeg

INCLUDE = sysconfig.get_paths()["include"]
pytestmark = pytest.mark.skipif(
    eighth.decode is None and not (shutil.which("cc") and Path(INCLUDE, "Python.h").exists()),
    reason="mmsearch could not be compiled here when it was installed",
)

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "native" / "jpeg.c"
Sizes = st.tuples(st.integers(8, 150), st.integers(8, 150))


def decode(data: bytes) -> tuple[int, int, bytes] | None:
    assert eighth.decode is not None, "a compiler is here, and the compiled part is not: pip install -e . again"
    return eighth.decode(memoryview(data))


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
    if every:
        how["restart_marker_blocks"] = every
    return jpeg(image.convert(draw(st.sampled_from(["RGB", "L"]))), **how)


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
            decoded = eighth.eighth(image, io.BytesIO(data))
            if decoded is not None:
                n_decoded += 1
                assert decoded.tobytes() == pixels_by_libjpeg(image)
    assert n_decoded > 200


@pytest.mark.slow
def test_no_damage_makes_it_read_or_write_what_it_was_not_given(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    how = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC", f"-I{INCLUDE}"]
    command = [compiler, *how, str(SOURCE), "-o", str(tmp_path / "_mmsearch.so")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("gcc has no sanitizers here")
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.damage", str(tmp_path), "30000"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0",
            "LD_PRELOAD": " ".join(libraries),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[0]) > 3000


@given(st.binary(max_size=300))
def test_nonsense_is_left_to_libjpeg(data: bytes) -> None:
    assert decode(b"\xff\xd8\xff" + data) is None


def test_other_kinds_of_jpeg_are_left_to_libjpeg() -> None:
    scene = pictures.scene((64, 48))
    assert decode(jpeg(scene, progressive=True)) is None
    assert decode(jpeg(scene.convert("CMYK"))) is None
    assert decode(jpeg(scene)[:-2]) is None  # without its end
    assert decode(b"") is None


def test_what_follows_the_picture_in_its_file_is_passed_over() -> None:
    data = jpeg(pictures.scene((64, 48)))
    assert decode(data + b"\xff\xd8 a film, as telephones add it") == decode(data)


def test_a_photograph_is_read_by_it_and_a_small_picture_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    whole = eighth.decode

    def counted(data: memoryview) -> tuple[int, int, bytes] | None:
        read.append(len(data))
        return whole(data) if whole else None

    monkeypatch.setattr(eighth, "decode", counted)
    photo = pictures.photo(tmp_path / "photo.jpg", (2700, 2500))
    small = pictures.photo(tmp_path / "small.jpg", (512, 384))
    spec = PixelSpec(260, 260)
    compiled = media.read(photo, spec)
    media.read(small, spec)
    assert read == [photo.stat().st_size]
    monkeypatch.setattr(eighth, "decode", None)
    by_pillow = media.read(photo, spec)
    assert (compiled.pixels == by_pillow.pixels).all()
    assert compiled.facts == by_pillow.facts


def test_a_picture_that_another_decoder_would_see_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    image = opened(jpeg(pictures.scene((64, 48))))
    monkeypatch.setattr(eighth, "decode", lambda data: (8, 7, bytes(3 * 8 * 7)))
    assert eighth.eighth(image, io.BytesIO(jpeg(pictures.scene((64, 48))))) is None
