"""Whatever names a file has, a list of spare copies never leads to the loss of the last one of any content."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsearch import Index, IngestOptions
from mmsearch.duplicates import Group
from mmsearch.names import look_up
from mmsearch.present import is_safe_in_lines, path_list, spare_paths
from tests.colours import ColourEncoder
from tests.conftest import ROOT, Run
from tests.served import serving

FOLDERS = ("a", "a/inner", "b", "outside")  # the last one is not indexed
FOLLOWED = IngestOptions(follow_links=True)


def picture(path: Path, number: int) -> None:
    """Small, and with bytes of its own for each number; all take the same room."""
    path.unlink(missing_ok=True)
    Image.new("RGB", (8, 6), (number, 90, 200)).save(path, "BMP")


def contents(root: Path) -> set[str]:
    """What there is to be lost; found through every name that leads to a file."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.bmp") if path.is_file()}


def exact(index: Index) -> list[Group]:
    return index.duplicates(threshold=1)


def remove_with_xargs(paths: list[str], cwd: Path, *, nul: bool) -> None:
    """As in `mmsearch duplicates --paths | xargs rm`."""
    printed = path_list([path for path in paths if nul or is_safe_in_lines(path)], nul=nul)
    subprocess.run(["xargs", *(["-0"] if nul else []), "-r", "rm", "-f", "--"], input=printed, cwd=cwd, check=False)


names_ = st.sampled_from(["x", "X", "y", "caf\u00e9", "cafe\u0301", "y x", "-f y", "it's", 'q"q', "n\ny"])
places = st.tuples(st.sampled_from(FOLDERS), names_)
steps = st.lists(
    st.tuples(st.sampled_from(["copy", "hard", "link", "relative link", "other", "folder"]), places, places), max_size=8
)
changes = st.lists(
    st.tuples(st.sampled_from(["remove", "other", "link", "swap", "same time"]), places, places), max_size=3
)


def grow(root: Path, steps: list[tuple[str, tuple[str, str], tuple[str, str]]]) -> None:
    """Make a tree of copies and links; what makes no sense is left out."""
    for number, (how, (from_folder, from_name), (folder, name)) in enumerate(steps):
        source, target = root / from_folder / f"{from_name}.bmp", root / folder / f"{name}.bmp"
        if how == "folder":
            if not os.path.lexists(root / folder / "linked"):
                (root / folder / "linked").symlink_to(root / from_folder)
            continue
        if how == "other":
            picture(target, 100 + number)
        elif source.exists() and source != target:
            target.unlink(missing_ok=True)
            if how == "copy" and source.exists():
                shutil.copy2(source, target)
            elif how == "hard" and source.is_file() and not source.is_symlink():
                os.link(source, target)
            elif how == "link":
                target.symlink_to(source)
            elif how == "relative link":
                target.symlink_to(os.path.relpath(source, target.parent))


def change(root: Path, changes: list[tuple[str, tuple[str, str], tuple[str, str]]]) -> None:
    """What may happen between an index run and a look for duplicates."""
    for number, (how, (from_folder, from_name), (folder, name)) in enumerate(changes):
        source, target = root / from_folder / f"{from_name}.bmp", root / folder / f"{name}.bmp"
        if not target.exists() or source == target:
            continue
        if how == "remove":
            target.unlink()
        elif how == "other":
            picture(target, 200 + number)
        elif how == "same time":
            at = target.stat()
            picture(target, 200 + number)
            os.utime(target, ns=(at.st_atime_ns, at.st_mtime_ns))
        elif source.is_file() and not source.is_symlink():
            if how == "link":
                target.unlink()
                target.symlink_to(source)
            else:
                source.rename(root / "swapped.bmp")
                target.rename(source)
                (root / "swapped.bmp").rename(target)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, changes=changes, nul=st.booleans())
def test_what_xargs_removes_is_never_the_last_of_its_content(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, tuple[str, str], tuple[str, str]]],
    changes: list[tuple[str, tuple[str, str], tuple[str, str]]],
    nul: bool,
) -> None:
    root = Path(os.path.realpath(tmp_path_factory.mktemp("tree")))
    for folder in FOLDERS:
        (root / folder).mkdir()
    picture(root / "a" / "x.bmp", 1)
    picture(root / "b" / "y.bmp", 1)
    picture(root / "outside" / "y.bmp", 2)
    grow(root, steps)
    with Index(root / "index", encoder=ColourEncoder()) as index:
        index.add(root / "a", root / "b", root / "a" / "inner", options=FOLLOWED)
        change(root, changes)
        before = contents(root)
        groups = exact(index)
        spare = spare_paths(groups)
        room = used_bytes(root)
        remove_with_xargs(spare, root / "a", nul=True)
        assert contents(root) == before
        assert room - used_bytes(root) == sum(group.spare_bytes for group in groups)
        grow(root, steps)
        index.add()
        before = contents(root)
        remove_with_xargs(spare_paths(exact(index)), root / "a", nul=nul)
        assert contents(root) == before
    shutil.rmtree(root)


