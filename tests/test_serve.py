"""What an app gets over HTTP: the library's answers, with the names that --json has."""

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mmsearch import Index
from mmsearch.present import hit_object
from mmsearch.serve.files import zipped
from mmsearch.serve.settings import Limits, Settings
from tests.colours import COLOURS, ColourEncoder, plain, swatch
from tests.served import Served, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each colour, notes, and files that are odd."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for seed in range(6):
            swatch(colour, seed, (320, 240)).save(folder / colour / f"{seed}.png")
    (folder / "red" / "0.txt").write_text("a red wall in Freiburg")
    (folder / "notes.txt").write_text("green is the meadow behind the house")
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Index(tmp_path_factory.mktemp("served") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        index.add_images([plain("red")], ids=["odd/id?&#%"], facts=[{"price": 12}])
        with serving(index, Settings(port=0, allowed=(str(folder),))) as served:
            yield served


def search(served: Served, **params: Any) -> list[dict[str, Any]]:
    answer = served.http.get("/api/search", params=params)
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    swatch(colour, 99).save(buffer, "PNG")
    return buffer.getvalue()


def test_words_find_what_the_library_finds_with_the_same_fields(served: Served) -> None:
    hits = search(served, q="red", k=5)
    assert hits == [hit_object(hit) for hit in served.index.search("red", k=5)]


def test_terms_are_added_and_taken_away(served: Served) -> None:
    (first, *_) = search(served, q="red + green - blue", k=3)
    assert first["id"] == served.index.search("red + green - blue", k=1)[0].id


def test_pages_follow_on_each_other_to_the_end(served: Served) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = served.http.get("/api/search", params={"q": "blue", "k": 7} | ({"cursor": cursor} if cursor else {}))
        seen += [hit["id"] for hit in page.json()["hits"]]
        cursor = page.json()["cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 6 * len(COLOURS) + 2
    assert seen[:6] == [hit.id for hit in served.index.search("blue", k=6)]


def test_a_cursor_needs_nothing_beside_it_and_says_when_it_is_too_old(served: Served) -> None:
    first = served.http.get("/api/search", params={"q": "blue", "k": 2}).json()
    assert [hit["rank"] for hit in search(served, cursor=first["cursor"], k=2)] == [3, 4]
    old = served.http.get("/api/search", params={"cursor": "AAAAAAAAAAAA.30"})
    assert old.status_code == 410
    again = search(served, q="blue", cursor="AAAAAAAAAAAA.2", k=2)  # with the query, it is asked anew
    assert [hit["rank"] for hit in again] == [3, 4]


@pytest.mark.parametrize(
    "filters",
    [
        {"kind": "text"},
        {"kind": "image", "min_score": "0.9"},
        {"after": "2023-07", "before": "2024"},
        {"near": "48.86,2.35,25"},
        {"where": '{"price": {"<": 50}}'},
    ],
)
def test_filters_are_those_of_the_library(served: Served, filters: dict[str, Any]) -> None:
    options: dict[str, Any] = dict(filters)
    if "near" in options:
        options["near"] = (48.86, 2.35, 25.0)
    if "where" in options:
        options["where"] = json.loads(options["where"])
    if "min_score" in options:
        options["min_score"] = 0.9
    assert [hit["id"] for hit in search(served, q="red", k=50, **filters)] == [
        hit.id for hit in served.index.search("red", k=50, **options)
    ]


def test_a_folder_is_a_filter(served: Served, folder: Path) -> None:
    hits = search(served, q="red", under=[str(folder / "blue"), str(folder / "green")], k=50)
    assert {Path(hit["path"]).parent.name for hit in hits} == {"blue", "green"}


def test_more_like_this_and_less_like_that(served: Served, folder: Path) -> None:
    blue = search(served, q="blue", k=1)[0]["id"]
    yellow = search(served, q="yellow", k=1)[0]["id"]
    hits = search(served, q="red", like=blue, unlike=yellow, k=50)
    assert not {hit["id"] for hit in hits} & {blue, yellow}
    assert search(served, like=blue, k=1)[0]["path"].startswith(str(folder / "blue"))


def test_a_picture_is_a_query(served: Served, folder: Path) -> None:
    answer = served.http.post("/api/search?k=3", content=png("yellow"), headers={"content-type": "image/png"})
    assert {Path(hit["path"]).parent.name for hit in answer.json()["hits"]} == {"yellow"}
    known = (folder / "yellow" / "0.png").read_bytes()
    answer = served.http.post("/api/search?k=50", content=known, headers={"content-type": "image/png"})
    assert str(folder / "yellow" / "0.png") not in [hit["path"] for hit in answer.json()["hits"]]


def test_a_picture_and_words_are_a_query_too(served: Served) -> None:
    body = {"q": "red", "terms": [{"picture": base64.b64encode(png("blue")).decode(), "weight": -1}], "k": 1}
    answer = served.http.post("/api/search", json=body)
    assert "red" in answer.json()["hits"][0]["path"]


def test_a_vector_is_a_query(served: Served) -> None:
    encoded = served.http.post("/api/encode", json={"texts": ["green", "blue"]}).json()
    assert (encoded["model"], encoded["dim"], len(encoded["vectors"])) == ("colours", 13, 2)
    answer = served.http.post("/api/search", json={"terms": [{"vector": encoded["vectors"][0]}], "k": 1})
    assert "green" in answer.json()["hits"][0]["path"]
    shown = served.http.post("/api/encode", content=png("blue"), headers={"content-type": "image/png"}).json()
    assert len(shown["vectors"]) == 1


def test_lookup_finds_words_for_a_picture_and_for_an_item(served: Served) -> None:
    answer = served.http.post("/api/lookup", content=png("green"), headers={"content-type": "image/png"})
    assert answer.json()["hits"][0]["text"] == "green is the meadow behind the house"
    red = search(served, q="red", k=1)[0]["id"]
    assert served.http.get("/api/lookup", params={"like": red}).json()["hits"][0]["text"] == "a red wall in Freiburg"


def test_an_item_is_known_by_its_id_whatever_is_in_it(served: Served, folder: Path) -> None:
    hit = next(hit for hit in search(served, q="red", k=50) if hit["path"] == str(folder / "red" / "0.png"))
    item = served.http.get(f"/api/items/{hit['id']}").json()
    assert (item["captions"], item["file_is_there"]) == (["a red wall in Freiburg"], True)
    assert item["size_bytes"] == (folder / "red" / "0.png").stat().st_size
    odd = served.http.get("/api/items/odd%2Fid%3F%26%23%25").json()
    assert (odd["id"], odd["path"], odd["facts"]) == ("odd/id?&#%", None, {"price": 12})
    assert served.http.get("/api/items/mm-999999").status_code == 404


def test_several_items_are_known_at_once_in_the_order_that_they_were_asked_for(served: Served) -> None:
    ids = [hit["id"] for hit in search(served, q="red", k=3)][::-1]
    items = served.http.post("/api/items", json={"ids": [*ids, ids[0]]}).json()["items"]
    assert [item["id"] for item in items] == [*ids, ids[0]]
    assert items[0] == served.http.get(f"/api/items/{quote(ids[0], safe='')}").json()
    assert served.http.post("/api/items", json={"ids": ["mm-999"]}).status_code == 404


def test_the_map_is_made_once_and_brought_up_to_date_when_the_index_changes(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        assert served.http.get("/api/map").json()["points"] is None
        assert served.http.get("/api/map/points").status_code == 404
        index.add_images([swatch(name, seed) for name in COLOURS for seed in range(5)])
        index.add_texts(["red"])
        state = made_map(served)
        assert (state["points"], state["is_current"], state["error"]) == (31, True, None)
        points = served.http.get("/api/map/points")
        assert len(points.content) == 31 * 9 and points.content[-31:].count(1) == 1
        held = {"if-none-match": points.headers["etag"]}
        assert served.http.get("/api/map/points", headers=held).status_code == 304
        index.add_texts(["blue"])
        assert served.http.get("/api/map").json()["is_current"] is False
        assert made_map(served)["points"] == 32
        assert served.http.get("/api/map/points", headers=held).status_code == 200


def made_map(served: Served) -> dict[str, Any]:
    assert served.http.post("/api/map").status_code == 202
    while (state := served.http.get("/api/map").json())["state"] == "running":
        time.sleep(0.05)
    return dict(state)


def test_a_thumbnail_is_made_once_and_kept_with_the_index(served: Served) -> None:
    hit = search(served, q="blue", kind="image", k=1)[0]
    first = served.http.get(f"/api/items/{hit['id']}/thumbnail")
    assert first.headers["content-type"] == "image/jpeg" and first.content.startswith(b"\xff\xd8")
    assert "private" in first.headers["cache-control"] and "max-age" in first.headers["cache-control"]
    again = served.http.get(f"/api/items/{hit['id']}/thumbnail", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (served.index.folder / "thumbnails.db").is_file()
    assert served.http.get(f"/api/items/{hit['id']}/thumbnail?size=333").status_code == 422
    text = search(served, q="green", kind="text", k=1)[0]
    assert served.http.get(f"/api/items/{text['id']}/thumbnail").status_code == 404


def test_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    plain("red").save(tmp_path / "a.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "a.png")
        with serving(index) as served:
            (tmp_path / "a.png").unlink()
            (hit,) = search(served, q="red")
            assert served.http.get(f"/api/items/{hit['id']}").json()["file_is_there"] is False
            for part in ("thumbnail", "file"):
                gone = served.http.get(f"/api/items/{hit['id']}/{part}")
                assert gone.status_code == 410 and "Index its folder again" in gone.json()["detail"]


def test_the_file_is_the_file(served: Served) -> None:
    hit = search(served, q="blue", kind="image", k=1)[0]
    answer = served.http.get(f"/api/items/{hit['id']}/file")
    assert answer.content == Path(hit["path"]).read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline; filename*=UTF-8''")


def test_a_selection_is_a_zip_with_each_file_once_and_what_is_missing(served: Served) -> None:
    hits = search(served, q="blue", kind="image", k=4)
    same_names = [
        hit["id"] for hit in search(served, q="red", kind="image", k=50) if str(hit["path"]).endswith("/0.png")
    ]
    ids = [*(hit["id"] for hit in hits), *same_names]
    archive = zipfile.ZipFile(io.BytesIO(served.http.post("/api/zip", json={"ids": ids}).content))
    paths = {served.index.item(id).path for id in ids}
    assert len(archive.namelist()) == len(paths) == len(set(archive.namelist()))
    assert archive.testzip() is None
    assert {archive.read(name) for name in archive.namelist()} == {Path(str(path)).read_bytes() for path in paths}
    assert served.http.post("/api/zip", json={"ids": ["nobody"]}).status_code == 404


def test_a_zip_keeps_folders_and_times_and_tells_equal_names_apart(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    times = {"2019/a.png": 1_550_000_001, "2019/A.png": 0, "2020/a.png": 2_000_000_000, "2020/tr\u00e8s/b.png": 5e9}
    for name, modified_s in times.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        plain("red").save(folder / name)
        os.utime(folder / name, (modified_s, modified_s))
    plain("red").save(folder / "2020" / "gone.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(folder)
        ids = [hit["id"] for hit in search(served, q="red", k=50)]
        (folder / "2020" / "gone.png").unlink()
        archive = zipfile.ZipFile(io.BytesIO(served.http.post("/api/zip", json={"ids": ids}).content))
    assert {name.casefold() for name in archive.namelist()} == {
        *("2019/a.png", "2019/a (2).png", "2020/a.png", "2020/tr\u00e8s/b.png", "missing.txt")
    }
    assert "gone.png: no such file" in archive.read("missing.txt").decode()
    assert archive.testzip() is None
    by_name = {entry.filename: entry for entry in archive.infolist()}
    local = time.localtime(2_000_000_000)[:6]
    assert by_name["2020/a.png"].date_time == (*local[:5], local[5] // 2 * 2)
    assert struct.unpack("<2sHBi", by_name["2020/a.png"].extra[-9:]) == (b"UT", 5, 1, 2_000_000_000)
    assert {by_name["2020/tr\u00e8s/b.png"].date_time[0], by_name["missing.txt"].date_time[0]} == {
        2107,
        time.localtime().tm_year,
    }


def test_a_zip_has_any_number_of_files(tmp_path: Path) -> None:
    plain("red", (4, 4)).save(tmp_path / "a.bmp")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(tmp_path / "a.bmp")
        index.add_texts(["red"] * 1_300)
        ids = [f"mm-{number}" for number in range(1, 1_302)]
        archive = zipfile.ZipFile(io.BytesIO(served.http.post("/api/zip", json={"ids": ids}).content))
    assert archive.namelist() == ["a.bmp", "missing.txt"]
    assert len(archive.read("missing.txt").splitlines()) == 1_300  # which came from memory


@pytest.mark.slow
def test_a_zip_of_more_files_than_the_old_form_holds_is_one_that_others_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    plain("red", (4, 4)).save(tmp_path / "in" / "0.bmp")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        (item,) = [index.item(index.search("red")[0].id)]
        items = []
        for number in range(66_000):
            os.symlink("0.bmp", tmp_path / "in" / f"{number + 1}.bmp")
            items.append(replace(item, path=str(tmp_path / "in" / f"{number + 1}.bmp")))
        with open(tmp_path / "many.zip", "wb") as into:
            for chunk in zipped(items, 10**12):
                into.write(chunk)
    assert len(zipfile.ZipFile(tmp_path / "many.zip").namelist()) == 66_000
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tqq", str(tmp_path / "many.zip")], check=False).returncode == 0


def test_a_zip_reaches_whoever_asked_for_it_before_it_is_whole(served: Served) -> None:
    ids = [hit["id"] for hit in search(served, q="red", kind="image", k=50)]
    with served.http.stream("POST", "/api/zip", json={"ids": ids}) as answer:
        assert "content-length" not in answer.headers
        assert next(answer.iter_raw(16)).startswith(b"PK\x03\x04")


def test_status_says_what_the_command_line_says_and_how_the_server_is(served: Served) -> None:
    status = served.http.get("/api/status").json()
    assert (status["images"], status["passages"], status["captions"]) == (37, 1, 1)
    assert (status["exists"], status["model"], status["model_state"]) == (True, "colours", "ready")
    assert [Path(skip["path"]).name for skip in status["skipped"]] == ["broken.jpg"]


def test_an_empty_index_is_a_state_and_no_failure(tmp_path: Path) -> None:
    plain("red").save(tmp_path / "a.png")
    with (
        Index(tmp_path / "index", encoder=ColourEncoder()) as index,
        serving(index, Settings(port=0, allowed=(str(tmp_path),))) as served,
    ):
        status = served.http.get("/api/status").json()
        assert (status["exists"], status["images"], status["model_state"]) == (False, 0, "none")
        answer = served.http.get("/api/search?q=red")
        assert answer.status_code == 404 and "mmsearch index" in answer.json()["detail"]
        served.http.post("/api/index", json={"folders": [str(tmp_path)]})
        assert events(served)[-1]["state"] == "done"
        assert len(search(served, q="red")) == 1
        assert served.http.get("/api/status").json()["model_state"] == "ready"


def events(served: Served) -> list[dict[str, Any]]:
    with served.http.stream("GET", "/api/index/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]


def test_a_run_is_watched_to_its_end(served: Served, folder: Path) -> None:
    started = served.http.post("/api/index", json={"folders": [str(folder)]})
    assert started.status_code == 202 and started.json()["state"] == "running"
    last = events(served)[-1]
    assert last["state"] == "done" and last["report"]["unchanged"] == 37 and last["report"]["skipped_total"] == 1
    assert served.http.get("/api/index").json()["run"]["report"]["unchanged"] == 37


class SlowEncoder(ColourEncoder):
    def encode_images(self, images: Any) -> Any:
        time.sleep(0.3)
        return super().encode_images(images)


def test_a_run_is_cancelled_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(200):
        swatch("red", number).save(tmp_path / "many" / f"{number}.png")
    with (
        Index(tmp_path / "index", encoder=SlowEncoder()) as index,
        serving(index, Settings(port=0, allowed=(str(tmp_path),))) as served,
    ):
        served.http.post("/api/index", json={"folders": [str(tmp_path / "many")]})
        second = served.http.post("/api/index", json={"folders": [str(tmp_path / "many")]})
        assert second.status_code == 409
        while not served.http.get("/api/index").json()["run"]["done"]:
            time.sleep(0.02)
        served.http.delete("/api/index")
        last = events(served)[-1]
        assert last["state"] == "cancelled" and 0 < last["done"] < 200
        assert 0 < served.http.get("/api/status").json()["images"] < 200


def test_every_mistake_is_a_problem_in_one_form(served: Served) -> None:
    for answer, status in (
        (served.http.get("/api/search"), 422),
        (served.http.get("/api/search?q=a&after=tomorrow"), 422),
        (served.http.get("/api/search?q=a&quality=7"), 422),
        (served.http.get("/api/search?q=a&cursor=x"), 422),
        (served.http.get("/api/search?q=a - a"), 422),
        (served.http.get("/api/search?like=nobody"), 404),
        (served.http.get("/api/nothing"), 404),
        (served.http.put("/api/search"), 405),
        (served.http.post("/api/search", content=b"{", headers={"content-type": "application/json"}), 422),
        (served.http.post("/api/search", content=b"hello", headers={"content-type": "text/plain"}), 415),
        (served.http.post("/api/search", content=b"hello", headers={"content-type": "image/png"}), 422),
        (served.http.post("/api/search", json={"terms": [{"vector": [1, 2]}]}), 422),
        (served.http.post("/api/search", json={"terms": [{"vector": [1e300] * 13}]}), 422),
    ):
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.status_code == problem["status"] == status, answer.text
        assert problem["type"].startswith("urn:mmsearch:problem:") and problem["detail"] and problem["title"]


def test_openapi_names_every_route_and_its_errors(served: Served) -> None:
    answer = served.http.get("/api/openapi.json")
    schema = answer.json()
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', answer.text))
    assert referred and referred <= set(schema["components"]["schemas"])
    assert set(schema["paths"]) == {
        "/api/search",
        "/api/lookup",
        "/api/encode",
        "/api/items",
        "/api/feedback",
        "/api/duplicates",
        "/api/map",
        "/api/map/points",
        "/api/items/{id}",
        "/api/items/{id}/thumbnail",
        "/api/items/{id}/file",
        "/api/zip",
        "/api/status",
        "/api/index",
        "/api/index/events",
        "/api/session",
        "/healthz",
        "/metrics",
    }
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]


def test_metrics_count_by_route_and_never_by_id(served: Served) -> None:
    search(served, q="red")
    served.http.get("/api/items/mm-1")
    text = served.http.get("/metrics").text
    assert 'mmsearch_requests_total{method="GET",route="/api/search",status="200"}' in text
    assert 'route="/api/items/{id:path}"' in text and "mm-1" not in text
    assert "mmsearch_texts_encoded" in text


def test_queries_of_many_clients_are_encoded_in_batches(served: Served) -> None:
    import threading

    texts, batches = served.index.texts_encoded
    threads = [threading.Thread(target=search, args=(served,), kwargs={"q": f"red {i}"}) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts, batches = served.index.texts_encoded[0] - texts, served.index.texts_encoded[1] - batches
    assert texts == 40 and batches <= texts


@pytest.mark.skipif(os.name != "posix", reason="needs names that are bytes")
def test_a_name_that_is_not_utf8_comes_out_as_in_json(tmp_path: Path) -> None:
    plain("red").save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path)
        with serving(index) as served:
            (hit,) = search(served, q="red", kind="image")
            assert os.fsencode(hit["path"]).endswith(b"/caf\xe9.png")
            assert served.http.get(f"/api/items/{hit['id']}/thumbnail").status_code == 200
            assert served.http.get(f"/api/items/{hit['id']}/file").status_code == 200
            assert served.http.post("/api/zip", json={"ids": [hit["id"]]}).status_code == 200


def test_the_server_says_when_it_has_too_much_to_do(tmp_path: Path) -> None:
    class Stuck(ColourEncoder):
        def encode_texts(self, texts: Any) -> Any:
            if any("slow" in text for text in texts):
                time.sleep(1.5)
            return super().encode_texts(texts)

    limits = Limits(searches_at_once=1, searches_waiting=0, seconds=0.5)
    with Index(tmp_path / "index", encoder=Stuck()) as index:
        index.add_texts(["red"])
        with serving(index, Settings(port=0, limits=limits)) as served:
            slow = served.http.get("/api/search?q=slow")
            assert slow.status_code == 503 and int(slow.headers["retry-after"]) > 0
            busy = served.http.get("/api/search?q=red")  # the one thread is still at it
            assert busy.status_code == 503
            assert served.http.get("/healthz").json() == {"status": "ok"}
            time.sleep(1.5)
            assert served.http.get("/api/search?q=red").status_code == 200


BODIES = ("/api/search", "/api/encode", "/api/items", "/api/zip", "/api/index", "/api/feedback", "/api/duplicates")
BODIES_TOO = (*BODIES, "/api/session")
MALFORMED = [
    *(
        b"",
        b"x",
        b"{",
        b"[",
        b'{"a"',
        b"null",
        b"5",
        b'"text"',
        b"[]",
        b"[{}]",
        b'{"nobody": 1}',
        b"\xff\xfe",
        b"{\x00}",
    ),
    b"[" * 900,
    b'{"ids": 5, "texts": {}, "folders": "x", "query": [], "threshold": "high", "token": null, "terms": 7}',
    b'{"ids": [], "texts": [], "folders": [], "query": "", "threshold": 7, "token": {}, "terms": [[]]}',
    b'{"ids": [""], "texts": [null], "folders": [""], "query": 1, "threshold": null, "terms": [{"weight": "x"}]}',
    b'{"terms": [{"vector": ["x"]}], "k": 0, "after": "tomorrow", "near": [1], "kind": "film", "cursor": "x"}',
    b'{"terms": [{"picture": "x"}]}',
    b'{"terms": [{"words": "x", "item": "y"}]}',
    b'{"q": "red", "near": [1, 2, "x"], "where": [], "min_score": 5, "like": "x", "k": 1e999}',
    b'{"' + b"long" * 5_000 + b'": 1}',
]
QUERIES = [
    *("k=0", "k=x", "k=501", "k=", "kind=film", "after=tomorrow", "after=2023-02-31", "before=13.7.2023", "near=here"),
    *("near=1,2", "cursor=%27%22%3C", "min_score=high", "min_score=nan", "where=%5B", "nobody=1", "q=" + "x" * 3_000),
    *("q=", "like=", "like=nobody", "q=red&under=", "q=red&" + "&".join(["like=x"] * 50), "size=3", "weight=x"),
]


def check_is_plain(problem: dict[str, Any]) -> None:
    """A sentence for people: none of the words of a validator, a parser or a framework."""
    detail = problem["detail"]
    assert re.match(r"[A-Z\"'/]", detail), detail
    assert detail.endswith(".") and len(detail) <= 400, detail
    for said in (detail, *(part["what"] for part in problem.get("errors") or [])):
        assert not re.search(
            r"should|pattern|\^|\[0-9|Field|Input|pydantic|Invalid|Value error|ctx|Traceback|body:|: \.", said
        ), said
        assert "  " not in said and ".." not in said.replace("…", "")


@pytest.mark.parametrize("path", BODIES_TOO)
def test_whatever_is_wrong_with_a_body_is_said_plainly(served: Served, path: str) -> None:
    for kind in ("application/json", "text/plain"):
        for body in MALFORMED:
            answer = served.http.post(path, content=body, headers={"content-type": kind})
            if answer.is_error:
                assert answer.headers["content-type"] == "application/problem+json"
                assert 400 <= answer.status_code < 500, (body, answer.text)
                check_is_plain(answer.json())
            else:
                assert path == "/api/duplicates" or body == b"{}", (path, body)


@pytest.mark.parametrize("query", QUERIES)
def test_whatever_is_wrong_with_an_address_is_said_plainly(served: Served, query: str) -> None:
    for path in ("/api/search", "/api/lookup", "/api/duplicates", "/api/items/mm-1/thumbnail"):
        answer = served.http.get(f"{path}?{query}")
        if answer.is_error:
            check_is_plain(answer.json())


def test_what_is_no_address_or_no_method_of_one_is_said_plainly(served: Served) -> None:
    for method, path in (("GET", "/nowhere"), ("PUT", "/api/search"), ("DELETE", "/"), ("GET", "/page/nothing.js")):
        check_is_plain(served.http.request(method, path).json())
    assert (
        served.http.put("/api/index").json()["detail"]
        == "The address /api/index takes DELETE and GET and POST, not PUT."
    )


def test_each_field_that_is_wrong_has_its_sentence(served: Served) -> None:
    answer = served.http.get("/api/search?q=red&after=tomorrow&k=0&kind=film&near=here").json()
    assert [part["what"] for part in answer["errors"]] == [
        "'k' is 1 at the least.",
        "'kind' is 'image' or 'text'.",
        "'after' takes a date as 2023, 2023-07 or 2023-07-14.",
        "'near' takes a latitude, a longitude and a distance in km, as 48.86,2.35,25.",
    ]
    assert answer["detail"].startswith("'k' is 1 at the least. 'kind' is")
    body = served.http.post("/api/encode", content=b"x", headers={"content-type": "application/json"}).json()
    assert body["detail"] == "The body is not JSON (line 1, column 1)."
    body = served.http.post("/api/feedback", json={"query": 5, "like": []}).json()
    assert body["detail"] == "'query' takes text."
