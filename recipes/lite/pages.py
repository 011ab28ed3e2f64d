"""Two pages to look at: `python recipes/lite/pages.py` writes fifty.html and worst.html into --work.

fifty.html holds fifty plain queries on openclipart and wallpapers, before and after, side by side. The drawings among
them were learned from; worst.html, the held-out queries whose right picture came last, was not.
"""

import argparse
import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import sources
from build import BEFORE, WORK, Materials, drawable, materials
from figures import Encode, Seen
from learn import Learned, Parts, seen
from pictures import plain
from towers import IMAGE_SIZE

from mmsearch.evaluate import best_ranks

QUERIES = (
    *(
        "cat",
        "a small brown dog lying on grass",
        "elephant",
        "butterflies",
        "a horse",
        "fish",
        "red flower",
        "mountains",
    ),
    *("yellow flower", "tree", "sunset over the sea", "rain drops on a window", "a green meadow", "sailing boat"),
    *(
        "an old steam train",
        "bicycle",
        "airplane in the sky",
        "red sports car",
        "truck",
        "umbrella",
        "a house with a red roof",
    ),
    *("church", "castle", "lighthouse", "cup of coffee", "pizza", "fruit", "green apple", "bananas", "birthday cake"),
    *("a glass of wine", "guitar", "a stringed musical instrument", "drum", "hammer", "scissors", "light bulb"),
    *("a pair of glasses", "telephone", "clock", "an open book", "flag of Germany", "christmas tree", "snow"),
    *("people dancing", "a smiling face", "a woman with long hair", "a soccer player", "cat and ball", "stop sign"),
)
WALLPAPERS = ("mate-backgrounds", "gnome-backgrounds")
SHOWN = 5
WORST = 60
SIDE = 96  # pixels of a thumbnail

STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;max-width:75em}td,th{padding:.3em .8em;text-align:left;"
    "border-top:1px solid #ccc}img{margin:2px;vertical-align:middle;max-height:96px}h1{font-size:1.4em}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    work = parser.parse_args().work
    things = materials(work, print)
    before, now = things.ground.learned(BEFORE), things.ground.learned(Parts())
    _write(work / "fifty.html", *fifty(things, before, now, work))
    _write(work / "worst.html", *worst(things, now))


def fifty(things: Materials, before: Learned, now: Learned, work: Path) -> tuple[str, list[str]]:
    """A row a query: the first hits of both."""
    packages = work / "packages"
    sources.download(packages, {}, WALLPAPERS)
    papers = [
        path
        for name in WALLPAPERS
        for path in sorted(sources.debian_folder(packages, name).rglob("*"))
        if path.suffix in (".jpg", ".png", ".webp") and not path.is_symlink() and "_3840x2160" not in path.stem
    ]
    pictures = [path for path in papers if drawable(path) is not None]
    opened: list[Callable[[], object]] = [lambda path=path: sources.opened(path) for path in pictures]
    looked = seen(work / "image.onnx", opened, IMAGE_SIZE, 0, work / "wallpapers.npy")
    clip_art = [row for row, one in enumerate(things.ground.drawn) if one.drawing.source == "openclipart"]
    shown = [things.ground.drawn[row].path for row in clip_art] + pictures
    features = np.concatenate([things.ground.views[0][clip_art], looked]).astype(np.float32)
    rows = []
    found = [_first(things.ground.asked(head)(QUERIES), head.encode, features) for head in (before, now)]
    for query, *orders in zip(QUERIES, *found, strict=True):
        cells = ("".join(_picture(shown[place]) for place in order) for order in orders)
        rows.append(f"<tr><th>{html.escape(query)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    title = f"Fifty plain queries, {len(shown)} pictures of openclipart, mate-backgrounds and gnome-backgrounds"
    return title, ["<tr><th></th><th>before</th><th>now</th></tr>", *rows]


def _first(texts: np.ndarray, encode: Encode, features: np.ndarray) -> np.ndarray:
    """(queries, SHOWN) places of the first hits."""
    return np.argsort(-(texts @ encode(features).T), axis=1, kind="stable")[:, :SHOWN]


def worst(things: Materials, now: Learned) -> tuple[str, list[str]]:
    """A row a query, the worst first: the right picture, its rank, and what came instead."""
    found: list[tuple[int, str]] = []
    for asked in things.asked:
        found += _misses(asked, things.ground.asked(now)(asked.held_out.queries), now.encode)
    found.sort(key=lambda miss: -miss[0])
    title = f"The {WORST} worst answers to queries that no part of the recipe has seen"
    return title, [
        "<tr><th></th><th>rank</th><th>right</th><th>came instead</th></tr>",
        *(row for _, row in found[:WORST]),
    ]


def _misses(asked: Seen, texts: np.ndarray, encode: Encode) -> list[tuple[int, str]]:
    held_out = asked.held_out
    scores = texts @ encode(asked.features).T
    ranks = best_ranks(scores, held_out.right)
    order = np.argsort(-scores, axis=1, kind="stable")
    rows = []
    for place in np.argsort(-ranks)[:WORST]:
        right = max(np.flatnonzero(held_out.right[place]), key=lambda picture, row=place: scores[row, picture])
        instead = "".join(_picture(held_out.pictures[hit]) for hit in order[place, :SHOWN])
        query = html.escape(held_out.queries[place])
        cells = f"<td>{ranks[place]}</td><td>{_picture(held_out.pictures[right])}</td><td>{instead}</td>"
        rows.append((int(ranks[place]), f"<tr><th>{query}</th>{cells}</tr>"))
    return rows


def _picture(path: Path) -> str:
    image = plain(sources.opened(path))
    image.thumbnail((SIDE, SIDE))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=70)
    data = base64.b64encode(held.getvalue()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/jpeg;base64,{data}">'


def _write(path: Path, title: str, rows: Sequence[str]) -> None:
    head = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    path.write_text(f"{head}<table>{''.join(rows)}</table>", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
