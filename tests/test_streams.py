"""Streams that are closed or full, terminals that understand nothing, and a machine without memory: every command."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmsearch.cli import COMMANDS
from tests.colours import plain
from tests.conftest import Run, command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a POSIX shell, /dev/full and /proc")

# Every command as it is used, and whether it prints results on stdout
USED: dict[str, tuple[list[str], bool]] = {
    "index": (["index", "red.png"], True),
    "search": (["search", "red", "-k", "1"], True),
    "lookup": (["lookup", "red.png"], True),
    "match": (["match", "red.png", "red"], True),
    "classify": (["classify", "red.png", "--labels", "red,blue"], True),
    "describe": (["describe", "red.png", "--json"], True),
    "duplicates": (["duplicates", "--json"], True),
    "status": (["status"], True),
    "remove": (["remove", "blue.png"], True),  # which the tests put in again
    "serve": (["serve", "--port", "0", "--host", "no such host"], False),
    "models": (["models"], True),
    "pairs": (["pairs", "check", "pairs.csv"], True),
    "train": (["train", "heads", "--list"], True),
    "heads": (["heads", "list"], True),
    "feedback": (["feedback", "list"], True),
    "evaluate": (["evaluate", "pairs.csv", "--json"], True),
}
FAST = ("search", "status", "index")
EVERY = [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in USED]


@pytest.fixture
def indexed(mmsearch: Run, home: Path) -> Path:
    for colour in ("red", "blue"):
        plain(colour).save(home / f"{colour}.png")
        (home / f"{colour}.txt").write_text(f"a {colour} square, café\n")
    (home / "pairs.csv").write_text("path,text\nred.png,a red square\nblue.png,a blue square\n")
    (home / "many").mkdir()
    assert mmsearch("index", "red.png", "blue.png", "red.txt", "--model", "lite", "-q").returncode == 0
    return home


def test_every_command_is_here() -> None:
    assert {*USED} == {*COMMANDS}


@pytest.mark.parametrize("name", EVERY)
def test_a_closed_or_full_stdout_is_said_and_nothing_goes_wrong(indexed: Path, name: str) -> None:
    _, prints = USED[name]
    for redirection in (">&-", ">/dev/full"):
        done = _used(indexed, name, redirection)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
        if prints:
            assert done.returncode == 1 and "The output cannot be written" in done.stderr, (redirection, done.stderr)
    _is_sound(indexed)


@pytest.mark.parametrize("name", EVERY)
def test_a_closed_or_full_stderr_or_stdin_stops_no_command(indexed: Path, name: str) -> None:
    usual = _used(indexed, name, "</dev/null")
    for redirection in ("2>&-", "2>/dev/full", "<&-", "<&- 2>&-"):
        done = _used(indexed, name, redirection)
        assert done.returncode == usual.returncode, (redirection, done.stderr)
        assert "Traceback" not in done.stderr
        if name != "index":  # which says how long it took
            assert done.stdout == usual.stdout
    assert _used(indexed, name, "<&- >&- 2>&-").returncode in (0, 1)
    _is_sound(indexed)


def test_a_closed_stdin_that_is_to_be_read_is_one_sentence(indexed: Path) -> None:
    for arguments in (["search", "-"], ["lookup", "-"]):
        done = _in_a_shell(indexed, arguments, "<&-")
        assert done.returncode == 1 and done.stderr == "Error: stdin cannot be read: Bad file descriptor.\n"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_no_escape_sequence(indexed: Path, name: str, term: str) -> None:
    arguments, _ = USED[name]
    arguments = [argument for argument in arguments if argument != "--json"]
    shown = _in_a_terminal(indexed, arguments, TERM=term)
    assert "\x1b" not in shown and "Traceback" not in shown, shown


def test_a_terminal_that_understands_them_gets_links(indexed: Path) -> None:
    assert "\x1b]8;;file://" in _in_a_terminal(indexed, ["search", "red"], TERM="xterm-256color")
    assert not re.search(r"\x1b\[[0-9;]*m", _in_a_terminal(indexed, ["search", "red"], TERM="xterm", NO_COLOR="1"))


@pytest.mark.parametrize("name", EVERY)
def test_a_narrow_terminal_and_a_poor_locale_break_nothing(indexed: Path, name: str) -> None:
    usual = _used(indexed, name, "")
    poor = _used(indexed, name, "", COLUMNS="20", LINES="3", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert poor.returncode == usual.returncode and "Traceback" not in poor.stderr, poor.stderr
    if "--json" in USED[name][0]:
        assert json.loads(poor.stdout) == json.loads(usual.stdout)


def test_json_stays_json_where_a_stream_is_ascii(mmsearch: Run, home: Path) -> None:
    (home / "a.txt").write_text("café 🐈\n", encoding="utf-8")
    mmsearch("index", "a.txt", "--model", "lite", "-q")
    done = _in_a_shell(home, ["search", "cat", "--json"], "", PYTHONIOENCODING="ascii")
    assert [hit["text"] for hit in json.loads(done.stdout)] == ["café 🐈"]


@pytest.mark.parametrize("megabytes", [150, *(pytest.param(n, marks=pytest.mark.slow) for n in (200, 250, 350, 450))])
@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "what was never asked before"],
        *(
            pytest.param(USED[name][0], marks=pytest.mark.slow)
            for name in ("lookup", "match", "classify", "duplicates", "evaluate", "status")
        ),
    ],
)
def test_too_little_memory_is_one_sentence(indexed: Path, arguments: list[str], megabytes: int) -> None:
    if megabytes == 150 and arguments[0] != "search":
        pytest.skip("native libraries may end the process themselves where so little is left to load them")
    done = _in_a_shell(indexed, arguments, "", before=f"ulimit -v {megabytes}000; ")
    one_sentence = done.stderr.count("\n") == 1 and "memory" in done.stderr.lower()  # ours, or OpenBLAS's own
    assert done.returncode == 0 or (done.returncode == 1 and one_sentence), done.stderr
    _is_sound(indexed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "--limit", "1", "x"], "Did you mean -k?"),
        (["search", "--jsn", "x"], "Did you mean --json?"),
        (["search", "--since", "2020", "x"], "Did you mean --after?"),
        (["search", "--utterly-else", "x"], "There is no option --utterly-else.\n"),
        (["lookup", "-odd.jpg"], "The file of that name is written ./-odd.jpg"),
    ],
)
def test_what_is_suggested_for_an_option_makes_sense(
    mmsearch: Run, home: Path, arguments: list[str], says: str
) -> None:
    (home / "-odd.jpg").touch()
    done = mmsearch(*arguments)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert "--like" not in done.stderr


def test_advice_names_the_index_in_use(mmsearch: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "many").mkdir()
    for number in range(12):
        (home / "many" / f"{number}.jpg").write_bytes(b"")
    assert "`mmsearch status -i odd` lists" in mmsearch("index", "many", "-i", "odd", "--model", "lite").stderr
    assert "`mmsearch status` lists" in mmsearch("index", "many", "--model", "lite").stderr
    assert "mmsearch index FOLDER -i none" in mmsearch("search", "x", "-i", "none").stderr
    assert "mmsearch index FOLDER -i './a b'" in mmsearch("search", "x", "-i", "./a b").stderr
    monkeypatch.setenv("MMSEARCH_INDEX", "none")
    assert mmsearch("search", "x").stderr.endswith("mmsearch index FOLDER\n")


def _used(folder: Path, name: str, redirection: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    if name == "remove":
        _in_a_shell(folder, ["index", "blue.png", "-q"], "")
    return _in_a_shell(folder, USED[name][0], redirection, **environment)


def _in_a_shell(
    folder: Path, arguments: list[str], redirection: str, *, before: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    shell = f'{before}exec "$@" {redirection}'
    return subprocess.run(
        ["sh", "-c", shell, "sh", *map(str, command(*arguments))],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _in_a_terminal(folder: Path, arguments: list[str], **environment: str) -> str:
    """What a program writes to a terminal, on stdout and stderr."""
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        command(*arguments), cwd=folder, env=os.environ | environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 65536):
            written += part
    run.wait(60)
    os.close(ours)
    return written.decode()


def _is_sound(folder: Path) -> None:
    """Nothing was written into the index that is none of its own."""
    done = _in_a_shell(folder, ["search", "red", "-k", "1", "--paths"], "")
    assert (done.returncode, done.stdout.strip()) == (0, str(folder / "red.png")), done.stderr
