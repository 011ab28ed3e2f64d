"""The API is what its OpenAPI description says, whatever is sent to it.

The same cases every time, so that a change is never blamed for what chance found. For other ones, and more:

    MMSEARCH_TEST_SEED=2 MMSEARCH_TEST_CASES=190 pytest -m slow tests/test_serve_contract.py  # about 5,000 cases
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmsearch import Index
from mmsearch.serve.settings import Settings
from tests.colours import COLOURS, ColourEncoder, plain
from tests.served import serving

# An address or a header too long for the server is refused as that, whatever else is wrong with it
CONFIG = """[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 414, 415, 422, 428, 429, 431]
"""


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for colour in COLOURS:
        plain(colour).save(tmp_path / "in" / f"{colour}.png")
    (tmp_path / "in" / "note.txt").write_text("a red note")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
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
    said = re.sub(r"(?:%[0-9A-F]{2}){200,}", "%…", done.stdout)  # an address is as long as chance will have it
    assert done.returncode == 0, said[-20_000:]
