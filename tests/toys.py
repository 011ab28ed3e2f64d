"""Pairs that a tiny encoder learns in seconds: coloured shapes with what they are, drawn on the spot."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (220, 210, 20)}
SHAPES = ("disc", "square", "cross")
WORDS = ("day", "night")


def shape(colour: str, kind: str, seed: int, side: int = 32) -> Image.Image:
    """One shape somewhere on white."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    x, y = (int(number) for number in random.integers(2, side // 3, 2))
    size = int(random.integers(side // 2, side * 2 // 3))
    box = (x, y, x + size, y + size)
    if kind == "disc":
        draw.ellipse(box, fill=COLOURS[colour])
    elif kind == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.line(box, fill=COLOURS[colour], width=4)
        draw.line((x + size, y, x, y + size), fill=COLOURS[colour], width=4)
    return image


def pairs(folder: Path, count: int = 96, seed: int = 0) -> Path:
    """A table of pictures, what they show, and a class that neither side decides alone.

    The class is "calm" where a warm colour comes with "day" or a cold one with "night", else "odd".
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    table = folder / "pairs.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "caption", "feeling"))
        for number in range(count):
            colour, kind = list(COLOURS)[number % 4], SHAPES[number // 4 % 3]
            word = WORDS[int(random.integers(2))]
            shape(colour, kind, seed * 10_000 + number).save(folder / f"{number}.png")
            warm = colour in ("red", "yellow")
            rows.writerow(
                (f"{number}.png", f"a {colour} {kind} by {word}", "calm" if warm == (word == "day") else "odd")
            )
    return table
