"""Attacks on the server: from a page elsewhere, over the network, by hostile bodies, names and files."""

import contextlib
import http.client
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from mmsearch import Index, media
from mmsearch.errors import Error, UsageError
from mmsearch.serve.guard import same
from mmsearch.serve.server import prepare, settings_for
from mmsearch.serve.settings import Limits, Settings
from tests import pictures
from tests.colours import ColourEncoder, plain
from tests.conftest import Run
from tests.served import Served, serving

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    plain("red").save(folder / "red.png")
    (folder / "notes.md").write_text("<script>alert(1)</script> blue")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(body_bytes=3_000_000, json_bytes=50_000, body_seconds=1.5, header_seconds=1.0)
    with Index(tmp_path_factory.mktemp("served") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        with serving(index, Settings(port=0, allowed=(str(folder),), limits=limits)) as served:
            yield served


@pytest.fixture(scope="module")
def guarded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """As another machine reaches it: at every address, with a token."""
    with Index(tmp_path_factory.mktemp("guarded") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        with serving(index, Settings("0.0.0.0", 0, TOKEN, names=("pictures.example",))) as served:
            yield served


# Who may ask


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "0.0.0.0",
        "10.0.0.7",
        "",
        "a b",
        "localhost:x",
    ],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(served: Served, host: str) -> None:
    answer = served.http.get("/api/status", headers={"host": host})
    assert answer.status_code in (400, 421)
    assert "red.png" not in answer.text and "folder" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:8765", "[::1]:9", "127.9.9.9"])
def test_every_name_of_this_machine_is_its_own(served: Served, host: str) -> None:
    assert served.http.get("/healthz", headers={"host": host}).status_code == 200


def test_two_host_headers_are_refused(served: Served) -> None:
    said = raw(served, b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert said.split()[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_a_page_from_elsewhere_can_ask_nothing(served: Served, folder: Path, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/api/search?q=red"), ("GET", "/api/items/mm-1/thumbnail"), ("DELETE", "/api/index")):
        assert served.http.request(method, path, headers=headers).status_code == 403
    bodies: dict[str, dict[str, object]] = {
        "/api/index": {"folders": [str(folder)]},
        "/api/feedback": {"query": "red", "like": ["mm-1"]},
        "/api/duplicates": {},
        "/api/map": {},
        "/api/zip": {"ids": ["mm-1"]},
    }
    for path, body in bodies.items():
        assert served.http.post(path, json=body, headers=headers).status_code == 403
    assert served.http.get("/api/feedback").json()["kept"] == 0
    assert served.http.get("/api/duplicates").json()["number"] == 0
    assert served.http.get("/api/index").json()["run"] is None


def test_a_link_from_elsewhere_leads_to_the_page_alone(served: Served) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert served.http.get("/", headers=headers).status_code == 200
    assert served.http.get("/", headers={**headers, "sec-fetch-mode": "no-cors"}).status_code == 403


def test_a_form_of_another_site_cannot_be_taken_for_json(served: Served, folder: Path) -> None:
    body = f'{{"folders": ["{folder}"]}}'.encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert served.http.post("/api/index", content=body, headers={"content-type": kind}).status_code == 415


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": "mmsearch=x; mmsearch_8765=" + TOKEN},
        {"cookie": "\x01;;;=="},
    ],
)
def test_without_the_token_nothing_of_the_index_is_told(guarded: Served, headers: dict[str, str]) -> None:
    with httpx2.Client(base_url=guarded.url) as stranger:
        for path in (
            "/api/status",
            "/api/search?q=red",
            "/api/items/mm-1",
            "/api/items/mm-1/file",
            "/metrics",
            "/api/openapi.json",
            "/api/index/events",
            "/api/feedback",
            "/api/duplicates",
            "/api/map/points",
            "//api/status",
            "/page/../api/status",
            "/page/%2e%2e/api/status",
        ):
            answer = stranger.get(path, headers=headers)
            assert answer.status_code in (401, 404), path
            assert "red.png" not in answer.text
        assert stranger.get("/healthz").json() == {"status": "ok"}


def test_the_token_is_exchanged_for_a_strict_cookie(guarded: Served) -> None:
    with httpx2.Client(base_url=guarded.url) as browser:
        assert browser.post("/api/session", json={"token": "guessed"}).status_code == 401
        cookie = browser.post("/api/session", json={"token": TOKEN}).headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Domain" not in cookie
        assert browser.get("/api/status").status_code == 200


def test_tokens_are_compared_in_constant_time_whatever_was_sent() -> None:
    assert same(TOKEN, TOKEN)
    assert not same("", TOKEN) and not same("\udcff\u20ac", TOKEN) and not same(TOKEN * 1000, TOKEN)


def test_an_open_server_goes_by_its_addresses_and_names(guarded: Served) -> None:
    for host, status in (("192.168.1.5:80", 200), ("pictures.example", 200), ("evil.example", 421)):
        assert guarded.http.get("/api/status", headers={"host": host}).status_code == status


def test_who_listens_to_others_has_a_token() -> None:
    assert settings_for("127.0.0.1", 0, (), ()).token is None
    assert settings_for("localhost", 0, (), ()).token is None
    first, second = (settings_for("0.0.0.0", 0, (), ()).token for _ in range(2))
    assert first and second and len(first) >= 32 and first != second
    assert settings_for("192.168.1.5", 0, (), (), token=TOKEN).token == TOKEN
    with pytest.raises(UsageError, match="MMSEARCH_TOKEN"):
        settings_for("0.0.0.0", 0, (), (), token="short")


def test_loopback_is_what_is_listened_at(served: Served) -> None:
    others = [
        address[4][0]
        for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
        if not str(address[4][0]).startswith("127.")
    ]
    for other in others:
        with pytest.raises(OSError):
            socket.create_connection((str(other), served.settings.port), timeout=1).close()


# What a browser is held to


def test_every_answer_is_strict(served: Served) -> None:
    for path in ("/", "/api/status", "/api/nothing", "/api/items/mm-1/thumbnail", "/page/nothing", "/api/openapi.json"):
        headers = served.http.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_the_page_brings_everything_itself(served: Served) -> None:
    page = served.http.get("/").text
    assert "<style" not in page and not re.search(r"<script(?![^>]*\bsrc=)", page) and not re.search(r"\son\w+=", page)
    for name in re.findall(r'(?:href|src)="([^"#]+)"', page):
        assert name == "/" or name.startswith("/page/")
        assert served.http.get(name).status_code == 200


# Files


@pytest.mark.parametrize(
    "path",
    [
        "/page/../../../../etc/passwd",
        "/page/..%2f..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/api/items//etc/passwd/file",
        "/api/items/..%2f..%2fetc%2fpasswd/file",
        "/api/items/%2Fetc%2Fpasswd/file",
        "/api/items/mm-1%00/file",
        "/api/items/mm-99999999999999999999999/file",
    ],
)
def test_nothing_is_served_by_its_path(served: Served, path: str) -> None:
    said = raw(served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert said.split()[1] in (b"404", b"400", b"422")
    assert b"root:" not in said and b"import" not in said


def test_a_file_that_became_something_else_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    hostile = {
        "a.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "b.png": b"<!doctype html><script>alert(1)</script>",
        "c.png": b"#!/bin/sh\n",
    }
    for name in hostile:
        plain("red").save(tmp_path / "in" / name)
    plain("red").save(tmp_path / "in" / "link.png")
    plain("red").save(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "note.txt").write_text("red")
    (tmp_path / "secret").write_text("SECRET")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        for name, content in hostile.items():
            (tmp_path / "in" / name).write_bytes(content)
        for name in ("link.png", "note.txt"):
            (tmp_path / "in" / name).unlink()
            (tmp_path / "in" / name).symlink_to(tmp_path / "secret")
        (tmp_path / "in" / "pipe.png").unlink()
        os.mkfifo(tmp_path / "in" / "pipe.png")
        with serving(index) as served:
            for hit in served.http.get("/api/search?q=red&k=50").json()["hits"]:
                for part in ("file", "thumbnail"):
                    answer = served.http.get(f"/api/items/{hit['id']}/{part}")
                    assert answer.status_code in (410, 404), hit["path"]
                    assert "alert" not in answer.text and "SECRET" not in answer.text
                archive = served.http.post("/api/zip", json={"ids": [hit["id"]]})
                assert b"SECRET" not in archive.content


def _swap_file(folder: Path, outside: Path) -> None:
    for name in ("a.png", "note.txt"):
        (folder / "inner" / name).unlink()
        (folder / "inner" / name).symlink_to(outside / name)


def _swap_folder(folder: Path, outside: Path) -> None:
    (folder / "inner").rename(folder / "before")
    (folder / "inner").symlink_to(outside)


def _swap_root(folder: Path, outside: Path) -> None:
    folder.rename(folder.parent / "before")
    (outside / "inner").symlink_to(".")
    folder.symlink_to(outside)


def _link_hard(folder: Path, outside: Path) -> None:
    for name in ("a.png", "note.txt"):
        (folder / "inner" / name).unlink()
        os.link(outside / name, folder / "inner" / name)


@pytest.mark.parametrize("swap", [_swap_file, _swap_folder, _swap_root, _link_hard])
@pytest.mark.parametrize("has_same_time", [True, False])
def test_what_a_later_link_leads_to_is_never_served(
    tmp_path: Path, swap: Callable[[Path, Path], None], has_same_time: bool
) -> None:
    folder, outside = Path(os.path.realpath(tmp_path)) / "in", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.mkdir()
    for where, colour, words in ((folder / "inner", "red", "red one"), (outside, "blue", "my secret")):
        Image.new("RGB", (20, 20), colour).save(where / "a.png", compress_level=0)
        (where / "note.txt").write_text(words[:7])
    if has_same_time:
        for name in ("a.png", "note.txt"):
            indexed = (folder / "inner" / name).stat()
            os.utime(outside / name, ns=(indexed.st_mtime_ns, indexed.st_mtime_ns))
            assert (outside / name).stat().st_size == indexed.st_size
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(folder)
        hits = served.http.get("/api/search?q=red&k=50").json()["hits"]
        assert {hit["kind"] for hit in hits} == {"image", "text"}
        secrets = [(outside / name).read_bytes() for name in ("a.png", "note.txt")]
        swap(folder, outside)
        for hit in hits:
            assert served.http.get(f"/api/items/{hit['id']}/file").status_code == 410
            assert served.http.get(f"/api/items/{hit['id']}/thumbnail").status_code in (404, 410)
            archive = served.http.post("/api/zip", json={"ids": [hit["id"]]})
            assert zipfile.ZipFile(io.BytesIO(archive.content)).namelist() == ["missing.txt"]
            assert not any(secret in archive.content for secret in secrets)


def test_what_was_indexed_through_links_is_served_as_long_as_it_is_that(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    plain("red").save(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "note.txt").write_text("red")
    (tmp_path / "link").symlink_to("real")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(tmp_path / "link")
        hits = served.http.get("/api/search?q=red&k=50").json()["hits"]
        for hit in hits:
            assert served.http.get(f"/api/items/{hit['id']}/file").content == Path(hit["path"]).read_bytes()
        plain("blue").save(tmp_path / "real" / "a.png")
        (tmp_path / "real" / "note.txt").write_text("dew")
        for hit in hits:
            assert served.http.get(f"/api/items/{hit['id']}/file").status_code == 410


def test_a_picture_that_was_edited_where_it_lies_is_served(tmp_path: Path) -> None:
    folder = Path(os.path.realpath(tmp_path)) / "in"
    folder.mkdir()
    plain("red").save(folder / "a.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(folder)
        (hit,) = served.http.get("/api/search?q=red").json()["hits"]
        plain("blue").save(folder / "a.png")
        assert served.http.get(f"/api/items/{hit['id']}/file").content == (folder / "a.png").read_bytes()
        assert served.http.get(f"/api/items/{hit['id']}/thumbnail").status_code == 200


@pytest.mark.slow
def test_no_race_of_links_gets_a_file_from_elsewhere(tmp_path: Path) -> None:
    """A folder is swapped for a link and back as fast as it can be, while the file is asked for."""
    folder = Path(os.path.realpath(tmp_path)) / "in"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    plain("red").save(folder / "inner" / "a.png")
    plain("blue").save(tmp_path / "outside" / "a.png")
    secret = (tmp_path / "outside" / "a.png").read_bytes()
    (folder / "link").symlink_to(tmp_path / "outside")
    pairs = [("inner", "x"), ("link", "inner"), ("inner", "link"), ("x", "inner")]
    swap = f"import os\nwhile True:\n for one, other in {pairs}: os.rename(one, other)"
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(folder / "inner")
        (hit,) = served.http.get("/api/search?q=red").json()["hits"]
        swapping = subprocess.Popen([sys.executable, "-c", swap], cwd=folder)
        try:
            answers = [served.http.get(f"/api/items/{hit['id']}/file") for _ in range(1_500)]
        finally:
            swapping.kill()
            swapping.wait()
        assert {answer.status_code for answer in answers} == {200, 410}
        assert not any(answer.content == secret for answer in answers)


def test_a_text_is_downloaded_as_text(served: Served) -> None:
    hits = served.http.get("/api/search?q=blue&kind=text").json()["hits"]
    answer = served.http.get(f"/api/items/{hits[0]['id']}/file")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_name_cannot_write_headers_nor_leave_the_folder_of_a_zip(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ('a"\r\nset-cookie: x=1\r\n.png', "x\\..\\..\\evil.png", "<img src=x onerror=alert(1)>.png"):
        plain("red").save(tmp_path / "in" / "x.png")
        (tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        with serving(index) as served:
            ids = [hit["id"] for hit in served.http.get("/api/search?q=red").json()["hits"]]
            for id in ids:
                answer = served.http.get(f"/api/items/{id}/file")
                assert answer.status_code == 200 and "set-cookie" not in answer.headers
                assert re.fullmatch(r"inline; filename\*=UTF-8''[\w%.~-]+", answer.headers["content-disposition"])
            archive = zipfile.ZipFile(io.BytesIO(served.http.post("/api/zip", json={"ids": ids}).content))
            assert len(archive.namelist()) == 3
            assert not any("/" in name or "\\..\\" in name or "\n" in name for name in archive.namelist())


@pytest.mark.parametrize("inside", ["..", "../..", "/", "/etc", "~", "", "link", "a\0b"])
def test_only_allowed_folders_are_indexed(served: Served, folder: Path, inside: str) -> None:
    if inside == "link":
        (folder / "link").symlink_to("/etc")
    asked = os.path.join(folder, inside) if inside in ("..", "../..", "link") else inside
    answer = served.http.post("/api/index", json={"folders": [asked]})
    (folder / "link").unlink(missing_ok=True)
    assert answer.status_code in (403, 422)
    also = served.http.post("/api/index", json={"folders": [str(folder), "/etc"]})
    assert also.status_code == 403
    assert served.http.get("/api/index").json()["run"] is None


def test_words_from_strangers_open_no_file(served: Served, folder: Path) -> None:
    known = served.http.get("/api/search", params={"q": f"{folder}/red.png"})
    assert known.status_code == 200  # words; as a picture it would have left itself out
    assert str(folder / "red.png") in [hit["path"] for hit in known.json()["hits"]]
    assert served.http.get("/api/search", params={"q": "/etc/not-there.png"}).status_code == 200


# How much


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.settings.port, timeout=5)
    connection.putrequest("POST", "/api/search")
    connection.putheader("content-type", "image/png")
    connection.putheader("content-length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_without_a_length_is_cut_at_the_limit(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.settings.port), timeout=10) as connection:
        connection.sendall(
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 100_000_000:
                connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
                sent += 2**16
        except OSError:
            pass  # the server has hung up
    assert sent < 50_000_000
    assert served.http.get("/healthz").status_code == 200


def test_json_has_a_lower_limit_than_pictures(served: Served) -> None:
    answer = served.http.post("/api/encode", json={"texts": ["x" * 60_000]})
    assert answer.status_code == 413
    deep = b"[" * 20_000
    assert (
        served.http.post("/api/encode", content=deep, headers={"content-type": "application/json"}).status_code == 422
    )


def test_an_address_and_headers_have_an_end_that_the_app_tells(served: Served) -> None:
    longest = "%F0%9F%8C%BB" * 2_000  # sunflowers: what may be asked for is never too long
    assert served.http.get(f"/api/search?q={longest}").status_code == 200
    for much in (300_000, 3_000_000):  # within what is held of a request, and beyond
        for start in (b"GET /?", b"GET /api/search?q="):
            refused(raw(served, start + b"x" * much + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"), 414)
    for much in (100_000, 3_000_000):
        refused(raw(served, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * much + b"\r\n\r\n"), 431)
    assert served.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a browser that takes it for https\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xbc HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_as_everything_is(served: Served, request_: bytes) -> None:
    refused(raw(served, request_), 400, 501)


def test_a_body_that_breaks_off_into_nonsense_ends_only_its_connection(served: Served) -> None:
    head = (
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    refused(raw(served, head + b"4\r\nabcd\r\nnot a length\r\n"), 400)
    refused(raw(served, head + b"4\r\nabcd\r\n" + b"1" * 3_000_000), 400)
    assert served.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/search?q=" + "x" * 2_001, 422),
        ("/api/search?q=red&k=501", 422),
        ("/api/search?q=red&k=0", 422),
        ("/api/search?q=red&k=1e9", 422),
        ("/api/search?q=red&like=" + "&like=".join(map(str, range(40))), 422),
        ("/api/search?q=red&under=" + "&under=".join(map(str, range(40))), 422),
        ("/api/search?q=red&near=1,1,1e400", 422),
        ("/api/search?q=red&near=nan,nan,nan", 422),
        ("/api/search?q=red&min_score=nan", 422),
        ("/api/search?q=red&where=" + "[" * 1900, 422),
        ("/api/search?q=red&where={%22a%22:[[1]]}", 422),
        ("/api/search?cursor=AAAAAAAAAAAA.999999", 410),
        ("/api/search?q=red&cursor=AAAAAAAAAAAA.999999", 200),
    ],
)
def test_what_is_asked_for_has_limits(served: Served, path: str, status: int) -> None:
    answer = served.http.get(path)
    assert answer.status_code == status, answer.text[:300]
    if path.endswith("999999") and status == 200:
        assert answer.json()["hits"] == [] and answer.json()["cursor"] is None


def test_what_is_kept_open_for_somebody_has_an_end(folder: Path, tmp_path: Path) -> None:
    class Held(ColourEncoder):
        def encode_images(self, images: Any) -> Any:
            goes_on.wait(30)
            return super().encode_images(images)

    goes_on = threading.Event()
    limits = Limits(open_answers=2, event_streams=1, zip_bytes=10)
    with Index(tmp_path / "index", encoder=Held()) as index:
        index.add_texts(["red", "red wall", "red roof"])
        with serving(index, Settings(port=0, allowed=(str(folder),), limits=limits)) as served:
            first, *others = [served.http.get(f"/api/search?q={words}&k=1").json() for words in ("red", "wall", "roof")]
            assert served.http.get("/api/search", params={"cursor": first["cursor"]}).status_code == 410
            assert all(served.http.get("/api/search", params={"cursor": it["cursor"]}).is_success for it in others)
            try:
                assert served.http.post("/api/index", json={"folders": [str(folder)]}).status_code == 202
                with served.http.stream("GET", "/api/index/events") as stream:
                    lines = stream.iter_lines()  # one that nobody holds any more closes the connection
                    assert next(lines).startswith("data: ")
                    second = served.http.get("/api/index/events")
                    assert second.status_code == 503 and "Ask /api/index" in second.json()["detail"]
            finally:
                goes_on.set()
            while served.http.get("/api/index").json()["run"]["state"] == "running":
                time.sleep(0.05)
            (hit,) = served.http.get("/api/search?q=red&kind=image").json()["hits"]
            archive = served.http.post("/api/zip", json={"ids": [hit["id"]]})
            assert archive.status_code == 413 and archive.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/search", {"q": "red", "k": "5"}),
        ("/api/search", {"q": "red", "min_score": True}),
        ("/api/duplicates", {"threshold": "0.9"}),
        ("/api/duplicates", {"threshold": True}),
    ],
)
def test_json_is_taken_as_it_is_written(served: Served, path: str, body: dict[str, object]) -> None:
    assert served.http.post(path, json=body).status_code == 422


def test_a_bomb_costs_only_its_sender(served: Served, tmp_path: Path) -> None:
    def upload(picture: bytes) -> httpx2.Response:
        return served.http.post("/api/search", content=picture, headers={"content-type": "image/png"})

    answer = upload(pictures.png_bomb(tmp_path / "bomb.png").read_bytes())
    assert answer.status_code == 422 and "pixels" in answer.json()["detail"]
    for hostile in (b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(100), b"\xff\xd8\xff" * 1000, b"<svg/>"):
        assert upload(hostile).status_code == 422
    assert served.http.get("/api/search?q=red").status_code == 200


def test_uploads_are_not_decoded_in_the_server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "read", None)  # as good as a crash, in this process
    (hit, *_) = served.http.get("/api/search?q=red").json()["hits"]
    picture = Path(hit["path"]).read_bytes()
    answer = served.http.post("/api/search", content=picture, headers={"content-type": "image/png"})
    assert answer.status_code == 200


def test_nothing_is_left_of_an_upload(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for picture in (b"not a picture", bytes(1000)):
        served.http.post("/api/lookup", content=picture, headers={"content-type": "image/png"})
    assert list(tmp_path.iterdir()) == []


def test_who_sends_by_the_letter_is_cut_off_and_costs_nobody_else(served: Served) -> None:
    slow = [socket.create_connection(("127.0.0.1", served.settings.port), timeout=5) for _ in range(50)]
    for connection in slow:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
    started = time.monotonic()
    assert served.http.get("/healthz").status_code == 200
    assert time.monotonic() - started < 1
    for connection in slow:
        assert connection.recv(1000) in (b"", b"HTTP/1.1 408 Request Timeout\r\n")
        connection.close()
    assert time.monotonic() - started < 4


def test_a_body_that_does_not_come_is_not_waited_for(served: Served) -> None:
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nx"
    started = time.monotonic()
    assert raw(served, head).split()[1] == b"400"
    assert time.monotonic() - started < 4


def test_a_second_request_on_a_connection_has_its_own_patience(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.settings.port), timeout=5) as connection:
        for _ in range(3):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += connection.recv(4096)
            assert said.startswith(b"HTTP/1.1 200")
            time.sleep(0.4)
        connection.sendall(b"GET /hea")
        assert connection.recv(4096) == b""


# The command


def test_an_address_that_is_taken_is_one_sentence(mmsearch: Run, served: Served) -> None:
    done = mmsearch("serve", "--port", str(served.settings.port))
    assert done.returncode == 1 and "Take another --port" in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_that_is_not_there_cannot_be_allowed(mmsearch: Run) -> None:
    done = mmsearch("serve", "--allow", "no-such-folder")
    assert done.returncode == 2 and "no-such-folder" in done.stderr


def test_an_address_that_is_not_this_machine_s_is_an_error(folder: Path, tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, pytest.raises(Error, match="cannot be listened"):
        prepare(index, Settings("192.0.2.1", 0, TOKEN))


def refused(said: bytes, *statuses: int) -> None:
    """Whether these bytes are a problem (RFC 9457), as strict as every answer."""
    head = said.lower()
    assert int(said.split()[1]) in statuses, said[:200]
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    assert b"x-content-type-options: nosniff" in head and b"content-security-policy: default-src 'none'" in head


def raw(served: Served, request: bytes) -> bytes:
    """All that comes back for these very bytes."""
    with socket.create_connection(("127.0.0.1", served.settings.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):  # who sends too much is hung up on before its end
            connection.sendall(request)
        said = b""
        while b"\r\n\r\n" not in said and (part := connection.recv(2**16)):
            said += part
        return said


# Clients that hang up, hold on, or come in crowds


@pytest.fixture
def hung_up(tmp_path: Path) -> Iterator[Served]:
    """A server with a file that is too large for any buffer."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1_400, 1_400)).save(tmp_path / "in" / "large.bmp")
    plain("red").save(tmp_path / "in" / "red.png")
    limits = Limits(body_seconds=5, header_seconds=1, uploads_bytes=1_000_000, take_seconds=0.5, connections=40)
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        with serving(index, Settings(port=0, allowed=(str(tmp_path / "in"),), limits=limits)) as served:
            yield served


def connected(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.settings.port), timeout=10)


def hang_up(connection: socket.socket, *, rudely: bool) -> None:
    """Close; rudely, with a reset, as a program does that is killed."""
    if rudely:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


UPLOAD = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize("rudely", [True, False])
def test_a_client_that_hangs_up_anywhere_leaves_no_trace_in_the_log(
    hung_up: Served, caplog: pytest.LogCaptureFixture, rudely: bool
) -> None:
    caplog.set_level("WARNING")
    ids = [hit["id"] for hit in hung_up.http.get("/api/search?q=black&k=5").json()["hits"]]
    asked = json.dumps({"ids": ids}).encode()
    posted = b"POST /api/zip HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    conversations = [  # what is sent, and how much of the answer is read before hanging up
        (b"GET /api/st", 0),
        (UPLOAD + b"Content-Length: 900000\r\n\r\n" + bytes(1_000), 0),
        (UPLOAD + b"Content-Length: 900000\r\n\r\n" + bytes(300_000), 0),
        (UPLOAD + b"Content-Length: 900000\r\nExpect: 100-continue\r\n\r\n", 10),
        (UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n10000\r\n" + bytes(2**16), 0),
        (posted + b"Content-Length: 900\r\n\r\n{", 0),
        (posted + f"Content-Length: {len(asked)}\r\n\r\n".encode() + asked, 300),
        (posted + f"Content-Length: {len(asked)}\r\n\r\n".encode() + asked, 0),
        *((f"GET /api/items/{id}/file HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 300) for id in ids),
        *((f"GET /api/items/{id}/thumbnail HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 0) for id in ids),
        (b"GET /api/index/events HTTP/1.1\r\nHost: localhost\r\n\r\n", 100),
        (b"GET /api/search?q=red HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5, 0),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 1),
    ]
    for sent, read in conversations:
        connection = connected(hung_up)
        with contextlib.suppress(OSError):
            connection.sendall(sent)
            while read > 0 and (said := connection.recv(read)):
                read -= len(said)
            time.sleep(0.02)
        hang_up(connection, rudely=rudely)
    assert hung_up.http.get("/healthz").status_code == 200
    time.sleep(0.3)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    assert upload_is_read(hung_up)  # nothing is held of those that were not finished


def upload_is_read(served: Served) -> bool:
    """Whether there is room for an upload that is nearly as large as all together may be."""
    picture = io.BytesIO()
    Image.effect_noise((900, 900), 80).save(picture, "PNG", compress_level=0)
    answer = served.http.post("/api/search", content=picture.getvalue(), headers={"content-type": "image/png"})
    return answer.status_code == 200


def test_uploads_that_are_not_finished_hold_no_more_than_is_allowed_together(hung_up: Served) -> None:
    with contextlib.ExitStack() as open_:
        said = []
        for _ in range(12):
            connection = open_.enter_context(connected(hung_up))
            with contextlib.suppress(OSError):
                connection.sendall(UPLOAD + b"Content-Length: 900000\r\n\r\n" + bytes(200_000))
            time.sleep(0.05)
            connection.settimeout(0.2)
            try:
                said.append(connection.recv(2_000))
            except OSError:
                said.append(b"")  # waited for
        refused_ones = [one for one in said if one]
        assert len(refused_ones) >= 12 - 5 and all(b" 503 " in one and b"Try again" in one for one in refused_ones)
        assert not upload_is_read(hung_up)
        assert hung_up.http.get("/api/search?q=red").status_code == 200
    time.sleep(0.2)
    assert upload_is_read(hung_up)


def test_a_crowd_of_idle_connections_gives_way_to_who_asks(hung_up: Served) -> None:
    with contextlib.ExitStack() as open_:
        idle = [open_.enter_context(connected(hung_up)) for _ in range(120)]
        with httpx2.Client(base_url=hung_up.url) as newcomer:
            assert newcomer.get("/healthz").status_code == 200
        assert idle[0].recv(10) == b""  # the oldest was closed


def test_who_takes_nothing_of_an_answer_is_not_waited_for(hung_up: Served) -> None:
    (large,) = [hit["id"] for hit in hung_up.http.get("/api/search?q=black&k=1").json()["hits"]]
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.connect(("127.0.0.1", hung_up.settings.port))
    with connection:
        connection.sendall(f"GET /api/items/{large}/file HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(1.2)
        got = 0
        with contextlib.suppress(OSError):  # a reset
            while said := connection.recv(2**20):
                got += len(said)
        assert got < 5_000_000


def test_a_file_that_becomes_shorter_ends_its_answer_and_nothing_else(
    hung_up: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (large,) = [hit["id"] for hit in hung_up.http.get("/api/search?q=black&k=1").json()["hits"]]
    with pytest.raises(httpx2.HTTPError), hung_up.http.stream("GET", f"/api/items/{large}/file") as answer:
        chunks = answer.iter_raw(1_000)
        next(chunks)
        os.truncate(tmp_path / "in" / "large.bmp", 50_000)
        for _ in chunks:
            pass
    assert hung_up.http.get("/healthz").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("opening", ["[", '{"texts":[', '{"a":'])
def test_deep_json_is_one_sentence(served: Served, opening: str) -> None:
    for path in ("/api/encode", "/api/search", "/api/zip", "/api/items", "/api/duplicates"):
        answer = served.http.post(path, content=opening * 4_000, headers={"content-type": "application/json"})
        assert answer.status_code == 422 and len(answer.json()["detail"]) < 200
