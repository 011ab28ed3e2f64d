"""The page, in a real browser: searched, refined, filtered, by mouse and by keys, and attacked by what it shows."""

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mmsearch import Index
from mmsearch.serve.settings import Settings
from tests.chromium import PATIENCE_MS, check_accessibility, needs_chromium
from tests.colours import COLOURS, ColourEncoder, swatch
from tests.served import Served, serving

pytestmark = needs_chromium
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
EACH = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        (folder / colour).mkdir()
        for seed in range(EACH):
            swatch(colour, seed, (160 + 8 * (seed % 7), 120)).save(folder / colour / f"{seed:02}.png")
    (folder / "red" / "00.txt").write_text(f"a red wall {HOSTILE}")
    (folder / "notes.txt").write_text("green is the meadow behind the house")
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Index(tmp_path_factory.mktemp("served") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        with serving(index, Settings(port=0, allowed=(str(folder),))) as served:
            yield served


def search(page: Any, words: str) -> None:
    with page.expect_response(lambda answer: "/api/search" in answer.url):
        page.locator("#words").fill(words)
        page.locator("#words").press("Enter")
    page.locator(".tile").first.wait_for()


def colours(page: Any, count: int = 10) -> set[str]:
    """The folders of the first pictures that are shown."""
    page.wait_for_function("() => !document.querySelector('#results').hasAttribute('aria-busy')")
    titles = page.locator(".tile.image").evaluate_all("tiles => tiles.map((tile) => tile.title)")
    return {Path(title).parent.name for title in titles[:count]}


def test_words_are_searched_and_the_back_button_leads_back(open_page: Any, served: Served) -> None:
    page = open_page(served.url)
    page.get_by_role("heading", name="What are you looking for?").wait_for()
    search(page, "red")
    assert colours(page) == {"red"} and "q=red" in page.url and page.title() == "red · mmsearch"
    search(page, "blue")
    assert colours(page) == {"blue"}
    page.go_back()
    page.wait_for_url("**/?q=red")
    assert colours(page) == {"red"} and page.locator("#words").input_value() == "red"
    page.go_forward()
    page.wait_for_url("**/?q=blue")
    assert colours(page) == {"blue"}


@pytest.mark.slow
def test_what_is_typed_is_searched_when_one_rests(open_page: Any, served: Served) -> None:
    page = open_page(served.url)
    page.locator("#words").press_sequentially("yellow", delay=20)
    page.wait_for_url("**/?q=yellow")
    assert colours(page) == {"yellow"}


def test_a_picture_is_dropped_and_its_link_can_be_kept(open_page: Any, served: Served, folder: Path) -> None:
    page = open_page(served.url)
    data = (folder / "blue" / "07.png").read_bytes()
    transfer = page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.png', { type: 'image/png' }));
            return transfer;
        }""",
        list(data),
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert page.locator("#drop").evaluate("node => node.classList.contains('open')")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.get_by_text("like your picture").wait_for()
    assert colours(page) == {"blue"}
    again = open_page(page.url)
    again.locator(".tile").first.wait_for()
    assert colours(again) == {"blue"}


@pytest.mark.slow
def test_a_picture_is_chosen_and_words_refine_it(open_page: Any, served: Served, folder: Path) -> None:
    page = open_page(served.url)
    page.locator("#picture").set_input_files(folder / "green" / "01.png")
    page.get_by_text("like your picture").wait_for()
    assert colours(page) == {"green"}
    page.get_by_role("button", name="Remove: like your picture").click()
    page.get_by_role("heading", name="What are you looking for?").wait_for()


def test_more_and_less_like_this_refine_in_place(open_page: Any, served: Served) -> None:
    page = open_page(f"{served.url}/?q=red")
    page.locator(".tile.image .open").first.click()
    page.get_by_role("button", name="Less like this").click()
    page.get_by_text("not like").wait_for()
    assert "unlike=" in page.url and page.locator("#words").input_value() == "red"
    colours(page)  # which waits for the new ones
    page.locator(".tile.image .open").first.click()
    page.get_by_role("button", name="More like this").click()
    page.locator(".chip").nth(1).wait_for()
    assert page.locator(".chip").count() == 2
    page.go_back()
    page.locator(".chip").nth(1).wait_for(state="detached")


@pytest.mark.slow
def test_what_is_said_of_answers_is_kept_when_asked(open_page: Any, served: Served) -> None:
    page = open_page(f"{served.url}/?q=yellow")
    page.locator(".tile.image .open").first.click()
    page.get_by_role("button", name="Less like this").click()
    page.get_by_text("not like").wait_for()
    page.get_by_role("button", name="Keep for training").click()
    page.get_by_text("1 judgement kept for “yellow”").wait_for()
    (unlike,) = parse_qs(urlsplit(page.url).query)["unlike"]
    assert {"query": "yellow", "id": unlike, "match": False} in served.http.get("/api/feedback").json()["judgements"]
    page.locator("#words").fill("yellow - red")
    page.wait_for_url("**q=yellow+-+red**")
    assert page.get_by_role("button", name="Keep for training").count() == 0


def test_filters_narrow_and_are_cleared(open_page: Any, served: Served, folder: Path) -> None:
    page = open_page(f"{served.url}/?q=red")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Below the folder").fill(str(folder / "white"))
    page.get_by_role("button", name="Apply").click()
    page.wait_for_url("**under=**")
    assert colours(page, 500) == {"white"}
    page.get_by_label("Texts").check()
    page.get_by_role("heading", name="Nothing found").wait_for()
    page.locator("#message").get_by_role("button", name="Clear").click()
    page.wait_for_url("**/?q=red")
    assert colours(page) == {"red"}


@pytest.mark.slow
def test_everything_works_by_keys(open_page: Any, served: Served) -> None:
    page = open_page(f"{served.url}/?q=red")
    page.locator(".tile").first.wait_for()
    page.locator("#words").evaluate("node => node.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.press("ArrowDown")
    first = page.evaluate("document.activeElement.closest('.tile').dataset.id")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('.tile').dataset.id") == first
    page.keyboard.press("x")
    assert page.get_by_text("1 selected").is_visible()
    page.keyboard.press("Enter")
    page.locator("#viewer[open]").wait_for()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(id) => new URLSearchParams(location.search).get('item') !== id", arg=first)
    page.keyboard.press("x")
    assert page.locator("#selected").text_content() == "2 selected"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("(id) => new URLSearchParams(location.search).get('item') === id", arg=first)
    page.keyboard.press("Escape")
    page.locator("#viewer[open]").wait_for(state="detached")
    assert page.evaluate("document.activeElement.closest('.tile').dataset.id") == first
    page.keyboard.press("Escape")
    assert page.locator("#selection").is_hidden()


@pytest.mark.slow
def test_a_selection_is_downloaded_as_paths_json_and_zip(open_page: Any, served: Served, tmp_path: Path) -> None:
    page = open_page(f"{served.url}/?q=red&kind=image")
    for place in (0, 1, 2):
        page.locator(".tile").nth(place).hover()
        page.locator(".tick").nth(place).click()
    saved = {}
    for button in ("Paths", "JSON", "Zip"):
        with page.expect_download() as download:
            page.locator("#selection").get_by_role("button", name=button).click()
        download.value.save_as(tmp_path / button)
        saved[button] = tmp_path / button
    paths = saved["Paths"].read_text().splitlines()
    assert len(paths) == 3 and [hit["path"] for hit in json.loads(saved["JSON"].read_text())] == paths
    contents = {Path(path).read_bytes() for path in paths}
    with zipfile.ZipFile(saved["Zip"]) as archive:
        assert {archive.read(name) for name in archive.namelist()} == contents


def scroll_to_the_last(page: Any, total: int) -> None:
    """Turn the wheel until the last hit is there, for as long as a step of any other test may take."""
    patience = time.monotonic() + PATIENCE_MS / 1000
    while page.locator(".tile").count() < total and time.monotonic() < patience:
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(50)
    assert page.locator(".tile").count() == total


@pytest.mark.slow
def test_one_scrolls_to_the_last_of_all_hits(open_page: Any, served: Served) -> None:
    page = open_page(f"{served.url}/?q=red")
    total = EACH * len(COLOURS) + 1
    scroll_to_the_last(page, total)
    ids = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.dataset.id)")
    assert len(set(ids)) == total
    assert page.locator("#count").text_content() == f"{total} results"


# What a busy browser does: it tells several changes at once, the last one being what holds.
TOLD_LATE = """
const Prompt = IntersectionObserver;
window.IntersectionObserver = class {
  constructor(callback, options) {
    let untold = [];
    setInterval(() => untold.length && callback(untold.splice(0)), 400);
    return new Prompt((entries) => untold.push(...entries), options);
  }
};
"""


@pytest.mark.slow
def test_one_scrolls_to_the_last_in_a_busy_browser(open_page: Any, served: Served) -> None:
    page = open_page("about:blank")
    page.add_init_script(TOLD_LATE)
    page.goto(f"{served.url}/?q=red")
    scroll_to_the_last(page, EACH * len(COLOURS) + 1)


# Who holds the End key, or drags the bar, is at the end again before the browser has drawn what came last.
AT_THE_END = """
addEventListener('DOMContentLoaded', () => new MutationObserver(() => setTimeout(() => scrollTo(0, 1e9), 0))
  .observe(document.querySelector('#results'), { childList: true }));
