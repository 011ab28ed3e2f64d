"""What every test may use, and which tests run when: slow ones only with `--slow`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.chromium"]

# Nothing here may look for a network; every model that a test uses is made or shipped
os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("mmsearch", deadline=None)  # another test may have the core meanwhile
settings.load_profile("mmsearch")
# Where every core has a test of its own, threads of one would only wait for those of another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow") and not config.getoption("-m"):
        config.hook.pytest_deselected(items=[item for item in items if "slow" in item.keywords])
        items[:] = [item for item in items if "slow" not in item.keywords]


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def command(*arguments: str | bytes) -> list[str | bytes]:
    """The command line of this checkout."""
    return [sys.executable, str(ROOT / "cli.py"), *arguments]


def as_from_a_terminal() -> None:
    """For a child process: heed Ctrl-C, which a shell has what it starts in the background ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, current folder and cache, with no settings of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("MMSEARCH_INDEX", "MMSEARCH_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def mmsearch(home: Path) -> Run:
    """Run the command line in a subprocess, as a user does."""

    def run(
        *arguments: str | bytes, stdin: bytes = b"", cwd: Path = home, prefix: Sequence[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run([*prefix, *command(*arguments)], input=stdin, capture_output=True, cwd=cwd, timeout=120)
        return subprocess.CompletedProcess(
            done.args, done.returncode, os.fsdecode(done.stdout), done.stderr.decode("utf-8", "backslashreplace")
        )

    return run
