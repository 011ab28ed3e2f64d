"""An index that an earlier version made opens, answers as it did then, and can be written to."""

import json
import tarfile
from pathlib import Path

import pytest

from mmsearch import Index
from mmsearch.store import schema
from tests.indexes.make import HERE, GridEncoder, answers

EXPECTED = json.loads((HERE / "expected.json").read_text())
VERSIONS = sorted(HERE.glob("version-*.tar.gz"))


@pytest.fixture(params=VERSIONS, ids=lambda file: file.name.removesuffix(".tar.gz"))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    return folder


def check(folder: Path) -> None:
    with Index(folder, encoder=GridEncoder()) as index:
        status = index.status()
        assert {name: getattr(status, name) for name in ("images", "passages", "captions")} == {
            name: EXPECTED[name] for name in ("images", "passages", "captions")
        }
        assert [file.path for file in status.skipped] == ["/tmp/old/photos/broken.png"]
        assert sorted(map(str, answers(index))) == sorted(map(str, EXPECTED["hits"]))
        (hit,) = index.search("anything", where={"price": {">": 5}}, kind="image")
        assert hit.id == "sku-1"


def test_it_answers_as_it_did(old: Path) -> None:
    check(old)


def test_it_answers_as_it_did_once_a_writer_has_migrated_it(old: Path) -> None:
    with Index(old, encoder=GridEncoder()) as index:
        index.add_texts(["red and green and gone"], ids=["new"])
        assert index.remove(ids=["new"]) == 1
    check(old)


def test_an_index_is_kept_of_every_version() -> None:
    """At a new version, check out the one before and run `python -m tests.indexes.make` there."""
    assert len(VERSIONS) >= schema.VERSION - 1