def used_bytes(root: Path) -> int:
    """Of all files, each once."""
    found = {
        (at.st_dev, at.st_ino): at.st_size
        for path in root.rglob("*.bmp")
        for at in [path.lstat()]
        if path.is_file() and not path.is_symlink()
    }
    return sum(found.values())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = Path(os.path.realpath(tmp_path)) / "tree"
    root.mkdir()
    return root


Add = Callable[..., "Index"]


def found(root: Path, *sources: str, **options: bool) -> list[Group]:
    """The copies in some folders."""
    with Index(root / "index", encoder=ColourEncoder()) as index:
        for source in sources:  # one run after another, as people do
            index.add(root / source, options=IngestOptions(follow_links=True))
        return exact(index)


def test_a_folder_and_a_link_to_it_hold_the_same_file(mmsearch: Run, tree: Path) -> None:
    (tree / "real").mkdir()
    picture(tree / "real" / "x.bmp", 1)
    (tree / "link").symlink_to("real")
    for folder in ("link", "real"):
        assert mmsearch("index", str(tree / folder), "--quiet", "--model", "lite").returncode == 0
    done = mmsearch("duplicates", "--threshold", "1", "--paths")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 path is left out: links and other names" in done.stderr and "Nothing found." in done.stderr


def test_a_link_is_no_spare_of_its_target_nor_of_a_copy(tree: Path) -> None:
    (tree / "a").mkdir()
    picture(tree / "a" / "target.bmp", 1)
    (tree / "a" / "l.bmp").symlink_to("target.bmp")
    assert found(tree, "a") == []
    shutil.copy(tree / "a" / "target.bmp", tree / "a" / "a longer name of a copy.bmp")
    (group,) = found(tree, "a")
    assert [Path(copy.path or "").name for copy in group.copies] == ["target.bmp", "a longer name of a copy.bmp"]


def test_what_is_known_by_a_link_alone_is_kept_and_never_a_spare(tree: Path) -> None:
    for folder in ("a", "elsewhere"):
        (tree / folder).mkdir()
    picture(tree / "elsewhere" / "one.bmp", 1)
    picture(tree / "elsewhere" / "two.bmp", 1)
    (tree / "a" / "1.bmp").symlink_to(tree / "elsewhere" / "one.bmp")
    (tree / "a" / "2.bmp").symlink_to(tree / "elsewhere" / "two.bmp")
    assert found(tree, "a") == []
    picture(tree / "a" / "a real file.bmp", 1)
    assert found(tree, "a") == []


def test_hard_links_are_one_file_and_free_nothing_alone(tree: Path) -> None:
    (tree / "a").mkdir()
    (tree / "b").mkdir()
    picture(tree / "a" / "x.bmp", 1)
    os.link(tree / "a" / "x.bmp", tree / "a" / "xx.bmp")
    assert found(tree, "a") == []
    picture(tree / "b" / "yyy.bmp", 1)
    os.link(tree / "b" / "yyy.bmp", tree / "b" / "zzzz.bmp")
    (group,) = found(tree, "b")
    assert spare_paths([group]) == [str(tree / "b" / "yyy.bmp"), str(tree / "b" / "zzzz.bmp")]
    assert group.spare_bytes == os.stat(tree / "b" / "yyy.bmp").st_size  # once, for both together
    os.link(tree / "b" / "yyy.bmp", tree / "not indexed.bmp")
    assert found(tree, "b")[0].spare_bytes == 0


def test_two_spellings_of_one_name_are_copies_only_where_the_file_system_tells_them_apart(tree: Path) -> None:
    picture(tree / "Caf\u00e9.bmp", 1)
    picture(tree / "Cafe\u0301.bmp", 1)
    picture(tree / "caf\u00e9.bmp", 1)
    assert len(spare_paths(found(tree, "."))) == len(list(tree.glob("*.bmp"))) - 1


