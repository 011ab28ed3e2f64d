"""An app moves from an index in its own process to a server by one line: the same promises, kept over both."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mmsearch import Client, Index, Progress, Query
from mmsearch.errors import Error, MediaError, QueryError, ServerError, SourceError, UsageError
from mmsearch.query import Term
from mmsearch.serve.settings import Settings
from tests.colours import COLOURS, ColourEncoder, plain, swatch
from tests.served import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for seed in range(3):
            swatch(colour, seed).save(folder / colour / f"{seed}.png")
    (folder / "red" / "0.txt").write_text("a red wall in Freiburg")
    (folder / "notes.txt").write_text("green is the meadow")
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module", params=["embedded", "served"])
def index(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with Index(tmp_path_factory.mktemp(request.param) / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        index.add_images([plain("red")], ids=["sku/1"], facts=[{"price": 12, "colour": "red"}])
        if request.param == "embedded":
            yield index
        else:
            with serving(index, Settings(port=0, allowed=(str(folder),))) as served, Client(served.url) as client:
                yield client


def colours(index: Index, query: object, **options: object) -> list[str]:
    hits = index.search(query, **options)  # type: ignore[arg-type]
    return [Path(hit.path).parent.name for hit in hits if hit.path is not None]


def test_words_find_pictures(index: Index) -> None:
    hits = index.search("red", k=4)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4] and set(colours(index, "red", k=4)) == {"red"}
    assert isinstance(hits[0].score, float) and hits[0].found_by


def test_sums_of_words_and_pictures(index: Index, folder: Path) -> None:
    assert set(colours(index, f"{folder}/blue/0.png + 0.5*{folder}/blue/1.png", k=1)) == {"blue"}
    assert set(colours(index, folder / "green" / "1.png", k=2)) == {"green"}
    assert set(colours(index, plain("yellow"), k=3)) == {"yellow"}
    assert set(colours(index, io.BytesIO((folder / "white" / "0.png").read_bytes()), k=2)) == {"white"}


def test_a_picture_is_not_its_own_answer(index: Index, folder: Path) -> None:
    hits = index.search(folder / "blue" / "0.png", k=50)
    assert str(folder / "blue" / "0.png") not in [hit.path for hit in hits]


def test_items_and_vectors_are_terms(index: Index) -> None:
    (blue,) = index.search("blue", k=1)
    assert set(colours(index, Query.of_item(blue.id), k=2)) == {"blue"}
    assert set(colours(index, Query((Term(1.0, vector=index.encode("green")),)), k=2)) == {"green"}
    assert blue.id not in [hit.id for hit in index.search(Query.words("red").refined(like=[blue.id]), k=50)]


def test_vectors_are_those_of_the_index(index: Index, folder: Path) -> None:
    vector = index.encode(f"red + {folder}/blue/0.png")
    assert vector.shape == (13,) and vector.dtype == np.float32 and abs(float(np.linalg.norm(vector)) - 1) < 1e-5


def test_filters(index: Index, folder: Path) -> None:
    assert set(colours(index, "red", under=folder / "blue", k=50)) == {"blue"}
    assert [hit.id for hit in index.search("red", where={"price": {"<": 50}, "colour": ["red", "blue"]})] == ["sku/1"]
    assert {hit.kind for hit in index.search("red", kind="text", k=50)} == {"text"}
    assert index.search("red", near=(48.86, 2.35, 25.0), after="2023") == []
    assert all(hit.score >= 0.9 for hit in index.search("red", min_score=0.9, k=50))


def test_more_hits_than_there_are(index: Index) -> None:
    hits = index.search("red", k=2_000)
    assert len(hits) == len({hit.id for hit in hits}) == 3 * len(COLOURS) + 2


def test_lookup(index: Index, folder: Path) -> None:
    assert index.lookup(folder / "green" / "0.png", k=1)[0].text == "green is the meadow"
    assert index.lookup(plain("red"), k=1)[0].text == "a red wall in Freiburg"


def test_items(index: Index, folder: Path) -> None:
    hit = next(hit for hit in index.search("red", k=50) if hit.path == str(folder / "red" / "0.png"))
    item = index.item(hit.id)
    file = folder / "red" / "0.png"
    assert (item.path, item.captions, item.size_bytes) == (
        str(file),
        ("a red wall in Freiburg",),
        file.stat().st_size,
    )
    assert item.modified_ns is not None and abs(item.modified_ns - file.stat().st_mtime_ns) < 2_000
    assert index.item("sku/1").facts == {"price": 12, "colour": "red"}


def test_what_people_say_is_kept(index: Index) -> None:
    red, blue = (index.search(colour, k=1, kind="image")[0].id for colour in ("red", "blue"))
    assert index.add_feedback("  red   things", like=[red], unlike=[blue]) == 2
    assert sorted(index.feedback()) == sorted([("red things", red, True), ("red things", blue, False)])
    assert index.add_feedback("red things", like=[blue]) == 1
    assert ("red things", blue, True) in index.feedback() and len(index.feedback()) == 2
    with pytest.raises(UsageError, match="fit and not to fit"):
        index.add_feedback("red", like=[red], unlike=[red])
    with pytest.raises(UsageError):
        index.add_feedback("", like=[red])
    with pytest.raises(SourceError):
        index.add_feedback("red", like=["not there"])


def test_the_map(index: Index) -> None:
    shares: list[float] = []
    map_ = index.map(progress=shares.append)
    status = index.status()
    assert len(map_) == status.images + status.passages and map_.is_current and shares[-1] == 1.0
    assert {index.item(id).kind == "text" for id in np.array(map_.ids)[map_.is_text]} == {True}
    assert map_.points.shape == (len(map_), 2) and map_.points.min() >= 0 and map_.points.max() <= 1
    again = index.map()
    assert np.array_equal(again.points, map_.points)


def test_status(index: Index, folder: Path) -> None:
    status = index.status()
    assert (status.images, status.passages, status.captions, status.model) == (19, 1, 1, "colours")
    assert [(Path(file.path).name, file.skipped) for file in status.skipped] == [("broken.jpg", "is empty")]
    assert status.roots == (str(folder),) and index.exists


def test_folders_are_brought_up_to_date_with_progress(index: Index, folder: Path) -> None:
    seen: list[Progress] = []
    report = index.add(folder, progress=seen.append)
    assert (report.unchanged, report.added, len(report.skipped)) == (19, 0, 1)
    assert seen[-1].done == seen[-1].total


def test_mistakes_are_the_same_errors(index: Index, folder: Path) -> None:
    for error, ask in (
        (QueryError, lambda: index.search("red - red")),
        (QueryError, lambda: index.search("./not-there.png")),
        (QueryError, lambda: index.search(Query((Term(1.0, vector=np.ones(3, np.float32)),)))),
        (QueryError, lambda: index.search(folder / "not-there.png")),
        (SourceError, lambda: index.item("nobody")),
        (SourceError, lambda: index.search(Query.of_item("nobody"))),
        (MediaError, lambda: index.search(b"not a picture")),
        (MediaError, lambda: index.lookup(b"")),
        (UsageError, lambda: index.search("red", k=0)),
        (UsageError, lambda: index.search("red", after="tomorrow")),
        (UsageError, lambda: index.search("red", near=(91.0, 0.0, 1.0))),
        (UsageError, lambda: index.search("red", where={"price": {"~": 1}})),
    ):
        with pytest.raises(error):
            ask()


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServerError, match="mmsearch serve"):
        client.search("red")


def test_a_token_is_sent_and_one_that_is_missing_is_said(tmp_path: Path) -> None:
    token = "correct-horse-battery-staple"
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts(["red"])
        with serving(index, Settings("0.0.0.0", 0, token)) as served:
            with Client(served.url) as stranger, pytest.raises(ServerError, match="token"):
                stranger.search("red")
            with Client(served.url, token=token) as client:
                assert len(client.search("red")) == 1


def test_only_allowed_folders_are_added_and_a_watcher_that_raises_cancels(tmp_path: Path, folder: Path) -> None:
    class Enough(Exception):
        pass

    def enough(progress: Progress) -> None:
        raise Enough

    with (
        Index(tmp_path / "index", encoder=ColourEncoder()) as index,
        serving(index, Settings(port=0, allowed=(str(folder),))) as served,
        Client(served.url) as client,
    ):
        assert not client.exists
        with pytest.raises(Error, match="--allow"):
            client.add("/etc")
        with pytest.raises(Enough):
            client.add(folder, progress=enough)
        report = client.add(folder)
        assert report.added + report.unchanged == 19 and client.exists
