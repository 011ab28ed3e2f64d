"""Runs of `index` that are killed, interrupted, or stopped by a full disk, again and again, lose nothing.

What counts is the end: an index that was cut off at many moments holds what one holds that never was.
"""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmsearch.store.paths import from_columns
from tests.colours import COLOURS, swatch
from tests.conftest import ROOT, as_from_a_terminal
from tests.test_robust import small_disk

KILLS = 12  # benchmarks/endurance.py makes many
SCRIPT = """
import sys
from mmsearch.errors import Error
from mmsearch.index import Index
from mmsearch.planning import IngestOptions
from tests.colours import ColourEncoder

options = IngestOptions(captions=(sys.argv[3],), decode_timeout_s=20.0)
try:
    report = Index(sys.argv[1], encoder=ColourEncoder()).add(sys.argv[2], options=options)
    sys.exit(1 if report.missing else 0)
except Error as error:
    sys.exit(str(error))
"""


def fill(folder: Path) -> None:
    """Pictures, some with side-cars, some in a table; texts; a broken file."""
    names = list(COLOURS)
    for part in ("a", "b/deep"):
        (folder / part).mkdir(parents=True)
        for number in range(24):
            stem = folder / part / f"{number}"
            swatch(names[number % 6], number + 100 * len(part), (40, 32)).save(stem.with_suffix(".png"))
            if number % 2:
                stem.with_suffix(".txt").write_text(f"a {names[number % 6]} thing, number {number} of {part}")
            if number % 8 == 1:  # of which the side-car is too
                swatch(names[number % 6], number, (48, 32)).save(stem.with_suffix(".jpg"))
        (folder / part / "book.md").write_text("\n\n".join(f"The {name} chapter. " * 30 for name in names))
    (folder / "broken.jpg").write_bytes(b"broken")
    rows = [f"photos/a/{number}.png,{names[number % 6]} by table {number}" for number in range(0, 24, 3)]
    (folder.parent / "captions.csv").write_text("path,text\n" + "\n".join(rows) + "\n")


def change(folder: Path) -> None:
    """What a user does between two runs."""
    (folder / "b").rename(folder / "c")
    (folder / "a" / "0.png").unlink()
    (folder / "a" / "1.txt").write_text("another caption")
    (folder / "a" / "3.txt").unlink()
    (folder / "a" / "2.txt").write_text("a first caption")
    shutil.copy(folder / "a" / "5.png", folder / "a" / "copy.png")
    (folder / "a" / "7.png").rename(folder / "a" / "seven.png")
    (folder / "a" / "7.txt").rename(folder / "a" / "seven.txt")
    swatch("yellow", 900, (44, 30)).save(folder / "a" / "4.png")
    (folder / "a" / "book.md").write_text("short now")
    with (folder.parent / "captions.csv").open("a") as table:
        table.write("photos/a/seven.png,seven by table\nphotos/a/3.png,three by table\n")


def holds(index: Path) -> dict[str, Any]:
    """All that an index holds, whatever the order in which it came."""
    with contextlib.closing(sqlite3.connect(index / "index.db")) as database:
        items = database.execute(
            """SELECT f.path, f.path_bytes, f.kind, i.kind, i.text, i.line, i.width, v.vector, pf.path, k.words, k.place
               FROM items i JOIN files f ON f.id = i.file_id JOIN vectors v ON v.item_id = i.id
               LEFT JOIN items p ON p.id = i.caption_of LEFT JOIN files pf ON pf.id = p.file_id
               LEFT JOIN keywords k ON k.rowid = i.id"""
        ).fetchall()
        files = database.execute(
            "SELECT path, path_bytes, kind, size_bytes, modified_ns IS NULL, skipped, tries, away FROM files"
        ).fetchall()
        roots = database.execute("SELECT path, options FROM roots").fetchall()
        lost = database.execute("SELECT count(*) FROM items WHERE id NOT IN (SELECT item_id FROM vectors)").fetchone()[
            0
        ]
    shown = [
        (from_columns(path, raw), *kinds, sorted(words.split("\n")) if words else words, place)
        for path, raw, *kinds, words, place in items
    ]
    return {"items": sorted(shown, key=repr), "files": sorted(files, key=repr), "roots": sorted(roots), "lost": lost}


def command(index: Path, photos: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(index), str(photos), str(photos.parent / "captions.csv")]


def run(index: Path, photos: Path, after_s: float | None = None, how: signal.Signals = signal.SIGKILL) -> bool:
    """Whether a run came to its end."""
    process = subprocess.Popen(
        command(index, photos), cwd=ROOT, preexec_fn=as_from_a_terminal, stderr=subprocess.PIPE, text=True
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert process.communicate(timeout=60 if after_s is None else after_s)[1] == ""
        return process.returncode == 0
    process.send_signal(how)
    process.communicate(timeout=60)
    return False


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    fill(tmp_path / "photos")
    return tmp_path / "photos"


def restore(photos: Path, kept: Path, table: str) -> None:
    shutil.rmtree(photos)
    shutil.copytree(kept, photos)
    (photos.parent / "captions.csv").write_text(table)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_index_that_was_killed_at_many_moments_is_one_that_never_was(
    tmp_path: Path, photos: Path, how: signal.Signals
) -> None:
    kept, table = tmp_path / "kept", (tmp_path / "captions.csv").read_text()
    shutil.copytree(photos, kept)
    wanted = {}
    started = time.monotonic()
    assert run(tmp_path / "never", photos)
    whole_s = time.monotonic() - started
    wanted["first"] = holds(tmp_path / "never")
    change(photos)
    assert run(tmp_path / "never", photos)
    wanted["changed"] = holds(tmp_path / "never")
    draw = random.Random(f"{how}")
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        index = tmp_path / f"index {rounds}"
        restore(photos, kept, table)
        for phase in ("first", "changed"):
            if phase == "changed":
                change(photos)
            for _ in range(6):
                if run(index, photos, draw.uniform(0.2, 1.0) * whole_s, how):
                    break
                kills += 1
            assert run(index, photos)
            assert holds(index) == wanted[phase], f"{phase}, round {rounds}, after {kills} kills"
        shutil.rmtree(index)


@pytest.mark.slow
def test_an_index_whose_disk_was_full_at_many_moments_is_one_that_never_was(tmp_path: Path, photos: Path) -> None:
    assert run(tmp_path / "never", photos)
    wanted = holds(tmp_path / "never")
    with small_disk(tmp_path / "disk", "320k") as disk:
        full = 0
        for kilobytes in range(320, 20_000, 320):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)
            done = subprocess.run(command(disk / "index", photos), cwd=ROOT, capture_output=True, text=True, timeout=60)
            if done.returncode == 0:
                break
            full += 1
            assert "full" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert full > 3
        assert holds(disk / "index") == wanted