@pytest.mark.parametrize(
    "mount",
    [
        "mount --bind real other",
        "mount --bind real/x.bmp other/y.bmp",
        "mount -t tmpfs t upper && mkdir upper/u upper/w && "
        "mount -t overlay o -o lowerdir=real,upperdir=upper/u,workdir=upper/w other",
    ],
    ids=["folder", "file", "overlay"],
)
def test_a_file_that_is_mounted_twice_is_one(tree: Path, mount: str) -> None:
    for folder in ("real", "other", "upper"):
        (tree / folder).mkdir()
    picture(tree / "real" / "x.bmp", 1)
    if "y.bmp" in mount:
        (tree / "other" / "y.bmp").touch()
    tried = subprocess.run(["unshare", "-m", "sh", "-c", mount], cwd=tree, capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs leave to mount: {tried.stderr.decode()[:200]}")
    look = (
        "import json, sys; from mmsearch import Index; from tests.colours import ColourEncoder\n"
        "index = Index('index', encoder=ColourEncoder()); index.add('real', 'other')\n"
        "print(json.dumps([index.status().images, len(index.duplicates(threshold=1))]))"
    )
    script = f'{mount} && exec {sys.executable} -c "$LOOK"'
    environment = {**os.environ, "LOOK": look, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [2, 0]


def test_what_has_changed_since_it_was_found_is_not_offered(tree: Path) -> None:
    (tree / "a").mkdir()
    for name in ("1", "22", "333"):
        picture(tree / "a" / f"{name}.bmp", 1)
    (group,) = found(tree, "a")
    assert group.as_now() is group
    at = (tree / "a" / "22.bmp").stat()
    picture(tree / "a" / "22.bmp", 2)
    os.utime(tree / "a" / "22.bmp", ns=(at.st_atime_ns, at.st_mtime_ns))
    now = group.as_now()
    assert now is not None and spare_paths([now]) == [str(tree / "a" / "333.bmp")]
    (tree / "a" / "1.bmp").unlink()
    assert group.as_now() is None


def test_what_has_changed_since_it_was_indexed_is_not_offered_and_that_is_said(tree: Path) -> None:
    (tree / "a").mkdir()
    for name in ("1", "22", "333", "4444"):
        picture(tree / "a" / f"{name}.bmp", 1)
    said: list[str] = []
    with Index(tree / "index", encoder=ColourEncoder(), notify=said.append) as index:
        index.add(tree / "a")
        at = (tree / "a" / "1.bmp").stat()
        picture(tree / "a" / "1.bmp", 2)
        os.utime(tree / "a" / "1.bmp", ns=(at.st_atime_ns, at.st_mtime_ns))  # the first is another picture now
        (tree / "a" / "4444.bmp").unlink()
        assert spare_paths(exact(index)) == [str(tree / "a" / "333.bmp")]
    assert said == ["2 images are left out: gone, not readable, or changed since the last `mmsearch index`."]


def test_the_server_lists_no_copy_that_has_changed_since(tree: Path) -> None:
    (tree / "a").mkdir()
    for name in ("1", "22"):
        picture(tree / "a" / f"{name}.bmp", 1)
    with Index(tree / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(tree / "a")
        served.http.post("/api/duplicates", json={"threshold": 1})
        while (said := served.http.get("/api/duplicates").json())["state"] == "running":
            pass
        assert [copy["frees_bytes"] > 0 for copy in said["groups"][0]["copies"]] == [False, True]
        (tree / "a" / "1.bmp").unlink()
        assert served.http.get("/api/duplicates").json()["groups"] == []


def test_a_picture_from_memory_is_never_what_is_kept_instead_of_a_file(tree: Path) -> None:
    (tree / "a").mkdir()
    picture(tree / "a" / "1.bmp", 1)
    picture(tree / "a" / "2.bmp", 1)
    with Index(tree / "index", encoder=ColourEncoder()) as index:
        index.add(tree / "a")
        image = Image.open(tree / "a" / "1.bmp")
        index.add_images([image, image], ids=["from memory", "again"])
        groups = exact(index)
    assert {len(spare_paths([group])) for group in groups} == {0, 1}


@pytest.mark.parametrize(
    ("path", "is_safe"),
    [
        ("/p/plain.jpg", True),
        ("/p/two words.jpg", True),
        ("/p/two there.jpg", False),  # "there.jpg" is the name of another file
        ("/p/two -rf /q.jpg", False),
        ("/p/it's.jpg", True),
        ('/p/"there.jpg"', True),
        ('x "there.jpg"', False),
        ("x the\\re.jpg", False),
        ("/p/two\nlines.jpg", False),
    ],
)
def test_a_line_that_would_come_apart_into_other_files_is_not_safe(
    tree: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_safe: bool
) -> None:
    monkeypatch.chdir(tree)
    picture(tree / "there.jpg", 1)
    assert is_safe_in_lines(path) is is_safe


def test_a_name_of_no_file_is_none(tree: Path) -> None:
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    for path in (tree, tree / "gone", tree / "dangling", tree / "pipe", Path("nul\0")):
        assert look_up(str(path)) is None
