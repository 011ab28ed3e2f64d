"""The API is what its OpenAPI description says, whatever is sent to it.

The same cases every time, so that a change is never blamed for what chance found. For other ones, and more:

    MMSEARCH_TEST_SEED=2 MMSEARCH_TEST_CASES=130 pytest -m slow tests/test_serve_contract.py  # about 5,000 cases
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmsearch import Index
from mmsearch.serve.settings import Settings
from tests.colours import COLOURS, ColourEncoder, plain
from tests.served import serving


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for colour in COLOURS:
        plain(colour).save(tmp_path / "in" / f"{colour}.png")
    (tmp_path / "in" / "note.txt").write_text("a red note")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        with serving(index, Settings(port=0, allowed=(str(tmp_path / "in"),))) as served:
            done = subprocess.run(
                [
                    str(Path(sys.executable).with_name("schemathesis")),
                    "run",
                    f"{served.url}/api/openapi.json",
                    f"--max-examples={os.environ.get('MMSEARCH_TEST_CASES', '40')}",  # of each operation
                    f"--seed={os.environ.get('MMSEARCH_TEST_SEED', '1')}",
                    "--generation-database=none",
                    # A query of no terms, a cursor of yesterday, a picture of random bytes: no schema can tell
                    "--exclude-checks=positive_data_acceptance",
                ],
                cwd=tmp_path,
                capture_output=True,
                text=True,
            )
            assert served.http.get("/healthz").status_code == 200
    assert done.returncode == 0, done.stdout[-10_000:]
