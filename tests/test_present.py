"""Promises of mmsearch.present, mmsearch.gallery and mmsearch.preview: what a person, a program, a browser sees."""

import io
import json
import os
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch.gallery import gallery_page
from mmsearch.present import columns_of, file_url, hits_json, hits_paths, hits_table, printable, table
from mmsearch.preview import Protocol, detect, preview
from mmsearch.search import Hit

posix_only = pytest.mark.skipif(os.name == "nt", reason="paths that Windows does not have")

HOSTILE = 'a\x1b]0;owned\x07\x9b31m\n\r\t"<img src=x onerror=alert(1)>&\u202egpj\u2066\u2028\x00'
BYTES = os.fsdecode(b"/p/\xff\xfe.jpg")


def hit(rank: int = 1, **changes: object) -> Hit:
    values = {"score": 0.3125, "kind": "image", "id": "1", "path": "/p/dog.jpg", "text": None, **changes}
    return Hit(rank=rank, **values)  # type: ignore[arg-type]


# ---- printable


@given(st.text())
def test_nothing_printable_moves_the_cursor_or_fails_to_encode(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", shown)
    shown.encode()


def test_escapes_say_what_was_there_and_letters_of_the_world_stay() -> None:
    assert printable(BYTES) == r"/p/\xff\xfe.jpg"
    assert printable("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert printable("Größe 雪 👩‍👩‍👧 ไทย نص") == "Größe 雪 👩‍👩‍👧 ไทย نص"


# ---- tables


def test_a_table_lines_up_also_with_wide_letters() -> None:
    lines = table(("name", "n"), [("雪", 5), ("e\u0301a", 12), (None, None)], right=(1,)).split("\n")
    assert lines == ["name   n", "雪     5", "e\u0301a    12", ""]
    assert columns_of("雪x") == 3


def test_only_the_column_that_may_shrink_is_cut() -> None:
    shown = table(("a", "b", "c"), [("x" * 10, "雪" * 40, "y" * 30)], shrink=1, width=80).split("\n")[1]
    assert columns_of(shown) == 80
    assert "x" * 10 in shown and "y" * 30 in shown and "…" in shown


def test_a_path_comes_last_and_is_never_cut() -> None:
    path = "/" + "long/" * 60 + "dog.jpg"
    shown = hits_table([hit(path=path, text="word " * 80)], hyperlinks=False, width=60)
    assert shown.split("\n")[1].endswith("  " + path)
    assert "\x1b" not in shown


def test_a_table_says_score_kind_why_text_and_line() -> None:
    hits = [hit(text="A dog", found_by={"keyword": 7, "image": 1}), hit(2, kind="text", text="It\nbarks", line=12)]
    first, second = hits_table(hits, hyperlinks=False, width=120).split("\n")[1:]
    assert first.split("  ")[:4] == ["1", "0.312", "image", "image 1, keyword 7"]
    assert "line 12: It barks" in second


def test_an_item_without_a_path_shows_its_id() -> None:
    assert hits_table([hit(path=None, id="sku-1")], hyperlinks=True, width=80).endswith("sku-1")


@posix_only
@pytest.mark.parametrize("path", ["/p/雪 #1?%.jpg", BYTES, "/p/two\nlines\x1b.jpg"])
def test_on_a_terminal_a_path_can_be_clicked_whatever_its_bytes(path: str) -> None:
    row = hits_table([hit(path=path)], hyperlinks=True, width=80).split("\n")[1]
    link = re.search(r"\x1b]8;;(file://([!-~]*))\x1b\\([^\x1b]*)\x1b]8;;\x1b\\$", row)
    assert link is not None
    assert unquote_to_bytes(link[2]) == os.fsencode(path)
    assert link[1] == file_url(path) and link[3] == printable(path)


def test_hostile_names_and_captions_do_not_reach_the_terminal() -> None:
    shown = hits_table([hit(path="/p/" + HOSTILE, text=HOSTILE, id=HOSTILE)], hyperlinks=False, width=400)
    assert shown.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", shown)


# ---- JSON and paths


def test_json_has_every_promised_key_in_order() -> None:
    [said] = json.loads(hits_json([hit(score=0.123456789, found_by={"image": 1}, facts={"price": 3})]))
    assert list(said) == [
        "rank", "score", "kind", "id", "path", "text", "line", "width", "height", "format", "taken_at", "camera",
        "latitude_deg", "longitude_deg", "facts", "found_by",
    ]  # fmt: skip
    assert (said["score"], said["found_by"], said["facts"], said["camera"]) == (
        0.123457,
        {"image": 1},
        {"price": 3},
        None,
    )


@given(st.binary(min_size=1).map(os.fsdecode), st.text())
def test_json_gives_back_every_path_and_text(path: str, text: str) -> None:
    said = hits_json([hit(path=path, text=text)])
    said.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", said)
    [read] = json.loads(said)
    assert os.fsencode(read["path"]) == os.fsencode(path)
    assert read["text"] == text


def test_json_stays_readable() -> None:
    assert '"雪の🚲"' in hits_json([hit(text="雪の🚲")])
    assert hits_json([]) == "[]"


def test_json_never_holds_nan() -> None:
    bad = {"price": float("nan"), "deep": [{"x": float("inf")}, 1.5]}
    said = hits_json([hit(score=float("nan"), facts=bad, latitude_deg=float("nan"))])
    [read] = json.loads(said, parse_constant=pytest.fail)
    assert read["score"] is None and read["facts"] == {"price": None, "deep": [{"x": None}, 1.5]}


@posix_only
def test_paths_are_the_very_bytes_each_once() -> None:
    hits = [hit(path=BYTES), hit(path="/p/two\nlines"), hit(path=None), hit(path=BYTES)]
    assert hits_paths(hits, nul=True) == b"/p/\xff\xfe.jpg\0/p/two\nlines\0"
    assert hits_paths(hits[:1], nul=False) == b"/p/\xff\xfe.jpg\n"


def test_printing_hits_imports_nothing_heavy() -> None:
    heavy = "torch open_clip onnxruntime faiss pyarrow rich sqlite_utils click"
    code = f"import sys, mmsearch.present; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# ---- gallery


class Page(HTMLParser):
    """The elements of a page, checked to be well nested, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def jpeg(width: int = 30, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_gallery_holds_its_pictures_and_allows_nothing_else() -> None:
    html = gallery_page([hit(width=3000, height=2000)], title="dog", thumbnails={"/p/dog.jpg": jpeg()})
    page = Page(html)
    [image] = page.all("img")
    assert image["src"] == "data:image/jpeg;base64," + b64encode(jpeg()).decode()
    assert image["alt"] == "dog.jpg"
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None and policy is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")
    assert "http" not in html.replace("http-equiv", "")
    assert page.all("script") == page.all("link") == []
    assert not any("style" in attributes for _, attributes in page.elements)  # the policy would ignore it


@posix_only
def test_a_hostile_name_or_caption_is_only_text_in_a_gallery() -> None:
    path = "/p/" + HOSTILE.replace("/", "") + "'\udcff"
    hits = [hit(path=path, text=HOSTILE), hit(2, kind="text", path=path, text=HOSTILE), hit(3, path=path)]
    html = gallery_page(hits, title=HOSTILE, thumbnails={path: jpeg()})
    html.encode()
    page = Page(html)
    assert {name for name, _ in page.elements} == {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "main", "ol", "li", "a"),
        *("span", "bdi", "img", "q"),
    }
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", html)
    for link in page.all("a"):
        assert unquote_to_bytes((link["href"] or "").removeprefix("file://")) == os.fsencode(path)


def test_a_gallery_shows_texts_missing_pictures_and_items_without_a_file() -> None:
    hits = [
        hit(kind="text", text="It barks.", line=12, path="/notes/dogs.md"),
        hit(2, path="/gone.heic", format="HEIC", width=4000, height=3000),
        hit(3, path=None, id="sku-1"),
        hit(4, width=10_000, height=1),
    ]
    page = Page(gallery_page(hits, title="", thumbnails={"/p/dog.jpg": jpeg()}))
    for shown in ("It barks.", "line 12", "dogs.md", "HEIC", "sku-1", "3 pictures and 1 text"):
        assert shown in page.text
    assert "href" not in page.all("a")[2]


def test_an_empty_gallery_says_so() -> None:
    assert "Nothing found" in Page(gallery_page([], title="dog", thumbnails={})).text


# ---- preview


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours, none of which a palette or a JPEG changes by much."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=2).astype(np.uint8))


def assert_same(shown: Image.Image, original: Image.Image, tolerance: float) -> None:
    expected = np.asarray(original.resize(shown.size, Image.Resampling.LANCZOS, reducing_gap=2.0)).astype(int)
    assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - expected).mean() <= tolerance


def kitty(printed: str) -> Image.Image:
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", printed)
    keys = [dict(pair.split("=") for pair in control.split(",")) for control, _ in commands]
    assert keys[0]["a"] == "T" and keys[0]["f"] == "100" and keys[0]["q"] == "2"
    assert [key["m"] for key in keys] == ["1"] * (len(keys) - 1) + ["0"]
    assert all(len(data) <= 4096 for _, data in commands)
    assert (keys[0]["c"], keys[0]["r"]) == ("30", "10")
    return Image.open(io.BytesIO(b64decode("".join(data for _, data in commands))))


def iterm2(printed: str) -> Image.Image:
    match = re.fullmatch(r"\x1b]1337;File=([^:]*):([^\x07]*)\x07\n", printed)
    assert match is not None
    data = b64decode(match[2], validate=True)
    assert match[1].split(";")[:4] == ["inline=1", f"size={len(data)}", "width=30", "height=10"]
    return Image.open(io.BytesIO(data))


def sixel(printed: str) -> Image.Image:
    body = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)([ -~]*)\x1b\\\n', printed)
    assert body is not None
    pixels = np.zeros((int(body[2]) + 6, int(body[1]), 3), np.uint8)
    colours: dict[int, tuple[float, ...]] = {}
    left = top = colour = 0
    tokens = re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])", body[3])
    for number, *percents, chosen, times, repeated, single, move in tokens:
        if number:
            colours[int(number)] = tuple(int(percent) * 2.55 for percent in percents)
        elif chosen:
            colour = int(chosen)
        elif move:
            left, top = 0, top + 6 * (move == "-")
        else:
            bits, count = ord(repeated or single) - 63, int(times or 1)
            for row in range(6):
                if bits >> row & 1:
                    pixels[top + row, left : left + count] = colours[colour]
            left += count
            assert left <= pixels.shape[1]
    assert top + 6 >= int(body[2])
    return Image.fromarray(pixels[: int(body[2])])


def blocks(printed: str) -> Image.Image:
    rows: list[list[list[int]]] = []
    for line in printed.splitlines():
        cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line)
        assert line.endswith("▀\x1b[0m") and len(cells) == 30
        rows.append([[int(part) for part in cell[:3]] for cell in cells])
        rows.append([[int(part) for part in cell[3:]] for cell in cells])
    return Image.fromarray(np.array(rows, np.uint8))


@pytest.mark.parametrize(
    ("protocol", "decode", "size", "tolerance"),
    [("kitty", kitty, (300, 200), 0), ("iterm2", iterm2, (300, 200), 4), ("sixel", sixel, (300, 200), 10),
     ("blocks", blocks, (30, 20), 0)],
)  # fmt: skip
def test_the_picture_comes_back_out_of_what_is_printed(protocol, decode, size, tolerance) -> None:  # type: ignore[no-untyped-def]
    original = picture(600, 400)
    shown = decode(preview(original, protocol, columns=30, rows=40))
    assert shown.size == size
    assert_same(shown, original, tolerance)


@pytest.mark.parametrize("protocol", ["kitty", "iterm2", "sixel", "blocks"])
@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (640, 480)])
def test_every_shape_is_shown_within_its_cells(protocol: Protocol, size: tuple[int, int]) -> None:
    printed = preview(Image.new("RGB", size, "red"), protocol, columns=20, rows=6)
    assert printed.endswith("\n")
    assert len(printed.splitlines()) <= 6


def test_the_bytes_of_a_thumbnail_are_shown_too() -> None:
    assert "38;2;" in preview(jpeg(), "blocks", columns=4, rows=4)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "230804"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "180400"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "dumb"}, None),
        ({}, "blocks"),
    ],
)
def test_a_terminal_is_known_by_its_environment(environment: dict[str, str], protocol: Protocol | None) -> None:
    assert detect(environment, is_terminal=True) == protocol
    assert detect(environment, is_terminal=False) is None