"""
# A machine that has much else to do: little is drawn in a second.
BUSY = "setInterval(() => { for (const end = performance.now() + 250; performance.now() < end;); }, 300);"


@pytest.mark.parametrize(
    "hindrance", [AT_THE_END, pytest.param(AT_THE_END + BUSY, marks=pytest.mark.slow)], ids=["quick hands", "busy"]
)
def test_loading_on_never_stalls(open_page: Any, tmp_path: Path, hindrance: str) -> None:
    total = 700
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts([f"red {number}" for number in range(total)])
        with serving(index) as served:
            page = open_page("about:blank")
            page.add_init_script(hindrance)
            page.goto(f"{served.url}/?q=red")
            page.get_by_text(f"{total} results").wait_for()
            assert page.locator(".tile").count() == total


@pytest.mark.slow
def test_loading_on_goes_to_the_end_of_many_pages(open_page: Any, tmp_path: Path) -> None:
    total = 3_000
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts([f"red {number}" for number in range(total)])
        with serving(index) as served:
            page = open_page(f"{served.url}/?q=red")
            page.locator(".tile").first.wait_for()
            while page.locator("#count").text_content() != f"{total:,} results":
                before = page.locator(".tile").count()
                page.evaluate("() => scrollTo(0, 1e9)")
                page.wait_for_function(f"() => document.querySelectorAll('.tile').length > {before}")
                if before % 7 == 0:  # and now and then to another view and back
                    page.locator("#show-map").click()
                    page.wait_for_timeout(50)
                    page.go_back()
            assert page.locator(".tile").count() == total


def test_a_page_that_could_not_be_loaded_is_asked_for_by_hand(open_page: Any, served: Served) -> None:
    page = open_page(served.url)
    asked = []

    def refuse(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=503, content_type="application/problem+json", body='{"detail": "Too busy."}')

    page.route(lambda url: "/api/search" in url and "cursor=" in url, refuse)
    search(page, "red")
    button = page.locator("#end").get_by_role("button", name="Try again")
    button.wait_for()
    for _ in range(5):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(40)
    assert len(asked) == 1
    page.unroute_all()
    button.click()
    page.wait_for_function("() => document.querySelectorAll('.tile').length > 60")
    page.complaints[:] = [said for said in page.complaints if "503" not in said]  # the browser's own, of the refusal


def test_what_a_filter_takes_is_said_in_words(open_page: Any, served: Served) -> None:
    page = open_page(f"{served.url}/?q=red")
    page.locator("#show-filters").click()
    for name, wrong, said in (("after", "July 2023", "as 2023, 2023-07"), ("near", "Paris", "a distance in km, as")):
        box = page.locator(f"[name={name}]")
        box.fill(wrong)
        page.get_by_role("button", name="Apply").click()
        assert said in box.evaluate("input => input.validationMessage")
        box.fill("")
        assert box.evaluate("input => input.validationMessage") == ""
    page.goto(f"{served.url}/?q=red&after=2023-13")
    page.get_by_text("'after' takes a date as 2023, 2023-07 or 2023-07-14.").wait_for()
    page.complaints[:] = [said for said in page.complaints if "422" not in said]


@pytest.mark.parametrize("width", [320, 761, 1280])
@pytest.mark.parametrize("chips", [1, 9])
def test_the_head_keeps_its_form_with_chips_in_it(open_page: Any, served: Served, width: int, chips: int) -> None:
    ids = [hit["id"] for hit in served.http.get("/api/search?q=red&kind=image&k=20").json()["hits"]][:chips]
    page = open_page(f"{served.url}/?q=red+wall", viewport={"width": width, "height": 600})
    parts = ".brand, #search, #words, #choose, #show-filters, #show-map, #show-status"
    boxes = f"() => [...document.querySelectorAll('{parts}')].map((part) => part.getBoundingClientRect().toJSON())"
    page.locator(".tile").first.wait_for()
    bare = page.evaluate(boxes)
    page.goto(f"{served.url}/?q=red+wall&{'&'.join(f'like={id}' for id in ids)}")
    page.locator(".chip").nth(chips - 1).wait_for(state="attached")
    page.locator(".tile").first.wait_for()
    assert page.evaluate(boxes) == bare  # everything stands where it stood
    row = page.locator("#chips").evaluate("row => row.getBoundingClientRect().toJSON()")
    assert row["top"] >= max(box["bottom"] for box in bare) and row["bottom"] - row["top"] <= 100
    assert row["left"] >= 0 and row["right"] <= width
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".chip .icon").last.click()  # even the last one is within reach
    page.wait_for_function(f"() => document.querySelectorAll('.chip').length === {chips - 1}")


@pytest.mark.slow
def test_a_hit_says_what_it_is_and_why_it_was_found(open_page: Any, served: Served, folder: Path) -> None:
    page = open_page(f"{served.url}/?q=red+wall&kind=image")
    page.locator(".open").first.click()
    page.get_by_role("heading", name="00.png").wait_for()
    viewer = page.locator("#viewer")
    viewer.locator(".path").wait_for()  # the hit is shown at once, its facts as soon as the server has told them
    assert str(folder / "red" / "00.png") in viewer.text_content()
    assert "by a word in its text, caption or name: number 1" in viewer.text_content()
    assert HOSTILE in viewer.locator(".captions").text_content()
    viewer.get_by_role("button", name="red", exact=True).click()
    page.wait_for_url("**under=**")
    assert colours(page, 500) == {"red"}


@pytest.mark.slow
def test_a_link_to_a_hit_opens_it(open_page: Any, served: Served) -> None:
    id = served.http.get("/api/search?q=blue").json()["hits"][0]["id"]
    page = open_page(f"{served.url}/?item={id}")
    page.locator("#viewer[open]").wait_for()
    page.get_by_text("Facts").wait_for()


@pytest.mark.slow
def test_names_and_captions_are_text(open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = "<img src=x onerror=alert(1)> {{7*7}} \u202egnp.exe.png"
    swatch("red", 0).save(tmp_path / "in" / "x.png")
    (tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "in")
        index.add_texts([f"red {HOSTILE}"], ids=['"><script>alert(1)</script>'], facts=[{HOSTILE: HOSTILE}])
        with serving(index) as served:
            page = open_page(f"{served.url}/?q=red+{HOSTILE}")
            page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
            for place in (0, 1):
                page.locator(".open").nth(place).click()
                page.get_by_text("Facts").wait_for()
                page.keyboard.press("Escape")
            assert page.locator("#results script, #viewer script, #results img[onerror]").count() == 0
            assert HOSTILE in page.locator(".said").text_content()


def test_an_empty_index_is_filled_from_the_page_and_a_run_is_cancelled(open_page: Any, tmp_path: Path) -> None:
    class Slow(ColourEncoder):
        def encode_images(self, images: Any) -> Any:
            time.sleep(0.4)
            return super().encode_images(images)

    (tmp_path / "in").mkdir()
    for seed in range(150):
        swatch("red", seed).save(tmp_path / "in" / f"{seed}.png")
    with (
        Index(tmp_path / "index", encoder=Slow()) as index,
        serving(index, Settings(port=0, allowed=(str(tmp_path / "in"),))) as served,
    ):
        page = open_page(served.url)
        page.get_by_role("heading", name="Nothing is indexed yet").wait_for()
        page.get_by_role("button", name="Index a folder").click()
        page.get_by_role("button", name="Start").click()
        page.wait_for_function("() => document.querySelector('#panel progress')?.value > 0")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled. What was read is kept").wait_for()
        assert 0 < served.http.get("/api/status").json()["images"] < 150
        page.get_by_role("button", name="Start").click()
        page.get_by_text("Done:").wait_for()
        page.get_by_role("button", name="Close").click()
        search(page, "red")
        page.locator(".tile").nth(50).wait_for()


@pytest.mark.slow
def test_a_search_waits_for_the_model_and_says_so(open_page: Any, tmp_path: Path) -> None:
    class Heavy(ColourEncoder):
        ready_at = 0.0

        def encode_texts(self, texts: Any) -> Any:
            time.sleep(max(0.0, self.ready_at - time.monotonic()))
            return super().encode_texts(texts)

    heavy = Heavy()
    with Index(tmp_path / "index", encoder=heavy) as index:
        index.add_texts(["red"])
        heavy.ready_at = time.monotonic() + 6
        with serving(index, is_ready=False) as served:
            page = open_page(f"{served.url}/?q=red")
            page.get_by_text("The model is being loaded").wait_for()
            page.locator(".tile").first.wait_for()


@pytest.mark.slow
def test_status_lists_what_was_skipped_and_why(open_page: Any, served: Served) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="What is indexed").click()
    page.get_by_text("1 file was skipped").click()
    assert "broken.jpg" in page.locator(".skipped").text_content()
    assert "is empty" in page.locator(".skipped").text_content()


@pytest.mark.slow
def test_a_file_that_is_gone_and_a_server_that_stopped_say_what_to_do(open_page: Any, tmp_path: Path) -> None:
    swatch("red", 0).save(tmp_path / "a.png")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add(tmp_path / "a.png")
        with serving(index) as served:
            (tmp_path / "a.png").unlink()
            page = open_page(f"{served.url}/?q=red")
            page.get_by_text("file gone").wait_for()
            page.locator(".open").first.click()
            page.get_by_text("Index its folder again").wait_for()
            page.keyboard.press("Escape")
        page.locator("#words").fill("blue")
        page.get_by_text("The server does not answer").wait_for()
        page.complaints.clear()  # a browser says by itself that a picture or an answer did not come


@pytest.mark.slow
def test_a_server_that_others_reach_asks_for_its_token(open_page: Any, tmp_path: Path) -> None:
    token = "correct-horse-battery-staple"
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts(["red"])
        with serving(index, Settings("0.0.0.0", 0, token)) as served:
            page = open_page(served.url)
            page.get_by_label("Token").fill("guessed-wrongly-so")
            page.get_by_role("button", name="Enter").click()
            page.get_by_text("This is not the token").wait_for()
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Enter").click()
            page.get_by_role("heading", name="What are you looking for?").wait_for()
            linked = open_page(f"{served.url}/#token={token}")
            linked.get_by_role("heading", name="What are you looking for?").wait_for()
            assert token not in linked.url
            page.complaints.clear()  # the browser reports each 401


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(open_page: Any, served: Served, scheme: str, width: int) -> None:
    page = open_page(
        f"{served.url}/?q=red+wall&kind=image",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        bypass_csp=True,  # axe is put into the page as a script
    )
    page.locator(".tile").first.wait_for()

    page.wait_for_timeout(300)
    check_accessibility(page)
    page.locator(".open").first.click()
    page.get_by_text("Facts").wait_for()
    check_accessibility(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="What is indexed").click()
    page.get_by_text("skipped").first.click()
    check_accessibility(page)
    page.get_by_role("button", name="Close").click()
    page.goto(served.url)
    page.get_by_role("heading", name="What are you looking for?").wait_for()
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
