"""The map, in a real browser: drawn, moved, hovered, lassoed; by mouse, by keys, and for who does not see it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsearch import Index
from tests.chromium import Open, check_accessibility, needs_chromium
from tests.colours import COLOURS, ColourEncoder, swatch
from tests.served import Served, serving

pytestmark = needs_chromium
EACH = 10
TOTAL = EACH * len(COLOURS) + 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    for colour in COLOURS:
        for seed in range(EACH):
            swatch(colour, seed, (160, 120)).save(folder / f"{colour}-{seed}.png")
    (folder / "notes.txt").write_text("green is the meadow behind the house")
    with Index(tmp_path_factory.mktemp("served") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        with serving(index) as served:
            yield served


def drawn(page: Any) -> Any:
    """The page once the map is there and what is near its middle is named."""
    page.locator(".strip a").first.wait_for()
    return page


def box(page: Any) -> dict[str, float]:
    return dict(page.locator(".map-stage").bounding_box())


def drag(page: Any, *corners: tuple[float, float]) -> None:
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=6)
    page.mouse.up()


def in_view(page: Any, fewer_than: int | None = None) -> int:
    """How many points the page says are in view, once these are fewer."""
    most = 10**9 if fewer_than is None else fewer_than
    count = page.wait_for_function(
        "(most) => { const count = parseInt(document.querySelector('.map-foot .quiet').textContent);"
        " return count < most ? count + 1 : null; }",
        arg=most,
    )
    return int(count.json_value()) - 1


def test_it_is_made_drawn_and_has_an_address(open_page: Open, served: Served) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="Map of the collection").click()
    drawn(page)
    assert page.url.endswith("?view=map") and in_view(page) == TOTAL
    inks = page.evaluate(
        """() => { const canvas = document.querySelector('.map-stage canvas');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(pixels.data.buffer)).size; }"""
    )
    assert inks > 4  # the ground, points, the text's colour
    page.go_back()
    page.get_by_role("heading", name="What are you looking for?").wait_for()
    assert page.locator("#map").is_hidden()


def test_the_wheel_zooms_a_drag_moves_and_a_click_opens(open_page: Open, served: Served) -> None:
    page = drawn(open_page(f"{served.url}/?view=map"))
    at = box(page)
    middle = (at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -900)
    inside = in_view(page, TOTAL)
    drag(page, middle, (middle[0], middle[1] + 3000))  # beyond the edge: nothing is left in view
    page.wait_for_function(
        "(text) => !document.querySelector('.map-foot .quiet').textContent.startsWith(text)", arg=f"{inside} "
    )
    page.get_by_role("button", name="Show the whole map").click()
    page.wait_for_function(
        "(text) => document.querySelector('.map-foot .quiet').textContent.startsWith(text)", arg=f"{TOTAL} "
    )
    page.locator(".strip a").first.click()
    page.locator("#viewer[open]").wait_for()
    assert "view=map" in page.url and "item=" in page.url
    page.keyboard.press("Escape")
    page.locator("#viewer[open]").wait_for(state="detached")
    assert page.locator("#map").is_visible()


def test_hovering_shows_the_picture_and_its_name(open_page: Open, served: Served) -> None:
    page = drawn(open_page(f"{served.url}/?view=map"))
    map_ = served.index.kept_map()
    assert map_ is not None
    at = box(page)
    wide, high = min(at["width"], 1.9 * at["height"]), min(at["height"], 1.9 * at["width"])
    x, y = map_.points[3].tolist()
    left = at["x"] + at["width"] / 2 + (x - 0.5) * wide
    top = at["y"] + at["height"] / 2 + (y - 0.5) * high
    page.mouse.move(left - 2, top - 2)
    page.mouse.move(left, top)
    page.locator(".map-hover.open img").wait_for()
    page.wait_for_function("() => /-\\d+\\.png/.test(document.querySelector('.map-hover figcaption').textContent)")


def test_a_lasso_selects_what_is_inside_and_the_selection_is_downloaded(
    open_page: Open, served: Served, tmp_path: Path
) -> None:
    page = drawn(open_page(f"{served.url}/?view=map"))
    at = box(page)
    left, top = at["x"] + 2, at["y"] + 2
    right, bottom = at["x"] + at["width"] - 2, at["y"] + at["height"] - 2
    middle = at["x"] + at["width"] / 2
    map_ = served.index.kept_map()
    assert map_ is not None
    expected = {served.index.item(id).path for id, (x, _) in zip(map_.ids, map_.points, strict=True) if x < 0.5}
    page.get_by_role("button", name="Select by drawing a line around").click()
    halfway = (top + bottom) / 2  # the corners are round: a line does not begin there
    drag(page, (left, halfway), (left, top), (middle, top), (middle, bottom), (left, bottom))
    page.get_by_text(f"{len(expected)} selected").wait_for()
    with page.expect_download() as download:
        page.locator("#selection").get_by_role("button", name="Paths").click()
    download.value.save_as(tmp_path / "paths")
    assert set((tmp_path / "paths").read_text().splitlines()) == expected
    with page.expect_download() as download:
        page.locator("#selection").get_by_role("button", name="JSON").click()
    download.value.save_as(tmp_path / "json")
    assert {item["path"] for item in json.loads((tmp_path / "json").read_text())} == expected
    drag(page, (right - 40, bottom), (right - 20, bottom - 20))  # no lasso any more: this moves the map
    assert page.locator("#selected").text_content() == f"{len(expected)} selected"


def test_it_can_be_used_without_a_mouse_and_without_seeing_it(open_page: Open, served: Served) -> None:
    page = drawn(open_page(f"{served.url}/?view=map"))
    page.locator("canvas").first.focus()
    for _ in range(4):
        page.keyboard.press("+")
    inside = in_view(page, TOTAL)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("0")
    page.wait_for_function(
        "(text) => document.querySelector('.map-foot .quiet').textContent.startsWith(text)", arg=f"{TOTAL} "
    )
    assert inside < TOTAL
    page.get_by_role("button", name=f"Select these {TOTAL}").press("Enter")
    page.get_by_text(f"{TOTAL} selected").wait_for()
    names = page.locator(".strip a").evaluate_all("links => links.map((link) => link.getAttribute('aria-label'))")
    assert len(names) == 24 and all(names)
    page.locator("canvas").first.focus()
    page.keyboard.press("Enter")
    page.locator("#viewer[open]").wait_for()


def test_words_lead_back_to_pictures(open_page: Open, served: Served) -> None:
    page = drawn(open_page(f"{served.url}/?view=map"))
    page.locator("#words").fill("red")
    page.locator("#words").press("Enter")
    page.locator(".tile").first.wait_for()
    assert "view" not in page.url and page.locator("#map").is_hidden()


def test_an_index_without_anything_says_so(open_page: Open, tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        page = open_page(f"{served.url}/?view=map")
        page.get_by_text("There is nothing to show on a map yet").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(open_page: Open, served: Served, scheme: str, width: int) -> None:
    page = open_page(
        f"{served.url}/?view=map", color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True
    )
    drawn(page)
    check_accessibility(page)
    page.get_by_role("button", name=f"Select these {TOTAL}").click()
    page.get_by_text(f"{TOTAL} selected").wait_for()
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
