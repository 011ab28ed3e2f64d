"""The README says what happens: every block of it is run, in its order, in a folder like a fresh checkout."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
HOME = "/home/ann/mmsearch"
PORT = "8765"  # that `mmsearch serve` listens at; another one here, which is free


@pytest.fixture
def checkout(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a fresh checkout, with the program in the path."""
    for name in ("photos", "mmsearch", "cli.py", "pyproject.toml"):
        (home / name).symlink_to(ROOT / name)
    (home / "indexes").mkdir()
    (home / "bin").mkdir()
    program = home / "bin" / "mmsearch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmsearch "$@"\n')
    program.chmod(0o755)
    programs = (str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(programs))
    monkeypatch.setenv("BROWSER", "true")  # the program of that name, which opens nothing
    return home


def test_every_block_of_the_readme_runs_as_it_stands(checkout: Path) -> None:
    run_blocks(TEXT, checkout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_block_about_the_api_runs_as_it_stands(checkout: Path) -> None:
    subprocess.run([sys.executable, "cli.py", "index", "photos", "-q", "--model", "lite"], cwd=checkout, check=True)
    run_blocks((ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), checkout)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["judging", "training", "encoders"])
def test_every_block_of_a_page_runs_as_it_stands(page: str, checkout: Path) -> None:
    run_blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), checkout)


def run_blocks(text: str, home: Path) -> None:
    """Run the blocks of a page in their order; a server that one starts answers those behind it."""
    with contextlib.ExitStack() as servers:
        _run_blocks(text, home, servers)


def _run_blocks(text: str, home: Path, servers: contextlib.ExitStack) -> None:
    said = ""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for in_ci, language, code in re.findall(r"(<!-- ci: \w+ -->\n)?```(\w+)\n(.*?)```", text, re.DOTALL):
        code = code.replace(PORT, port)
        if in_ci:  # installs; .ci/run runs these, taken from the README as well
            code = code.split(" && ", 1)[1] if "cli.py" in code else ":"
        if language == "text":
            assert _masked(said, home) == _masked(code, home)
            continue
        if language == "json":
            assert _shape(said) == _shape(code)
            continue
        if code.startswith("mmsearch serve"):
            servers.enter_context(_serving(f"exec {code.strip()} --port {port}", home, port))
            continue
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        said = done.stdout


def test_the_readme_documents_every_key_of_a_hit() -> None:
    from mmsearch.present import hit_object
    from mmsearch.search import Hit

    keys = set(hit_object(Hit(1, 0.5, "image", "a", None, None)))
    first_cells = re.findall(r"^\| (`[^|]*) \|", TEXT, re.MULTILINE)
    documented = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    assert keys <= documented


@contextlib.contextmanager
def _serving(command: str, home: Path, port: str) -> Iterator[None]:
    server = subprocess.Popen(["bash", "-c", command], cwd=home, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
                break
            assert server.poll() is None, server.communicate()[1]
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _masked(text: str, home: Path) -> list[str]:
    """The first lines of a table without what differs from machine to machine: scores and where the checkout lies."""
    lines = text.replace(str(ROOT), HOME).replace(str(home), HOME).splitlines()[:4]
    return [re.sub(r"\d\.\d+", "0.0", re.sub(r" +", " ", line)).strip() for line in lines]


def _shape(text: str) -> list[tuple[str, str]]:
    """The keys of a JSON array's first object, and the types of their values."""
    return [(key, type(value).__name__) for key, value in json.loads(text)[0].items()]
