"""Why files were left out, and for how long that is remembered; and what a run that was cut off leaves to the next."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsearch.index import Index
from mmsearch.ingest import TRIES, Progress
from mmsearch.planning import IngestOptions, Report
from tests.colours import ColourEncoder, plain, swatch
from tests.conftest import ROOT, Run
from tests.test_decoding import children, eventually

posix_only = pytest.mark.skipif(os.name == "nt", reason="signals that Windows does not have")

# Imported by every new Python that finds it on its path: the only thing that is changed is Pillow, and only in workers.
# What a worker does with a picture is said by a file beside it that is named for its size.
DECODER = """
import os, sys, time
if "mmsearch.decoding" in sys.orig_argv:
    from PIL import PngImagePlugin
    load = PngImagePlugin.PngImageFile.load_prepare
    def prepare(self):
        order = os.path.join(os.environ["ORDERS"], "%d" % self.size[0])
        if os.path.exists(order):
            with open(order) as file:
                exec(file.read())
        return load(self)
    PngImagePlugin.PngImageFile.load_prepare = prepare
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        yield index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """red.png of 70 x 48 pixels, green.png of 71, blue.png of 72."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        plain(colour, (70 + number, 48)).save(folder / f"{colour}.png")
    return folder


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of orders to decoders: a file named for a picture's width, with the Python that it runs."""
    (tmp_path / "python").mkdir()
    (tmp_path / "orders").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(DECODER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    monkeypatch.setenv("ORDERS", str(tmp_path / "orders"))
    return tmp_path / "orders"


def reasons(report: Report) -> dict[str, str]:
    return {Path(skip.path).name: skip.reason for skip in report.skipped}


def as_of(index: Index, reader: str | None) -> None:
    """Have what the index says of skipped files be what another version of the readers said."""
    index.close()
    with contextlib.closing(sqlite3.connect(index.folder / "index.db", isolation_level=None)) as database:
        database.execute("UPDATE files SET reader = ? WHERE reader IS NOT NULL", (reader,))


# Reasons


MACHINES = {
    "os.kill(os.getpid(), 9)": "ended from outside (signal SIGKILL)",
    "os.kill(os.getpid(), 15)": "ended from outside (signal SIGTERM)",
    "raise MemoryError": "needs more memory",
    "raise PermissionError(13, 'Permission denied')": "permission denied",
    "raise OSError(5, 'Input/output error')": "cannot be read (Input/output error)",
    "raise OSError(110, 'Connection timed out')": "cannot be read (Connection timed out)",
    "raise OSError(107, 'Transport endpoint is not connected')": "cannot be read (Transport endpoint",
}


@posix_only
def test_a_reason_that_lies_in_the_machine_is_tried_again_in_each_run(index: Index, photos: Path, orders: Path) -> None:
    for order, reason in MACHINES.items():
        (orders / "70").write_text(order)
        assert reason in reasons(index.add(photos))["red.png"]
        assert reason in (index.status().skipped[0].skipped or "")
        assert index.status().images == 2
    (orders / "70").unlink()
    assert index.add(photos).skipped == []
    assert (index.status().images, index.status().skipped) == (3, ())


@posix_only
@pytest.mark.parametrize("order", ["os.abort()", "os.kill(os.getpid(), 11)", "os._exit(3)", "time.sleep(60)"])
def test_what_breaks_its_decoder_is_tried_in_a_few_runs_only(
    index: Index, photos: Path, orders: Path, order: str
) -> None:
    (orders / "70").write_text(f"open({str(orders / 'log')!r}, 'a').write('x'); {order}")
    options = IngestOptions(decode_timeout_s=0.7)
    for _ in range(TRIES + 2):
        assert list(reasons(index.add(photos, options=options))) == ["red.png"]
    assert len((orders / "log").read_text()) == TRIES
    (orders / "70").unlink()
    assert list(reasons(index.add(photos))) == ["red.png"]
    assert index.add(photos, options=IngestOptions(retry=True)).skipped == []
    assert index.status().images == 3


@posix_only
def test_a_good_picture_stays_while_a_new_version_of_it_breaks_its_decoder(
    index: Index, photos: Path, orders: Path
) -> None:
    index.add(photos)
    plain("yellow", (80, 48)).save(photos / "red.png")
    (orders / "80").write_text("os.abort()")
    for number in range(1, TRIES + 1):
        index.add(photos)
        assert index.status().images == (3 if number < TRIES else 2)


@pytest.mark.parametrize("broken", ["x.jpg", "x.txt"])
def test_a_reason_that_lies_in_the_file_holds_for_this_version_of_the_readers(
    index: Index, photos: Path, broken: str
) -> None:
    (photos / broken).write_bytes(b"\xff\xd8\xff broken \0\0")
    reason = reasons(index.add(photos))[broken]
    facts = (photos / broken).stat()
    # The file is good now, and looks as before: who reads it, knows
    good = b"a text"
    if broken == "x.jpg":
        plain("white", (8, 8)).save(photos / "good.jpg", quality=1)
        good = (photos / "good.jpg").read_bytes()
        (photos / "good.jpg").unlink()
    (photos / broken).write_bytes(good)
    index_row = (facts.st_atime_ns, facts.st_mtime_ns)
    os.utime(photos / broken, ns=index_row)
    with contextlib.closing(sqlite3.connect(index.folder / "index.db", isolation_level=None)) as database:
        database.execute("UPDATE files SET size_bytes = ? WHERE path = ?", (len(good), str(photos / broken)))
    assert reasons(index.add(photos)) == {broken: reason}
    for other in ("mmsearch 0.0.9, Pillow 1.0", None):  # the last: an index that was made before versions were kept
        as_of(index, other)
        report = index.add(photos)
        assert report.skipped == []
        (photos / broken).write_bytes(b"\xff\xd8\xff broken \0\0")
        assert list(reasons(index.add(photos))) == [broken]
        (photos / broken).write_bytes(good)
        os.utime(photos / broken, ns=index_row)
        with contextlib.closing(sqlite3.connect(index.folder / "index.db", isolation_level=None)) as database:
            database.execute(
                "UPDATE files SET size_bytes = ?, modified_ns = ? WHERE path = ?",
                (len(good), index_row[1], str(photos / broken)),
            )
    assert index.add(photos, options=IngestOptions(retry=True)).skipped == []


def test_a_missing_package_is_no_fault_of_the_file(index: Index, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    from tests import pictures

    pictures.heic(photos / "x.heic", plain("white"))
    (tmp_path / "without" / "pi_heif").mkdir(parents=True)
    (tmp_path / "without" / "pi_heif" / "__init__.py").write_text("raise ImportError('libheif.so.1 is missing')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "without"))
        assert "pi-heif" in reasons(index.add(photos))["x.heic"]
    assert index.add(photos).skipped == []


@posix_only
def test_time_in_which_the_process_stood_still_does_not_count(tmp_path: Path, photos: Path, orders: Path) -> None:
    for width in (70, 71, 72):
        (orders / str(width)).write_text("time.sleep(0.6)")
    script = (
        "import sys; from mmsearch.decoding import DecodePool, Skip\n"
        "from mmsearch.encoders.preprocess import PixelSpec\n"
        "with DecodePool(PixelSpec(8, 8), workers=1, timeout_s=1.5) as pool:\n"
        "    print('begun', flush=True)\n"
        "    print([made for _, made in pool.decode(sys.argv[1:]) if isinstance(made, Skip)])"
    )
    paths = sorted(map(str, photos.iterdir()))
    path = os.pathsep.join((os.environ["PYTHONPATH"], str(Path(__file__).parents[1])))
    run = subprocess.Popen(
        [sys.executable, "-c", script, *paths],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stdout.readline() == "begun\n"
    assert eventually(lambda: children(run.pid))
    time.sleep(0.8)
    run.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    run.send_signal(signal.SIGCONT)
    assert run.communicate(timeout=30)[0] == "[]\n"


# A run that is cut off


def test_captions_are_read_by_the_next_run_where_one_was_cut_off_before_them(index: Index, photos: Path) -> None:
    plain("red", (60, 48)).save(photos / "red.jpg", quality=90)
    index.add(photos / "red.jpg")  # known
    (photos / "red.txt").write_text("a bicycle")

    def stop(progress: Progress) -> None:
        if progress.done == progress.total:
            raise KeyboardInterrupt

    index.add(photos / "red.jpg")
    with pytest.raises(KeyboardInterrupt):
        index.add(photos, progress=stop)
    assert index.status().images == 4
    report = index.add()
    assert (report.captions, index.status().captions) == (1, 2)
    assert (index.add().captions, index.status().captions) == (0, 2)


def test_captions_of_a_table_are_read_by_the_next_run_where_one_was_cut_off_before_them(
    index: Index, photos: Path
) -> None:
    table = photos.parent / "captions.csv"
    table.write_text("path,text\nphotos/red.png,a rose\nphotos/blue.png,the sea\n")

    def stop(progress: Progress) -> None:
        if progress.done == progress.total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(photos, options=IngestOptions(captions=(str(table),)), progress=stop)
    index.add(photos)
    assert index.status().captions == 2


def test_without_a_path_a_first_run_that_was_cut_off_goes_on(index: Index, photos: Path) -> None:
    for number in range(40):
        swatch("yellow", number).save(photos / f"{number}.png")

    def stop(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(photos, options=IngestOptions(exclude=("blue.png",)), progress=stop)
    assert index.status().updated_at is None
    index.add()
    assert (index.status().images, index.status().roots) == (42, (str(photos),))
    assert index.status().updated_at is not None


def test_a_source_that_cannot_be_read_is_not_remembered(index: Index, photos: Path, tmp_path: Path) -> None:
    index.add(photos)
    (tmp_path / "film.mp4").write_bytes(b"x")
    for bad in (tmp_path / "film.mp4", tmp_path / "nowhere"):
        with pytest.raises(Exception, match=bad.name):
            index.add(bad)
    assert index.status().roots == (str(photos),)


def test_an_item_that_was_removed_by_its_id_comes_back_as_one_removed_by_its_path(index: Index, photos: Path) -> None:
    (photos / "red.txt").write_text("a rose")
    index.add(photos)
    index.remove(ids=[index.search("rose", k=1)[0].id])
    assert (index.status().images, index.status().captions) == (2, 0)
    index.add(photos)
    assert (index.status().images, index.status().captions) == (3, 1)


# Captions and their pictures


@pytest.mark.parametrize("name", ["red.txt", "red.png.txt", "red.caption"])
def test_a_caption_moves_with_its_picture_to_a_new_source(
    index: Index, photos: Path, tmp_path: Path, name: str
) -> None:
    (photos / name).write_text("a zeppelin")
    index.add(photos)
    photos.rename(tmp_path / "new")
    report = index.add(tmp_path / "new")
    assert (report.moved, report.captions, index.status().captions) == (3, 0, 1)
    (tmp_path / "new" / name).write_text("a rose")
    index.add(tmp_path / "new")
    assert [hit.text for hit in index.lookup(plain("red"))] == ["a rose"]
    assert not [hit for hit in index.search("zeppelin") if "keyword" in hit.found_by]
    report = index.add()
    assert (report.missing, index.status().roots) == ([], (str(tmp_path / "new"),))


def test_a_picture_that_moves_without_its_caption_leaves_it(index: Index, photos: Path, tmp_path: Path) -> None:
    plain("white").save(photos / "red.jpg")
    (photos / "red.txt").write_text("a rose")
    index.add(photos)
    (tmp_path / "new").mkdir()
    (photos / "red.png").rename(tmp_path / "new" / "red.png")
    index.add(tmp_path / "new")
    assert index.status().captions == 1
    assert [hit.path for hit in index.search("rose", k=1)] == [str(photos / "red.jpg")]


def test_a_picture_that_moves_onto_the_caption_of_another_has_that(index: Index, photos: Path, tmp_path: Path) -> None:
    (photos / "red.txt").write_text("a rose")
    index.add(photos)
    (photos / "red.png").rename(photos / "poppy.png")
    (photos / "red.txt").unlink()
    (photos / "poppy.txt").write_text("a poppy")
    index.add(photos)
    assert [hit.text for hit in index.lookup(plain("red"))] == ["a poppy"]


def test_copies_have_their_own_captions(index: Index, photos: Path, tmp_path: Path) -> None:
    (photos / "red.txt").write_text("a rose")
    index.add(photos)
    shutil.copytree(photos, tmp_path / "copy")
    report = index.add(tmp_path / "copy")
    assert (report.added, report.captions, index.status().captions) == (3, 1, 2)
    (tmp_path / "copy" / "red.txt").write_text("a poppy")
    index.add()
    assert {hit.text for hit in index.lookup(plain("red"), k=2)} == {"a rose", "a poppy"}


def test_one_of_two_pictures_with_a_caption_goes_and_the_other_keeps_it(index: Index, photos: Path) -> None:
    plain("white").save(photos / "red.jpg")
    (photos / "red.txt").write_text("a rose")
    index.add(photos)
    assert index.status().captions == 2
    (photos / "red.png").unlink()
    index.add(photos)
    assert index.status().captions == 1
    assert index.add(photos).captions == 0


def test_pictures_put_in_one_by_one_share_a_caption(index: Index, photos: Path) -> None:
    plain("white").save(photos / "red.jpg")
    (photos / "red.txt").write_text("a rose")
    index.add(photos / "red.jpg")
    index.add(photos / "red.png")
    assert (index.add(photos / "red.jpg").captions, index.status().captions) == (0, 2)
    (photos / "red.txt").write_text("two roses")
    index.add(photos / "red.jpg")
    assert {hit.text for hit in (*index.lookup(plain("red")), *index.lookup(plain("white")))} == {"two roses"}


# What a NAS or a system leaves in folders


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "@Recycle", "System Volume Information", "lost+found"],
)
def test_folders_of_a_nas_or_a_system_are_left_out_and_said(index: Index, photos: Path, name: str) -> None:
    inside = photos / "trips" / name
    inside.mkdir(parents=True)
    plain("white").save(inside / "x.png")
    report = index.add(photos)
    assert (report.added, report.left_out, index.status().images) == (3, {name: 1}, 3)
    taken = index.add(photos, options=IngestOptions(exclude=(f"!{name}/",)))
    assert (taken.added, taken.left_out) == (1, {})
    report = index.add(photos)
    assert (report.removed, report.left_out, report.left_out_items) == (1, {name: 1}, 1)
    assert (index.add(photos, options=IngestOptions(exclude=("*.gif",))).left_out) == {name: 1}
    assert index.add(inside).added == 1  # named by itself
    assert (index.add(photos).removed, index.status().images) == (0, 4)


# Numbers from a file system


@pytest.mark.parametrize(
    "year", ["2300-01-01", "2262-04-11 23:47:17", "2262-04-12", "2446-05-10", "1969-01-01", "1901-12-14"]
)
def test_a_time_of_any_year_is_kept(index: Index, photos: Path, year: str) -> None:
    (photos / "notes.txt").write_text("notes")
    (photos / "red.txt").write_text("a rose")
    table = photos.parent / "captions.csv"
    table.write_text("path,text\nphotos/red.png,a poppy\n")
    subprocess.run(["touch", "-d", year, photos, table, *photos.iterdir()], check=True)
    options = IngestOptions(captions=(str(table),))
    assert index.add(photos, options=options).added == 4
    report = index.add(photos, options=options)
    assert (report.unchanged, report.changed, report.captions) == (4, 0, 0)
    shutil.copy2(photos / "red.png", photos / "copy.png")
    (photos / "green.png").rename(photos / "moved.png")
    plain("yellow", (72, 48)).save(photos / "blue.png")
    subprocess.run(["touch", "-d", "2301-01-01", photos / "blue.png"], check=True)
    report = index.add(photos)
    assert (report.added, report.moved, report.changed) == (1, 1, 1)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system with such times")
@pytest.mark.parametrize("seconds", [99_999_999_999_999, 2**62, -11_644_473_600, -(2**62)])
def test_a_time_far_beyond_all_years_is_kept(index: Index, seconds: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "red.png"
        plain("red").save(path)
        subprocess.run(["touch", "-d", f"@{seconds}", path], check=True)
        assert index.add(folder).added == 1
        assert index.add(folder).unchanged == 1


# What the command line says


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs a terminal")
@pytest.mark.parametrize("where", ["", "> result.txt"])
def test_the_bar_is_gone_when_the_result_is_printed(home: Path, where: str) -> None:
    """In a terminal of tmux's, whose screen is read."""
    (home / "p").mkdir()
    for number in range(20):
        swatch("red", number).save(home / "p" / f"{number}.png")
    (home / "p" / "bad.jpg").write_bytes(b"bad")
    run = shlex.join([sys.executable, str(ROOT / "cli.py"), "index", "p", "-i", "./i", "--model", "lite"])
    tmux = ["tmux", "-S", str(home / "socket")]
    subprocess.run([*tmux, "new", "-d", "-x", "250", "-y", "20", f"{run} {where}; echo END; sleep 60"], check=True)
    try:
        screen: list[str] = []

        def ended() -> bool:
            shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True)
            screen[:] = shown.stdout.split("\n")
            return "END" in screen

        assert eventually(ended, 60)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    if where:
        screen.insert(0, (home / "result.txt").read_text().rstrip())
    assert re.fullmatch(r"i: 20 added, 1 skipped \(.* s\)", screen[0])
    assert screen[1:3] == [f"  skipped {home}/p/bad.jpg: is text, not a picture", "END"]


def test_folders_left_out_are_said_in_one_line(mmsearch: Run, home: Path) -> None:
    for folder in ("p/a/@eaDir", "p/b/@eaDir", "p/#recycle"):
        (home / folder).mkdir(parents=True)
        plain("red").save(home / folder / "x.png")
    plain("blue").save(home / "p" / "own.png")
    index = ("index", "p", "-i", "./i", "--model", "lite")
    done = mmsearch(*index)
    assert "1 added" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "@eaDir" in line]
    assert "1 #recycle, 2 @eaDir" in line and "--exclude '!@eaDir/'" in line
    assert "2 added" in mmsearch(*index, "--exclude", "!@eaDir/").stdout
    done = mmsearch(*index)
    assert "2 removed" in done.stdout and "2 files that were in the index from them" in done.stderr


def test_skipped_files_are_tried_again_by_retry(mmsearch: Run, home: Path) -> None:
    (home / "p").mkdir()
    plain("red").save(home / "p" / "x.jpg")
    index = ("index", "p", "-i", "./i", "--model", "lite")
    good = (home / "p" / "x.jpg").read_bytes()
    facts = (home / "p" / "x.jpg").stat()
    (home / "p" / "x.jpg").write_bytes(bytes(len(good)))
    os.utime(home / "p" / "x.jpg", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert "1 skipped" in mmsearch(*index).stdout
    (home / "p" / "x.jpg").write_bytes(good)
    os.utime(home / "p" / "x.jpg", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    done = mmsearch(*index)
    assert "1 skipped" in done.stdout and "filled with zeros" in done.stderr
    assert "filled with zeros" in mmsearch("status", "-i", "./i").stdout
    assert "skipped" not in mmsearch(*index, "--retry").stdout
