"""Nothing leaves the machine unasked, and nothing is written outside an index, the cache and the data folder."""

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmsearch.cli import COMMANDS
from tests import pictures
from tests.conftest import ROOT
from tests.network import Traffic, can_isolate, run_isolated

pytestmark = pytest.mark.skipif(not can_isolate(), reason="no network namespace can be made here")

SERVER = """
import json, signal, subprocess, sys, time, urllib.request

server = subprocess.Popen([sys.executable, "-m", "mmsearch", "serve", "-i", "./photos", "--port", "8123"])


def answer(path, body=None):
    request = urllib.request.Request("http://127.0.0.1:8123" + path, body)
    return urllib.request.urlopen(request, timeout=60).read()


try:
    for _ in range(600):
        try:
            if json.loads(answer("/api/status"))["model_state"] != "loading":
                break
        except OSError:
            time.sleep(0.1)
    answer("/")
    answer("/api/search?q=a+red+ball")
    answer("/api/map", b"")
    while json.loads(answer("/api/map"))["state"] == "running":
        time.sleep(0.1)
    answer("/api/map/points")
    server.send_signal(signal.SIGINT)
    sys.exit(0 if server.wait(30) in (0, 130) else 1)
finally:
    server.kill()
"""

LIBRARY = """
import mmsearch

with mmsearch.Index("photos") as index:
    index.search("a red ball")
    index.map()
encoder = mmsearch.load_encoder("lite")
encoder.encode_texts(["a cat"])
"""


class Home:
    """An empty home with an image folder, pairs and an index, and commands that run in it as a new user's would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "tmp"
        self.work = folder / "work"
        for path in (folder / "home", self.scratch, self.work):
            path.mkdir()
        images = self.work / "photos-folder"
        images.mkdir()
        with open(self.work / "pairs.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("file", "caption"))
            for number in range(24):
                pictures.scene((40, 40), number).save(images / f"{number}.png")
                rows.writerow((f"photos-folder/{number}.png", f"image number {number}"))
        self.made = self._files()

    def run(self, *command: str) -> Traffic:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.scratch),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return run_isolated([sys.executable, *command], environment, self.work, 300)

    def new_files(self) -> set[str]:
        """Files that came to be since the last call, but for those of indexes, the cache and the data folder."""
        before, self.made = self.made, self._files()
        ours = ("home/.cache/mmsearch/", "home/.local/share/mmsearch/", "work/photos/", "work/made/")
        return {file for file in self.made - before if not file.startswith(ours)}

    def _files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("privacy"))
    check(home, ["-m", "mmsearch", "index", "photos-folder", "-i", "./photos", "--model", "lite"])
    return home


def check(home: Home, command: Sequence[str]) -> None:
    seen = home.run(*command)
    assert seen.returncode == 0, seen.output
    assert (seen.lookups, seen.packets) == ((), 0)
    assert home.new_files() == set()


def test_the_network_of_these_tests_sees_a_lookup_and_a_connection(home: Home) -> None:
    code = "import socket; socket.create_connection((socket.gethostbyname('example.org'), 443), timeout=1)"
    seen = home.run("-c", code)
    assert seen.returncode == 1
    assert "example.org" in seen.lookups
    assert seen.packets > 0


COMMON = (
    "index -i ./photos",
    "search a red ball -i ./photos",
    "search photos-folder/1.png -i ./photos",
    "search a red ball --html made/a.html -i ./photos",
    "lookup photos-folder/1.png -i ./photos",
    "status -i ./photos",
    "duplicates -i ./photos",
    "describe photos-folder/1.png -i ./photos",
    "models",
    "heads list -i ./photos",
    "feedback list -i ./photos",
    "remove photos-folder/23.png -i ./photos",
)
RARE = (
    "match photos-folder/1.png a red ball -i ./photos",
    "classify photos-folder/1.png --labels ball,cat -i ./photos",
    "index photos-folder --captions pairs.csv -i ./photos",
    "pairs check pairs.csv -i ./photos",
    "pairs prepare pairs.csv -i ./photos --into made/pairs",
    "train heads pairs.csv -i ./photos",
    "heads off -i ./photos",
    "feedback add ball --like mm-1 -i ./photos",
    "evaluate pairs.csv -i ./photos --plots made/plots --worst made/worst.html",
    "train encoder pairs.csv -o made/encoder --image-tower resnet10t --text-tower bilstm --steps 2 --batch 4 "
    "--set image_size=32 --set text_width=16 --set dim=16 --set interval=2",
    "index photos-folder --model made/encoder -i made/second",
)


@pytest.mark.parametrize("line", COMMON)
def test_no_command_sends_or_leaves_anything(home: Home, line: str) -> None:
    (home.work / "made").mkdir(exist_ok=True)
    check(home, ["-m", "mmsearch", *line.split()])


@pytest.mark.slow
@pytest.mark.parametrize("line", RARE)
def test_no_rare_command_sends_or_leaves_anything(home: Home, line: str) -> None:
    (home.work / "made").mkdir(exist_ok=True)
    check(home, ["-m", "mmsearch", *line.split()])


def test_every_command_is_among_these() -> None:
    tried = {line.split()[0] for line in (*COMMON, *RARE)}
    assert set(COMMANDS) == tried | {"serve"}


def test_the_server_sends_and_leaves_nothing(home: Home) -> None:
    check(home, ["-c", SERVER])


def test_the_library_sends_and_leaves_nothing(home: Home) -> None:
    check(home, ["-c", LIBRARY])


def test_a_first_index_asks_for_the_recommended_model_alone(home: Home) -> None:
    seen = home.run("-m", "mmsearch", "index", "photos-folder", "-i", "made/first")
    assert seen.returncode == 0, seen.output
    assert set(seen.lookups) == {"huggingface.co"}
    assert home.new_files() == set()


def test_a_first_index_asks_nobody_where_the_hub_is_off(home: Home) -> None:
    code = "import os, runpy, sys; os.environ['HF_HUB_OFFLINE'] = '1'; sys.argv[1:] = %r; runpy.run_module('mmsearch')"
    check(home, ["-c", code % ["index", "photos-folder", "-i", "made/offline"]])
