"""What a user sees on the command line: results on stdout, everything else on stderr, and honest exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.colours import plain, swatch
from tests.conftest import ROOT, Run, as_from_a_terminal, command

PHOTOS = ROOT / "photos"


@pytest.fixture
def indexed(mmsearch: Run) -> Run:
    """The pictures of this checkout in the index `default`."""
    done = mmsearch("index", str(PHOTOS), "--quiet", "--model", "lite")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return mmsearch


def test_two_commands_give_an_answer(mmsearch: Run) -> None:
    done = mmsearch("index", str(PHOTOS))
    assert done.returncode == 0 and "17 added" in done.stdout
    assert "lite" in done.stderr  # the one line that says which model was taken, and how to take another
    found = mmsearch("search", "a cat", "--paths", "-k", "3")
    assert str(PHOTOS / "pets" / "chelsea.jpg") in found.stdout.splitlines()
    assert (found.stderr, found.returncode) == ("", 0)


def test_the_table_ends_with_the_path(indexed: Run) -> None:
    lines = indexed("search", "bicycle", "-k", "1").stdout.splitlines()
    assert lines[-1].endswith(str(PHOTOS / "drawings" / "fahrrad.png"))
    assert "\x1b" not in "".join(lines)


def test_json_has_the_documented_keys(indexed: Run) -> None:
    (hit,) = json.loads(indexed("search", "coffee cup", "-k", "1", "--json").stdout)
    assert ", ".join(hit) == (
        "rank, score, kind, id, path, text, line, width, height, format, "
        "taken_at, camera, latitude_deg, longitude_deg, facts, found_by"
    )
    assert (hit["rank"], hit["kind"], hit["path"]) == (1, "image", str(PHOTOS / "kitchen" / "morning.jpg"))


def test_paths_end_with_nul_for_xargs(indexed: Run) -> None:
    done = indexed("search", "flower", "--paths", "-0", "-k", "2")
    assert done.stdout.count("\0") == 2 and "\n" not in done.stdout


def test_the_gallery_needs_no_server(indexed: Run, home: Path) -> None:
    done = indexed("search", "ship", "--html", "ships.html", "-k", "5")
    page = (home / "ships.html").read_text()
    assert done.stdout == ""
    assert page.count("data:image/jpeg;base64,") >= 5 and "http://" not in page.replace("http://www.w3.org", "")


def test_nothing_found_is_one_line_on_stderr(indexed: Run) -> None:
    done = indexed("search", "cat", "--after", "2030")
    assert (done.stdout, done.stderr, done.returncode) == ("", "Nothing found.\n", 0)
    assert json.loads(indexed("search", "cat", "--after", "2030", "--json").stdout) == []


def test_a_picture_finds_others_and_not_itself(indexed: Run) -> None:
    paths = indexed("search", str(PHOTOS / "pets" / "chelsea.jpg"), "--paths").stdout.splitlines()
    assert str(PHOTOS / "pets" / "chelsea.jpg") not in paths and len(paths) == 10


def test_stdin_may_be_a_picture_or_words(indexed: Run) -> None:
    cat = (PHOTOS / "pets" / "chelsea.jpg").read_bytes()
    assert "chelsea" not in indexed("search", "-", "--paths", stdin=cat).stdout
    assert "chelsea" in indexed("search", "-", "--paths", "-k", "2", stdin=b"a tabby cat\n").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse these names")
@pytest.mark.parametrize("name", ["cat - Copy.jpg", "0.5*a + \n-b.jpg", os.fsdecode(b"- \xe9 ~.jpg"), '"x" + y.jpg'])
def test_a_path_is_a_path_wherever_it_is_given(indexed: Run, home: Path, name: str) -> None:
    os.link(PHOTOS / "pets" / "chelsea.jpg", home / name)
    usual = indexed("search", str(PHOTOS / "pets" / "chelsea.jpg"), "--paths").stdout
    for done in (
        indexed("search", os.fsencode(name), "--paths"),
        indexed("search", "-", "--paths", stdin=os.fsencode(name) + b"\n"),
    ):
        assert done.stdout == usual, done.stderr
    assert indexed("match", os.fsencode(f"./{name}"), "a cat").stdout.startswith("0.9")


def test_lookup_finds_captions(mmsearch: Run, home: Path) -> None:
    (home / "captions.csv").write_text(
        f"path,caption\n{PHOTOS}/pets/chelsea.jpg,a tabby cat\n{PHOTOS}/kitchen/morning.jpg,a cup of espresso\n"
    )
    mmsearch("index", str(PHOTOS), "--captions", "captions.csv", "--model", "lite")
    hits = json.loads(mmsearch("lookup", str(PHOTOS / "pets" / "chelsea.jpg"), "--json").stdout)
    assert [hit["text"] for hit in hits] == ["a tabby cat", "a cup of espresso"]


def test_status_names_the_model_and_every_skipped_file(mmsearch: Run, home: Path) -> None:
    (home / "pictures").mkdir()
    plain("red").save(home / "pictures" / "a.png")
    (home / "pictures" / "broken.jpg").write_bytes(b"")
    done = mmsearch("index", "pictures", "--model", "lite")
    assert "1 skipped" in done.stdout and "broken.jpg" in done.stderr
    text = mmsearch("status").stdout
    assert "lite" in text and "broken.jpg" in text
    status = json.loads(mmsearch("status", "--json").stdout)
    assert (status["images"], status["model"]) == (1, "lite")
    assert [Path(skip["path"]).name for skip in status["skipped"]] == ["broken.jpg"]


def test_removed_items_are_not_found(indexed: Run) -> None:
    assert "1 removed" in indexed("remove", str(PHOTOS / "pets" / "chelsea.jpg")).stdout
    assert "chelsea" not in indexed("search", "cat", "-k", "50", "--paths").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["search", "cat", "-i", "nowhere"], 1, "mmsearch index"),
        (["index", "no-such-folder"], 1, "no-such-folder is not there"),
        (["search"], 2, "Missing argument"),
        (["search", "cat", "--kind", "film"], 2, "film"),
        (["search", "cat", "--near", "here"], 2, "LAT,LON,KM"),
        (["search", "cat", "--after", "tomorrow"], 2, "2023-07-14"),
        (["search", "./not-there.jpg"], 1, "not-there.jpg is not there"),
        (["search", "cat", "--json", "--paths"], 2, "one of"),
        (["search", "cat", "-0"], 2, "--paths"),
        (["lookup", "not-there.jpg"], 1, "not-there.jpg"),
        (["remove", "not-there.jpg"], 1, "holds nothing from"),
        (["index", str(PHOTOS), "--model", "ViT-B-32-256/datacomp_s34b_b86k"], 1, "was made with 'lite'"),
        (["status", "-i", ".."], 2, "no name for an index"),
        (["remove", ""], 2, "empty"),
    ],
)
def test_a_mistake_is_one_clear_sentence(indexed: Run, arguments: list[str], code: int, says: str) -> None:
    done = indexed(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert says in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1


def test_an_unknown_model_is_answered_with_near_ones(mmsearch: Run) -> None:
    done = mmsearch("index", str(PHOTOS), "--model", "lit")
    assert done.returncode == 1 and "lite" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["index", "search", "lookup", "status", "remove", "serve", "models"])
def test_help_shows_examples(mmsearch: Run, name: str) -> None:
    done = mmsearch(name, "--help")
    assert done.returncode == 0
    assert "Examples:\n" in done.stdout and f"  mmsearch {name}" in done.stdout


def test_the_three_ways_to_start_it_are_the_same_program(mmsearch: Run, home: Path) -> None:
    module = subprocess.run([sys.executable, "-m", "mmsearch", "--help"], capture_output=True, text=True, cwd=home)
    assert module.stdout == mmsearch("--help").stdout


def test_models_are_listed(mmsearch: Run) -> None:
    names = [entry["name"] for entry in json.loads(mmsearch("models", "--json").stdout)]
    assert {"lite", "fast", "balanced", "multilingual", "best"} <= set(names)
    assert all(name in mmsearch("models").stdout for name in names)


def test_a_bare_name_lives_in_indexes_where_that_exists_else_in_the_data_folder(mmsearch: Run, home: Path) -> None:
    mmsearch("index", str(PHOTOS), "--model", "lite", "-i", "mine")
    assert (home / "data" / "mmsearch" / "indexes" / "mine" / "index.db").is_file()
    (home / "indexes").mkdir()
    mmsearch("index", str(PHOTOS), "--model", "lite", "-i", "mine")
    assert (home / "indexes" / "mine" / "index.db").is_file()


def test_environment_variables_name_the_index_and_the_model(
    mmsearch: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_INDEX", str(home / "by-variable"))
    monkeypatch.setenv("MMSEARCH_MODEL", "lite")
    assert mmsearch("index", str(PHOTOS)).stderr == ""
    assert (home / "by-variable" / "index.db").is_file()


def test_ctrl_c_says_what_is_kept_and_exits_with_130(home: Path) -> None:
    many = home / "many"
    many.mkdir()
    swatch("red", 0, (160, 120)).save(many / "0.png")
    for number in range(1, 5000):
        os.link(many / "0.png", many / f"{number}.png")
    arguments = command("index", str(many), "--model", "lite")
    run = subprocess.Popen(
        arguments,
        cwd=home,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_a_terminal,
    )
    time.sleep(4)
    run.send_signal(signal.SIGINT)
    stopped = time.monotonic()
    _, said = run.communicate(timeout=30)
    assert time.monotonic() - stopped < 3
    assert run.returncode == 130
    assert "Stopped." in said and "kept" in said and "Traceback" not in said


def test_a_reader_that_has_seen_enough_is_no_error(indexed: Run, home: Path) -> None:
    shell = f"{sys.executable} {ROOT / 'cli.py'} search cat -k 17 | head -1"
    done = subprocess.run(shell, shell=True, cwd=home, capture_output=True, text=True)
    assert done.stderr == ""


def test_hostile_names_do_not_reach_the_terminal(mmsearch: Run, home: Path) -> None:
    (home / "odd").mkdir()
    plain("red").save(home / "odd" / "a.png")
    (home / "odd" / "a.png").rename(home / "odd" / "\x1b]0;owned\x07\n.png")
    (home / "odd" / "b.png").write_bytes(b"")
    (home / "odd" / "b.png").rename(home / "odd" / "\x1b[2J.png")
    indexing = mmsearch("index", "odd", "--model", "lite")
    for done in (indexing, mmsearch("search", "red"), mmsearch("status")):
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_name_that_is_not_utf8_comes_out_exactly(mmsearch: Run, home: Path) -> None:
    (home / "odd").mkdir()
    plain("red").save(home / "odd" / "a.png")
    os.rename(home / "odd" / "a.png", os.fsencode(home / "odd") + b"/caf\xe9.png")
    mmsearch("index", "odd", "--model", "lite")
    assert os.fsencode(mmsearch("search", "red", "--paths").stdout) == os.fsencode(home / "odd") + b"/caf\xe9.png\n"
    (hit,) = json.loads(mmsearch("search", "red", "--json").stdout)
    assert os.fsencode(hit["path"]).endswith(b"caf\xe9.png")
    assert mmsearch("remove", os.fsencode(home / "odd") + b"/caf\xe9.png").returncode == 0


def test_a_search_imports_nothing_heavy(indexed: Run, home: Path) -> None:
    script = (
        "import sys\n"
        "sys.argv = ['mmsearch', 'search', 'cat']\n"
        "from mmsearch.cli import cli\n"
        "cli(standalone_mode=False)\n"
        "heavy = {'torch', 'open_clip', 'pandas', 'matplotlib', 'fastapi', 'pyarrow', 'sqlite_utils', 'rich',"
        " 'transformers', 'huggingface_hub', 'onnx', 'faiss', 'PIL', 'filelock', 'numpy.ma',"
        " 'urllib.request', 'multiprocessing',"
        " 'mmsearch.client', 'mmsearch.ingest', 'mmsearch.decoding', 'mmsearch.map', 'mmsearch.cli.training'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_a_query_may_begin_with_what_is_taken_away(indexed: Run) -> None:
    assert indexed("search", "- people", "-k", "1").returncode == 0
    assert indexed("search", "-k", "1", "--", "-x").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence(indexed: Run, home: Path) -> None:
    with open("/dev/full", "wb") as full:
        arguments = command("search", "cat", "--json")
        done = subprocess.run(arguments, cwd=home, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left" in done.stderr and "Traceback" not in done.stderr
