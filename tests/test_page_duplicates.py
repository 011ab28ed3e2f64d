"""Duplicates on the page: asked for, chosen from by mouse and by keys, at every width and in the dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmsearch import Index
from tests.chromium import Open, check_accessibility, needs_chromium
from tests.colours import ColourEncoder
from tests.pictures import scene
from tests.served import Served, serving

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pictures")
    whole = scene((640, 480), seed=1)
    whole.save(folder / "<b>whole.png")
    whole.resize((200, 150)).save(folder / "small.png")
    scene((320, 240), seed=2).save(folder / "one.png")
    shutil.copy(folder / "one.png", folder / "other.png")
    for seed in range(3, 6):
        scene((320, 240), seed=seed).save(folder / f"{seed}.png")
    with Index(tmp_path_factory.mktemp("served") / "index", encoder=ColourEncoder()) as index:
        index.add(folder)
        with serving(index) as served:
            yield served


def test_duplicates_are_found_and_chosen(open_page: Open, served: Served, tmp_path: Path) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="What is indexed").click()
    page.get_by_role("button", name="Look for duplicates").click()
    page.wait_for_url("**view=duplicates")
    page.get_by_label("How alike").select_option("Almost the same (0.8)")
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_text("2 groups; 2 spare pictures").wait_for()
    groups = page.locator(".groups > li")
    names = groups.locator(".name").all_text_contents()
    assert sorted(names) == ["<b>whole.png", "one.png", "other.png", "small.png"]
    assert names.index("small.png") == names.index("<b>whole.png") + 1
    assert groups.get_by_text("same bytes").count() == 1 and groups.get_by_text("likeness").count() == 1
    page.get_by_role("button", name="Select all but the first of each").click()
    page.get_by_text("2 selected").wait_for()
    with page.expect_download() as download:
        page.locator("#selection").get_by_role("button", name="Paths").click()
    download.value.save_as(tmp_path / "paths")
    paths = {Path(path).name for path in (tmp_path / "paths").read_text().splitlines()}
    assert "small.png" in paths and len(paths & {"one.png", "other.png"}) == 1
    page.go_back()
    page.locator("#duplicates").wait_for(state="hidden")
    page.go_forward()
    page.get_by_text("2 groups; 2 spare pictures").wait_for()  # still known


def test_all_but_the_first_of_every_group_are_selected_and_not_of_those_listed_alone(
    open_page: Open, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(90):
        Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / "in" / f"{number}.bmp")
        shutil.copy(tmp_path / "in" / f"{number}.bmp", tmp_path / "in" / f"{number} copy.bmp")
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index, serving(index) as served:
        index.add(tmp_path / "in")
        served.http.post("/api/duplicates", json={"threshold": 1})
        page = open_page(f"{served.url}/?view=duplicates")
        page.get_by_text("90 groups; 90 spare pictures").wait_for()
        assert page.locator(".groups > li").count() == 40
        page.get_by_role("button", name="Select all but the first of each").click()
        page.get_by_text("90 selected").wait_for()
        with page.expect_download() as download:
            page.locator("#selection").get_by_role("button", name="Paths").click()
        download.value.save_as(tmp_path / "paths")
        paths = (tmp_path / "paths").read_text().splitlines()
        assert len(set(paths)) == 90 and all(path.endswith(" copy.bmp") for path in paths)


def test_duplicates_are_gone_through_by_keys(open_page: Open, served: Served) -> None:
    page = open_page(f"{served.url}/?view=duplicates")
    page.get_by_label("How alike").focus()
    page.keyboard.press("Home")  # copies to the byte
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("1 group; 1 spare").wait_for()
    page.locator(".version .open").first.focus()
    page.keyboard.press("x")
    page.get_by_text("1 selected").wait_for()
    page.keyboard.press("Enter")
    page.locator("#viewer[open]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#viewer[open]").wait_for(state="detached")
    assert page.evaluate("document.activeElement.closest('.version') !== null")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.locator("#selection").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_among_duplicates(open_page: Open, served: Served, scheme: str, width: int) -> None:
    served.http.post("/api/duplicates", json={"threshold": 1})
    page = open_page(
        f"{served.url}/?view=duplicates",
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        bypass_csp=True,
    )
    page.get_by_text("1 group; 1 spare").wait_for()
    page.locator(".version img.there").first.wait_for()
    page.wait_for_timeout(300)
    check_accessibility(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
