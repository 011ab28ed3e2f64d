"""A picture that crashes its decoder costs an error message, whichever command reads it."""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Run, command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
Found = TypeVar("Found")
SAYS = "crashes the decoder (signal SIGSEGV)"


@pytest.fixture(scope="module")
def slow_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that takes a second to decode, in whatever size it is wanted."""
    path = tmp_path_factory.mktemp("slow") / "noise.jp2"
    noise = np.random.default_rng(0).integers(0, 255, (2600, 2600), np.uint8)
    Image.fromarray(noise).save(path, num_resolutions=1)
    return path


@pytest.fixture
def picture(mmsearch: Run, home: Path, slow_picture: Path) -> Path:
    """One that takes a while to decode, beside an index with two others and captions."""
    for name, colour in (("red", (200, 20, 20)), ("blue", (20, 20, 200))):
        Image.new("RGB", (64, 48), colour).save(home / f"{name}.png")
        (home / f"{name}.txt").write_text(f"a {name} square")
    mmsearch("index", "red.png", "blue.png", "red.txt", "--model", "lite", "-q")
    os.link(slow_picture, home / "noise.jp2")
    return home / "noise.jp2"


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["search", "./noise.jp2"], False),
        (["match", "-", "a red square", "--model", "lite"], True),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (["search", "a cat + ./noise.jp2 - people"], False),
                (["search", "-"], True),
                (["lookup", "./noise.jp2"], False),
                (["match", "./noise.jp2", "a red square"], False),
                (["classify", "./noise.jp2", "--labels", "cat,dog"], False),
                (["describe", "./noise.jp2"], False),
                (["describe", "./noise.jp2", "--model", "lite"], False),
            )
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_asks_about_a_picture_outlives_its_decoder(
    picture: Path, home: Path, arguments: list[str], stdin: bool
) -> None:
    done = _crashed(command(*arguments), home, picture if stdin else None)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and SAYS in done.stderr, done.stderr
    assert f"{'The picture' if stdin else 'noise.jp2'} cannot be read: it crashes" in done.stderr


def test_a_training_on_a_tar_leaves_the_picture_out(picture: Path, home: Path) -> None:
    with tarfile.open(home / "pairs.tar", "w") as tar:
        for name in ("red.png", "red.txt", "blue.png", "blue.txt"):
            tar.add(home / name, name)
        tar.add(picture, "noise.jp2")
        tar.add(home / "red.txt", "noise.txt")
    done = _crashed(command("pairs", "check", "pairs.tar"), home, None)
    assert done.returncode == 0 and SAYS in done.stdout and "Traceback" not in done.stderr


def test_a_library_user_goes_on_after_it(picture: Path, home: Path) -> None:
    script = (
        "import mmsearch, sys\n"
        "with mmsearch.Index(sys.argv[1]) as index:\n"
        "    for ask in (index.search, index.add_images, index.search):\n"
        "        try:\n"
        "            print(len(ask([open('noise.jp2', 'rb').read()] if ask == index.add_images else './noise.jp2')))\n"
        "        except mmsearch.Error as error:\n"
        "            print(type(error).__name__, error)\n"
    )
    arguments = [sys.executable, "-c", script, str(home / "data" / "mmsearch" / "indexes" / "default")]
    done = _crashed(arguments, home, None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"MediaError noise.jp2 cannot be read: it {SAYS}.", "1", "2"]


def _crashed(arguments: list[str | bytes], folder: Path, picture: Path | None) -> "subprocess.CompletedProcess[str]":
    """What a program does whose decoder gets SIGSEGV in the middle of a picture. picture: given on stdin."""
    with picture.open("rb") if picture else open(os.devnull, "rb") as stdin:
        run = subprocess.Popen(
            arguments, cwd=folder, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    decoder = _wait(lambda: _decoder_of(run.pid))
    _wait(lambda: os.readlink(f"/proc/{decoder}/fd/0") == os.devnull)  # it says now that it is ready
    before = _processor_s(decoder)
    _wait(lambda: _processor_s(decoder) > before + 0.15)  # it waits for a picture without using the processor
    os.kill(decoder, signal.SIGSEGV)
    stdout, stderr = run.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, run.returncode, stdout, stderr)


def _decoder_of(parent: int) -> int | None:
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"mmsearch.decoding" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def _processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _wait(condition: Callable[[], Found]) -> Found:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if found := condition():
                return found
        time.sleep(0.005)
    raise AssertionError("it did not come to that")
