"""Chromium, driven by Playwright: fixtures for tests that look at the page as people do."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
PATIENCE_MS = 45_000  # a loaded machine takes its time

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]  # CI runs as root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open an address; whatever the page complains about by then is an error of the test."""
    with ExitStack() as contexts:
        complaints: list[str] = []

        def open_(url: str, **options: Any) -> Any:
            context = browser.new_context(accept_downloads=True, **options)
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            page.complaints = complaints
            page.goto(url)
            return page

        yield open_
        assert complaints == []


def check_accessibility(page: Any) -> None:
    """axe-core finds nothing serious in what is shown. The page is opened with bypass_csp: axe is a script."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []
