"""The README says what happens: every block of it is run, in its order, in a folder like a fresh checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- ci: \w+ -->\n)?```(\w+)\n(.*?)```", TEXT, re.DOTALL)
HOME = "/home/ann/mmsearch"


def test_every_block_of_the_readme_runs_as_it_stands(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("photos", "mmsearch", "cli.py", "pyproject.toml"):
        (home / name).symlink_to(ROOT / name)
    (home / "indexes").mkdir()
    (home / "bin").mkdir()
    program = home / "bin" / "mmsearch"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmsearch "$@"\n')
    program.chmod(0o755)
    programs = (str(home / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(programs))
    said = ""
    for in_ci, language, code in BLOCKS:
        if in_ci:  # installs; .ci/run runs these, taken from the README as well
            code = code.split(" && ", 1)[1] if "cli.py" in code else ":"
        if language == "text":
            assert _masked(said, home) == _masked(code, home)
            continue
        if language == "json":
            assert _shape(said) == _shape(code)
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


def _masked(text: str, home: Path) -> list[str]:
    """The first lines of a table without what differs from machine to machine: scores and where the checkout lies."""
    lines = text.replace(str(ROOT), HOME).replace(str(home), HOME).splitlines()[:4]
    return [re.sub(r"\d\.\d+", "0.0", re.sub(r" +", " ", line)).strip() for line in lines]


def _shape(text: str) -> list[tuple[str, str]]:
    """The keys of a JSON array's first object, and the types of their values."""
    return [(key, type(value).__name__) for key, value in json.loads(text)[0].items()]
