"""The hard days: kills, full disks, two writers, damaged files, hostile names. Nothing is lost in any of them."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsearch import __version__
from mmsearch.errors import IndexDamagedError, IndexLockedError, IndexTooNewError, IndexWriteError
from mmsearch.index import Index
from mmsearch.planning import IngestOptions
from tests import pictures
from tests.colours import COLOURS, ColourEncoder, plain, swatch
from tests.conftest import ROOT

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of one colour each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in COLOURS:
        plain(colour).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def index(tmp_path: Path, folder: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        yield index


def reopened(index: Index) -> Index:
    index.close()
    return Index(index.folder, encoder=ColourEncoder())


# Writers and readers


def test_a_second_writer_is_told_who_holds_the_lock(index: Index, folder: Path) -> None:
    with holding(index.folder) as holder, pytest.raises(IndexLockedError, match=f"process {holder.pid} since 20"):
        index.add(folder)


def test_a_second_writer_waits_if_asked_to(index: Index, folder: Path) -> None:
    with holding(index.folder, seconds=1.0):
        started = time.monotonic()
        index.add(folder, options=IngestOptions(wait_s=None))
        assert time.monotonic() - started > 0.5


def test_the_lock_of_a_killed_writer_is_free(index: Index, folder: Path) -> None:
    with holding(index.folder) as holder:
        holder.kill()
        holder.wait()
        assert index.add(folder).unchanged == 6


def test_readers_go_on_while_someone_writes(index: Index) -> None:
    with holding(index.folder, transaction=True):
        started = time.monotonic()
        assert len(index.search("red")) == 6
        with Index(index.folder, encoder=ColourEncoder()) as another:
            assert another.status().images == 6
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("delay_s", [0.4, 0.8, 1.3])
def test_a_killed_run_leaves_nothing_half_there_and_goes_on(tmp_path: Path, delay_s: float) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for seed in range(150):
        swatch("red", seed, (200, 150)).save(many / f"{seed}.png")
    script = (
        "import sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "Index(sys.argv[1], encoder=ColourEncoder()).add(sys.argv[2])"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "index"), str(many)], cwd=ROOT)
    time.sleep(delay_s)
    run.kill()
    run.wait()
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        if index.exists:
            assert whole(index) == index.status().images
            kept = index.status().images
            assert len(index.search("red", k=1000)) == kept
        index.add(many)
        assert whole(index) == index.status().images == 150
        assert len(index.search("red", k=1000)) == 150


# Damage


def test_an_index_of_a_newer_version_is_left_alone(index: Index, folder: Path) -> None:
    index.close()
    with contextlib.closing(sqlite3.connect(index.folder / "index.db")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexTooNewError, match="Upgrade mmsearch"):
        Index(index.folder, encoder=ColourEncoder())


@pytest.mark.parametrize("damage", ["rubbish", "cut", "holes"])
def test_a_damaged_database_is_said_to_be_damaged(index: Index, damage: str) -> None:
    index.close()
    database = index.folder / "index.db"
    data = bytearray(database.read_bytes())
    if damage == "rubbish":
        data = bytearray(b"rubbish " * 1000)
    elif damage == "cut":
        del data[len(data) // 3 :]
    else:
        for page in range(2, len(data) // 4096):
            data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    database.write_bytes(data)
    with (
        pytest.raises(IndexDamagedError, match=r"index\.db is damaged"),
        Index(index.folder, encoder=ColourEncoder()) as again,
    ):
        again.status()
        again.search("red")


@pytest.mark.parametrize("damage", ["missing", "cut", "rubbish", "zeros", "other vectors"])
def test_a_damaged_vector_index_changes_no_answer_and_is_built_again(index: Index, folder: Path, damage: str) -> None:
    before = [(hit.id, hit.score) for hit in index.search("red and yellow")]
    index.close()
    (file,) = (index.folder / "vectors").glob("image-*.faiss")
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        codes = len(data) // 2
        file.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "rubbish": b"\xa5" * len(data),
                "zeros": bytes(len(data)),
                "other vectors": data[:codes]
                + bytes(byte ^ 0x21 for byte in data[codes : codes + 40])
                + data[codes + 40 :],
            }[damage]
        )
    again = reopened(index)
    assert [(hit.id, hit.score) for hit in again.search("red and yellow")] == before
    again.add(folder)
    assert [(hit.id, hit.score) for hit in reopened(again).search("red and yellow")] == before


# Disks


@linux_only
def test_a_full_disk_is_said_and_costs_nothing_that_was_there(tmp_path: Path, folder: Path) -> None:
    with small_disk(tmp_path / "disk", "1200k") as disk, Index(disk / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        more = tmp_path / "more"
        more.mkdir()
        for seed in range(300):
            swatch("red", seed, (16, 16)).save(more / f"{'long name ' * 20}{seed}.png")
        with pytest.raises(IndexWriteError, match="full"):
            index.add(more)
        assert whole(index) == index.status().images >= 6
        assert {hit.path for hit in index.search("green", k=1)} == {str(folder / "green.png")}


@linux_only
def test_an_index_on_a_read_only_disk_is_searched_and_not_written(tmp_path: Path, folder: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        with Index(disk / "index", encoder=ColourEncoder()) as index:
            index.add(folder)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with Index(disk / "index", encoder=ColourEncoder()) as index:
            assert index.search("green", k=1)[0].path == str(folder / "green.png")
            with pytest.raises(IndexWriteError, match="cannot be"):
                index.add(folder)


@linux_only
def test_a_folder_without_permission_is_skipped_and_its_items_stay(tmp_path: Path, folder: Path) -> None:
    (folder / "locked").mkdir()
    plain("red").save(folder / "locked" / "inside.png")
    plain("red").save(folder / "secret.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
    (folder / "locked").chmod(0)
    (folder / "secret.png").chmod(0)
    os.utime(folder / "secret.png")
    report = as_ordinary_user(
        "import sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "index = Index(sys.argv[1], encoder=ColourEncoder()); report = index.add(sys.argv[2])\n"
        "skipped = [[skip.path, skip.reason] for skip in report.skipped]\n"
        "import json; print(json.dumps([report.removed, index.status().images, skipped]))",
        str(tmp_path / "index"),
        str(folder),
    )
    removed, images, skipped = json.loads(report)
    assert (removed, images) == (0, 8)
    assert sorted((Path(path).name, reason) for path, reason in skipped) == [
        ("locked", "permission denied"),
        ("secret.png", "permission denied"),
    ]


# Hostile files and names


def test_a_folder_of_broken_files_stops_nothing(tmp_path: Path, folder: Path) -> None:
    whole_jpeg = pictures.photo(tmp_path / "whole.jpg")
    pictures.broken_cut_short(folder / "cut.jpg", whole_jpeg)
    pictures.broken_empty(folder / "empty.png")
    pictures.broken_text(folder / "text.jpg")
    pictures.png_bomb(folder / "bomb.png")
    pictures.gif_with_many_frames(folder / "frames.gif", 50_000)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "renamed.jpg").write_bytes((folder / "red.png").read_bytes())
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        report = index.add(folder)
        assert {Path(skip.path).name for skip in report.skipped} == {"cut.jpg", "empty.png", "text.jpg", "bomb.png"}
        assert all(skip.reason for skip in report.skipped)
        assert report.added == 6 + 2
        assert index.status().images == 8
        assert len(index.status().skipped) == 4


@linux_only
@pytest.mark.parametrize(
    "name",
    [
        b"new\nline.png",
        b"'single' \"double\".png",
        b"-rf.png",
        "🦊 fox.png".encode(),
        b"caf\xe9.png",
        b"\xff\xfe\x80.png",
        b"a\x1b[31mred.png",
        b" .png",
    ],
)
def test_a_file_name_is_kept_exactly_found_and_removed(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    path = os.path.join(os.fsencode(folder), name)
    plain("red").save(folder / "plain.png")
    (folder / "plain.png").rename(os.fsdecode(path))
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        (hit,) = index.search("red")
        assert os.fsencode(hit.path or "") == path
        assert index.add(folder).unchanged == 1
        assert index.search("red", under=folder) == [hit]
        assert index.remove(os.fsdecode(path)) == 1
        assert index.search("red") == []
    assert os.path.exists(path)


@linux_only
def test_names_that_differ_only_in_undecodable_bytes_are_two_files(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    plain("red").save(folder / "a.png")
    plain("blue").save(folder / "b.png")
    (folder / "a.png").rename(os.fsdecode(os.path.join(os.fsencode(folder), b"x\xe9.png")))
    (folder / "b.png").rename(folder / "x\\udce9.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        assert index.status().images == 2
        assert index.search("blue", k=1)[0].path == str(folder / "x\\udce9.png")


def test_a_picture_that_crashes_or_hangs_the_decoder_costs_only_itself(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, time\n"
        "from PIL import PngImagePlugin\n"
        "load = PngImagePlugin.PngImageFile.load_prepare\n"
        "def prepare(self):\n"
        "    if self.size == (13, 13): os.abort()\n"
        "    if self.size == (17, 17): time.sleep(1000)\n"
        "    return load(self)\n"
        "PngImagePlugin.PngImageFile.load_prepare = prepare\n"
    )
    plain("red", (13, 13)).save(folder / "aborts.png")
    plain("red", (17, 17)).save(folder / "sleeps.png")
    script = (
        "import json, sys; from mmsearch.index import Index; from mmsearch.planning import IngestOptions\n"
        "from tests.colours import ColourEncoder\n"
        "options = IngestOptions(decode_timeout_s=3.0)\n"
        "report = Index(sys.argv[1], encoder=ColourEncoder()).add(sys.argv[2], options=options)\n"
        "print(json.dumps([report.added, {s.path: s.reason for s in report.skipped}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index"), str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    added, skipped = json.loads(run.stdout)
    assert added == 6
    assert "crash" in skipped[str(folder / "aborts.png")]
    assert "3 s" in skipped[str(folder / "sleeps.png")]
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        assert index.status().images == 6


def test_pictures_are_not_touched(tmp_path: Path, folder: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        index.search(folder / "red.png")
        index.remove(folder)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_other_tools_may_open_the_database(index: Index) -> None:
    with contextlib.closing(sqlite3.connect(index.folder / "index.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT count(*) FROM files JOIN items ON items.file_id = files.id").fetchone() == (6,)
    assert __version__


def whole(index: Index) -> int:
    """The number of pictures that are there with file, vector and keywords: that of all, if none is half there."""
    with contextlib.closing(sqlite3.connect(index.folder / "index.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(
            database.execute(
                """SELECT count(*) FROM items i JOIN files f ON f.id = i.file_id JOIN vectors v ON v.item_id = i.id
                   JOIN keywords k ON k.rowid = i.id WHERE f.skipped IS NULL AND length(v.vector) = 26"""
            ).fetchone()[0]
        )


@contextlib.contextmanager
def holding(folder: Path, *, seconds: float = 60.0, transaction: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the write lock."""
    script = (
        "import sys, time; from pathlib import Path; from mmsearch.store.metadata import Store\n"
        "with Store(Path(sys.argv[1])).write() as writer:\n"
        "    if sys.argv[3] == 'True': writer.connection.execute('BEGIN IMMEDIATE'); writer.set('x', 'y')\n"
        "    print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), str(seconds), str(transaction)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of a size; needs the right to mount."""
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def as_ordinary_user(script: str, *arguments: str) -> str:
    """Run a script without the right to read what its mode forbids, which root otherwise has."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    prefix = drop if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
