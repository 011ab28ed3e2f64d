"""`python -m benchmarks.corpus FOLDER` on a folder of everything that can lie in one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pictures

ROOT = Path(__file__).parent.parent


def _run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.corpus", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow  # four programs start
@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.skipif(os.name == "nt", reason="pipes and names of bytes are POSIX's")
def test_a_folder_of_anything_is_compared_file_by_file(tmp_path: Path) -> None:
    (folder := tmp_path / "files").mkdir()
    block = pictures.exif(
        orientation=6, taken_at="2019:07:14 10:20:30", make="Leica", model="M10", latitude_deg=48.5, longitude_deg=2.5
    )
    for seed, name in enumerate((b"-good\n.jpg", b"caf\xe9.jpg", b"%d;$(id) 'a\".jpg")):
        pictures.photo(folder / os.fsdecode(name), (64, 48), seed, exif=block)
    pictures.photo(folder / "plain.jpg", (64, 48), 7)
    other = pictures.exif(taken_at="2019-07-14 10:20:30")  # read by mmsearch; not the standard's form
    pictures.photo(folder / "other.jpg", (64, 48), 8, exif=other)
    pictures.broken_text(folder / "text.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "huge.png", "wb") as file:
        file.truncate(2**40)
    (folder / "words.txt").write_text("words")
    ran = _run(folder, "--json", str(tmp_path / "out.json"), "--jobs", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("7 files named as images, 5 read, 2 refused; 2 other files.\n")
    assert r"? 2019-07-14 10:20:30" in ran.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["refused"]) == {str(folder / "text.jpg"), str(folder / "huge.png")}
    assert [(row["field"], Path(row["path"]).name) for row in result["disagreements"]] == [("date", "other.jpg")]
    counts = {(row["field"], row["by"]): (row["compared"], row["agreed"]) for row in result["counts"]}
    assert counts["pixels", "Pillow"] == (7, 7)
    assert counts["size", "Pillow"] == counts["turn", "Pillow"] == counts["size", "exiftool"] == (5, 5)
    assert counts["orientation", "exiftool"] == counts["place", "exiftool"] == counts["camera", "exiftool"] == (3, 3)
    assert counts["date", "exiftool"] == (4, 3)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    ran = _run(tmp_path / "none")
    assert ran.returncode == 2
    assert "does not exist" in ran.stderr
