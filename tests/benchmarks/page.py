"""The page in Chromium, on a large index: how soon the first hits are on the screen, and how smoothly the map moves.

The pictures are there, each a link to one of a few, so that thumbnails are made and drawn as they would be. Without a
graphics card, as here, Chromium paints on the same processor that the server and the page run on.
"""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsearch import Index
from mmsearch.store.metadata import Store
from mmsearch.store.queries import DATABASE
from tests.benchmarks import indexing
from tests.benchmarks.measure import Row
from tests.benchmarks.queries import fill_lite
from tests.benchmarks.serving import server_of
from tests.chromium import CHROMIUM

WORDS = (
    "a dog",
    "red balloon",
    "house by the sea",
    "old man",
    "bicycle",
    "birthday cake",
    "snowy mountain",
    "two cats",
)
SECONDS = 4.0  # for which the map is moved

# From Enter to the first tile in a frame, and to the first picture in one
SEARCH = """async (words) => {
    const box = document.querySelector('#words');
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const waited = async (selector) => { while (!document.querySelector(selector)) await frame(); await frame(); };
    box.value = words;
    const began = performance.now();
    document.querySelector('#search').requestSubmit();
    await waited('.tile');
    const hits = performance.now() - began;
    await waited('.tile img.there');
    return [hits, performance.now() - began];
}"""
# Zoom in and out and pan without a pause, and note how long each frame took
MOVE = """async (seconds) => {
    const canvas = document.querySelector('.map-stage canvas');
    const box = canvas.getBoundingClientRect();
    const frames = [];
    let last = performance.now();
    const end = last + 1000 * seconds;
    for (let step = 0; last < end; step++) {
        canvas.dispatchEvent(new WheelEvent('wheel', { deltaY: step % 120 < 60 ? -40 : 40, cancelable: true,
            clientX: box.left + box.width * (0.4 + 0.2 * Math.sin(step / 20)), clientY: box.top + box.height / 2 }));
        const now = await new Promise(requestAnimationFrame);
        frames.push(now - last);
        last = now;
    }
    return frames.slice(5);
}"""


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    """Measure in an empty folder."""
    from playwright.sync_api import sync_playwright

    count = 20_000 if quick else 100_000
    index = folder / "index"
    fill_lite(index, count)
    link_pictures(index, folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        with server_of(index) as server:
            address = f"http://127.0.0.1:{server.port}"
            yield first_hits(browser, address, index, count)
        yield making_the_map(index, count)
        with server_of(index) as server:
            yield frames_of_the_map(browser, f"http://127.0.0.1:{server.port}", count)
        browser.close()


def link_pictures(index: Path, folder: Path) -> None:
    """Have the made-up paths of an index lead to pictures."""
    drawn = folder / "drawn"
    drawn.mkdir()
    indexing.draw(drawn, (512, 512), 100)
    pictures = sorted(drawn.iterdir())
    store = Store(index)
    with store.write() as writer, writer.transaction():
        writer.connection.execute("UPDATE files SET path = ? || path WHERE path LIKE '/photos/%'", (str(folder),))
        paths = [path for (path,) in writer.connection.execute("SELECT path FROM files WHERE kind = 'image'")]
    store.close()
    for number, path in enumerate(paths):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(pictures[number % len(pictures)], path)


def first_hits(browser: Any, address: str, index: Path, count: int) -> Row:
    """Words that the index does not remember, and thumbnails that it does; each in a browser with nothing kept."""
    taken: list[list[float]] = []
    for words in ("warm up", *WORDS):
        for is_measured in (False, True):
            (index / DATABASE).unlink(missing_ok=True)
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
            page.goto(address)
            page.locator(".examples").wait_for()
            times = page.evaluate(SEARCH, words)
            page.wait_for_load_state("networkidle")
            context.close()
            if is_measured and words in WORDS:
                taken.append(times)
    hits, pictures = (statistics.median(part) for part in zip(*taken, strict=True))
    return Row(
        f"from Enter to the first hits on the screen, {count:,} items (to the first picture)",
        f"{hits:.0f} ms ({pictures:.0f} ms)",
        {"hits_ms": hits, "picture_ms": pictures},
    )


def making_the_map(index: Path, count: int) -> Row:
    """The first map, and one more item put into it."""
    with Index(index) as opened:
        started = time.perf_counter()
        opened.map()
        first = time.perf_counter() - started
        opened.add_texts(["one more"])
        started = time.perf_counter()
        opened.map()
        again = time.perf_counter() - started
    return Row(
        f"the map of {count:,} items (one more put in)",
        f"{first:.0f} s ({again:.1f} s)",
        {"seconds": first, "again_seconds": again},
    )


def frames_of_the_map(browser: Any, address: str, count: int) -> Row:
    """Frames a second while the map is zoomed and moved, at the size of a desktop's window."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"{address}/?view=map")
    page.locator(".strip a").first.wait_for()
    page.wait_for_load_state("networkidle")
    frames = page.evaluate(MOVE, SECONDS)
    page.close()
    rate = 1000 / statistics.mean(frames)
    slow = statistics.quantiles(frames, n=20)[18]
    return Row(
        f"frames a second while the map of {count:,} points is moved (the slowest twentieth of frames)",
        f"{rate:.0f} ({slow:.0f} ms and more)",
        {"rate": rate, "p95_ms": slow},
    )
