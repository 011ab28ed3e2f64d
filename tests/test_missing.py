"""Missing is not deleted: what `index` keeps, at any depth, when a drive or a folder is away, and what it takes out."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsearch.errors import MissingRootError
from mmsearch.index import Index
from mmsearch.planning import IngestOptions
from tests.colours import ColourEncoder, plain, swatch
from tests.conftest import ROOT, Run
from tests.test_robust import as_ordinary_user

ACCEPT = IngestOptions(accept_missing=True)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        yield index


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    """own.png, nas/red.png, nas/blue.png, nas/deep/green.png."""
    folder = tmp_path / "pics"
    (folder / "nas" / "deep").mkdir(parents=True)
    plain("white").save(folder / "own.png")
    fill(folder / "nas")
    return folder


def fill(nas: Path) -> None:
    (nas / "deep").mkdir(exist_ok=True)
    plain("red").save(nas / "red.png")
    plain("blue").save(nas / "blue.png")
    plain("green").save(nas / "deep" / "green.png")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replaced(folder: Path) -> None:
    other = folder.with_name("other")
    other.mkdir()
    (other / "NOT MOUNTED").touch()
    shutil.rmtree(folder)
    other.rename(folder)


def unlinked(folder: Path) -> None:
    folder.rename(folder.with_name(".drive"))


def with_leavings(folder: Path) -> None:
    """What a NAS, a Mac or Windows leaves in a folder that is empty to its user."""
    shutil.rmtree(folder)
    (folder / "@eaDir").mkdir(parents=True)
    (folder / "lost+found").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).touch()


@pytest.mark.parametrize("take_away", [emptied, unlinked, replaced, with_leavings])
@pytest.mark.parametrize("sources", [("pics",), ("pics", "pics/nas"), ("pics/nas", "pics")])
def test_a_folder_inside_a_source_that_is_away_is_kept_and_said_once(
    index: Index, pics: Path, sources: tuple[str, ...], take_away: Any
) -> None:
    index.add(*(pics.parent / source for source in sources))
    take_away(pics / "nas")
    for _ in range(3):
        report = index.add()
        [sentence] = report.missing
        assert f"{pics / 'nas'} " in sentence and " 3 files " in sentence and "--accept-missing" in sentence
        assert (report.removed, report.unchanged, index.status().images) == (0, 1, 4)
    report = index.add(options=ACCEPT)
    assert (report.removed, report.missing, index.status().images) == (3, [], 1)
    assert index.add().missing == []


def test_what_is_back_is_known_and_what_was_deleted_meanwhile_goes(index: Index, pics: Path) -> None:
    index.add(pics)
    (pics / "nas").rename(pics / ".drive")
    (pics / "nas").mkdir()
    (pics / "nas" / "readme.txt").write_text("the drive goes here")  # is indexed, and is no sign of the drive
    for _ in range(3):
        assert (index.add(pics).removed, index.status().images, index.status().passages) == (0, 4, 1)
    shutil.rmtree(pics / "nas")
    (pics / ".drive").rename(pics / "nas")
    (pics / "nas" / "blue.png").unlink()
    report = index.add(pics)
    assert (report.added, report.removed, report.missing) == (0, 2, [])
    assert (index.status().images, index.status().passages) == (3, 0)


def test_files_deleted_from_a_folder_that_holds_others_go(index: Index, pics: Path) -> None:
    index.add(pics)
    (pics / "nas" / "red.png").unlink()
    report = index.add(pics)
    assert (report.removed, report.missing) == (1, [])


def test_files_that_others_took_the_place_of_in_the_same_folder_go(index: Index, pics: Path) -> None:
    index.add(pics)
    (pics / "nas" / "deep" / "green.png").unlink()
    swatch("yellow", 1).save(pics / "nas" / "deep" / "yellow.png")
    report = index.add(pics)
    assert (report.added, report.removed, report.missing) == (1, 1, [])


@pytest.mark.parametrize("deleted", ["nas/red.png", "nas/deep/green.png", "own.png"])
def test_a_restored_folder_whose_files_have_new_times_is_the_same(index: Index, pics: Path, deleted: str) -> None:
    """As by `git clone` or `cp -r`: other folders, other times, the same content."""
    index.add(pics)
    backup = pics.rename(pics.with_name("backup"))
    shutil.copytree(backup, pics, copy_function=shutil.copyfile)
    (pics / deleted).unlink()
    swatch("yellow", 1).save((pics / deleted).with_name("yellow.png"))
    for path in pics.rglob("*.png"):
        os.utime(path, (1, 1))
    report = index.add()
    if deleted == "nas/deep/green.png":  # nothing of this one is left by which it could be told
        assert (report.removed, len(report.missing)) == (0, 1)
    else:
        assert (report.changed, report.added, report.removed, report.missing) == (3, 1, 1, [])
        assert index.add().missing == []


def test_other_files_of_the_same_names_do_not_tell_a_folder(index: Index, pics: Path) -> None:
    index.add(pics)
    replaced(pics / "nas")
    plain("white").save(pics / "nas" / "red.png")
    report = index.add(pics)
    assert (report.removed, len(report.missing)) == (0, 1)


def test_a_folder_that_an_older_version_indexed_is_taken_for_the_same(tmp_path: Path, pics: Path) -> None:
    """Before version 4 of the tables nothing was known of folders."""
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(pics)
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.db")) as database, database:
        database.execute("DELETE FROM folders")
    (pics / "nas" / "deep" / "green.png").unlink()
    swatch("yellow", 1).save(pics / "nas" / "deep" / "yellow.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        report = index.add(pics)
        assert (report.added, report.removed, report.missing) == (1, 1, [])
        assert index.add(pics).missing == []


def test_a_renamed_folder_is_not_missing_also_where_files_of_it_were_deleted(index: Index, pics: Path) -> None:
    index.add(pics)
    (pics / "nas").rename(pics / "disk")
    (pics / "disk" / "blue.png").unlink()
    report = index.add(pics)
    assert (report.moved, report.removed, report.missing, index.status().images) == (2, 1, [], 3)


def test_files_that_moved_are_not_missing_from_their_old_folder(index: Index, pics: Path, tmp_path: Path) -> None:
    index.add(pics)
    shutil.copytree(pics / "nas", tmp_path / "local")  # as onto another disk
    shutil.rmtree(pics / "nas")
    report = index.add(tmp_path / "local", pics)
    assert (report.moved, report.missing) == (3, [])
    assert index.add().missing == []


def test_a_source_whose_files_all_moved_elsewhere_is_forgotten(index: Index, pics: Path, tmp_path: Path) -> None:
    index.add(pics)
    pics.rename(tmp_path / "new")
    assert index.add(tmp_path / "new").moved == 4
    report = index.add()
    assert (report.missing, index.status().roots) == ([], (str(tmp_path / "new"),))


def test_removing_a_folder_that_is_gone_by_its_name_is_enough(index: Index, pics: Path) -> None:
    index.add(pics)
    shutil.rmtree(pics / "nas")
    assert index.add().missing
    assert index.remove(pics / "nas") == 3
    assert index.add().missing == []


def test_the_rest_of_a_run_is_carried_out(index: Index, pics: Path) -> None:
    index.add(pics)
    shutil.rmtree(pics / "nas")
    swatch("black", 1).save(pics / "new.png")
    report = index.add(pics)
    assert (report.added, len(report.missing), index.status().images) == (1, 1, 5)


def test_an_excluded_folder_is_not_missing_there_or_gone(index: Index, pics: Path) -> None:
    index.add(pics)
    shutil.rmtree(pics / "nas" / "deep")
    report = index.add(pics, options=IngestOptions(exclude=("nas/",)))
    assert (report.removed, report.missing, index.status().images) == (3, [], 1)


def test_only_skipped_files_are_nothing_to_miss(index: Index, pics: Path) -> None:
    (pics / "bad").mkdir()
    (pics / "bad" / "x.jpg").write_bytes(b"broken")
    index.add(pics)
    shutil.rmtree(pics / "bad")
    report = index.add(pics)
    assert (report.missing, report.skipped) == ([], [])


def test_pictures_of_a_table_whose_folder_is_away_are_kept(index: Index, pics: Path) -> None:
    table = pics.parent / "captions.csv"
    table.write_text("path,text\npics/own.png,white\npics/nas/red.png,a rose\npics/nas/deep/green.png,a meadow\n")
    index.add(options=IngestOptions(captions=(str(table),)))
    unlinked(pics / "nas")
    report = index.add()
    assert [sentence.split(" is ")[0] for sentence in report.missing] == [str(pics / "nas")]
    assert (report.removed, index.status().images, index.status().captions) == (0, 3, 3)
    (pics / ".drive").rename(pics / "nas")
    (pics / "nas" / "red.png").unlink()
    report = index.add()
    assert (report.removed, report.missing, index.status().captions) == (1, [], 2)


@pytest.mark.parametrize("follow", [False, True])
def test_a_source_that_is_a_dangling_link_is_as_a_folder_that_is_gone(
    index: Index, pics: Path, tmp_path: Path, follow: bool
) -> None:
    (tmp_path / "link").symlink_to(pics)
    index.add(tmp_path / "link", options=IngestOptions(follow_links=follow))
    pics.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingRootError, match="is not there"):
        index.add(tmp_path / "link")
    assert "is not there" in index.add().missing[0]
    report = index.add(tmp_path / "link", options=ACCEPT)
    assert (report.removed, index.status().images, index.status().roots) == (4, 0, ())


def test_a_dangling_link_among_all_sources_is_given_up(index: Index, pics: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(pics)
    index.add(tmp_path / "link")
    pics.rename(tmp_path / "elsewhere")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("link")  # to itself
    assert index.add().missing
    assert (index.add(options=ACCEPT).removed, index.status().roots) == (4, ())


def test_a_linked_folder_that_dangles_or_leads_elsewhere_is_kept(index: Index, pics: Path, tmp_path: Path) -> None:
    (pics / "nas").rename(tmp_path / "disk")
    (pics / "nas").symlink_to(tmp_path / "disk")
    options = IngestOptions(follow_links=True)
    index.add(pics, options=options)
    (tmp_path / "disk").rename(tmp_path / "away")
    assert len(index.add(pics, options=options).missing) == 1
    (tmp_path / "disk").mkdir()
    swatch("yellow", 1).save(tmp_path / "disk" / "other.png")
    report = index.add(pics, options=options)
    assert (report.added, report.removed, len(report.missing)) == (1, 0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_source_that_cannot_be_read_is_an_error_and_nothing_goes(index: Index, tmp_path: Path, pics: Path) -> None:
    index.add(pics)
    pics.chmod(0)
    said = as_ordinary_user(
        "import json, sys; from mmsearch.index import Index; from tests.colours import ColourEncoder\n"
        "index = Index(sys.argv[1], encoder=ColourEncoder()); said = index.add().missing\n"
        "try: index.add(sys.argv[2])\n"
        "except Exception as error: said.append(f'{type(error).__name__} {error}')\n"
        "print(json.dumps(said))",
        str(tmp_path / "index"),
        str(pics),
    )
    pics.chmod(0o755)
    assert all(f"{pics} cannot be read: permission denied." in sentence for sentence in json.loads(said))
    assert json.loads(said)[1].startswith("SourceError")
    assert (index.add().unchanged, index.status().images) == (4, 4)


def test_the_command_line_says_it_and_exits_with_1(mmsearch: Run, home: Path) -> None:
    (home / "pics" / "nas").mkdir(parents=True)
    plain("white").save(home / "pics" / "own.png")
    plain("red").save(home / "pics" / "nas" / "red.png")
    assert mmsearch("index", "pics", "-i", "./i", "--model", "lite").returncode == 0
    emptied(home / "pics" / "nas")
    done = mmsearch("index", "-i", "./i")
    assert done.returncode == 1 and f"Error: {home}/pics/nas is empty" in done.stderr
    assert "removed" not in done.stdout and "they were kept" in done.stderr
    assert "1 removed" in mmsearch("index", "pics", "--accept-missing", "-i", "./i").stdout
    assert mmsearch("index", "-i", "./i").returncode == 0


# Mounts, in a namespace of their own


HEAD = """
import json, os, subprocess, sys
from pathlib import Path
from mmsearch.errors import Error
from mmsearch.index import Index
from mmsearch.planning import IngestOptions
from tests.colours import ColourEncoder, plain, swatch
from tests.test_missing import fill

tmp = Path(sys.argv[1])
pics, nas = tmp / "pics", tmp / "pics" / "nas"
index = Index(tmp / "index", encoder=ColourEncoder())

def mount(*how):
    if subprocess.run(["mount", *how], stderr=subprocess.DEVNULL).returncode:
        sys.exit(77)

def umount(where):
    subprocess.run(["umount", where], check=True)

def sentence(call):
    try:
        call()
    except Error as error:
        return str(error)

def run(*roots, **options):
    report = index.add(*roots, options=IngestOptions(**options))
    return [report.added, report.removed, len(report.missing), index.status().images]
"""


def mounting(script: str, tmp: Path) -> Any:
    """What a script writes as JSON that may mount and unmount as it likes."""
    unshare = ("unshare", "-m")
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", HEAD + textwrap.dedent(script), str(tmp)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("marker", ["", "NOT MOUNTED", "not-mounted.txt"])
@pytest.mark.parametrize("how", ["-t tmpfs none {nas}", "--bind {disk} {nas}"])
def test_a_drive_that_is_unmounted_from_within_a_source_is_kept(
    tmp_path: Path, pics: Path, marker: str, how: str
) -> None:
    emptied(pics / "nas")
    (tmp_path / "disk").mkdir()
    if marker:
        (pics / "nas" / marker).write_text("plug in the drive")
    arguments = how.format(nas=pics / "nas", disk=tmp_path / "disk").split()
    said = mounting(
        f"""
        mount(*{arguments!r})
        fill(nas)
        said = [run(pics)]
        umount(nas)
        said += [run(), run(pics), run()]
        if "--bind" in {arguments!r}:
            mount(*{arguments!r})
            (nas / "red.png").unlink()
            said += [run()]
        said += [run(accept_missing=True)]
        sys.stdout.write(json.dumps(said))
        """,
        tmp_path,
    )
    texts = int(marker.endswith(".txt"))
    assert said[:4] == [[4, 0, 0, 4], [texts, 0, 1, 4], [0, 0, 1, 4], [0, 0, 1, 4]]
    assert said[4] == ([0, 1 + texts, 0, 3] if "--bind" in how else [0, 3, 0, 1])


def test_two_sticks_that_take_turns_at_one_place_keep_their_pictures(tmp_path: Path, pics: Path) -> None:
    said = mounting(
        """
        stick = tmp / "stick"
        stick.mkdir()
        mount("-t", "tmpfs", "none", stick)
        fill(stick)
        said = [run(stick)]
        umount(stick)
        mount("-t", "tmpfs", "none", stick)
        swatch("yellow", 1).save(stick / "other.png")
        said += [sentence(lambda: index.add(stick)), run()]
        sys.stdout.write(json.dumps(said))
        """,
        tmp_path,
    )
    assert said[0] == [3, 0, 0, 3] and "another folder" in said[1]
    assert said[2][1:3] == [0, 1] and said[2][3] >= 3


def test_a_drive_mounted_over_a_folder_with_items_does_not_take_them_out(tmp_path: Path, pics: Path) -> None:
    said = mounting(
        """
        said = [run(pics)]
        mount("-t", "tmpfs", "none", nas)
        swatch("yellow", 1).save(nas / "other.png")
        said += [run()]
        umount(nas)
        said += [run()]
        sys.stdout.write(json.dumps(said))
        """,
        tmp_path,
    )
    assert said[:2] == [[4, 0, 0, 4], [1, 0, 1, 5]]
    assert said[2][1] == 1 and said[2][3] == 4
