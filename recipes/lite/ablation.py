"""What each part of the recipe is worth: `python recipes/lite/ablation.py` writes ablation.md.

Every line is the recipe without one part, or with another in its place, measured on the held-out sets. It reads what
`build.py` has fetched and computed; each line is trained anew.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from build import BEFORE, WORK, materials
from figures import rows
from learn import Parts

HERE = Path(__file__).parent
FULL = Parts()
UNWEIGHED = replace(FULL, crowd=0.0)
ONE_HEAD = replace(UNWEIGHED, heads=1)
EMOJI = (
    "noto",
    "noto-v1",
    "twemoji",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "fluent-emoji-3d",
)

VARIANTS = {
    "the recipe": FULL,
    "nothing learned: the classifier's half alone": replace(FULL, heads=0),
    "the classifier's half as it was before": BEFORE,
    "without the crowd of texts": replace(FULL, text_crowd=0.0),
    "without both crowds: hubs answer as much as others": UNWEIGHED,
    "without both crowds, one network instead of three": ONE_HEAD,
    "one network: without earlier stages of the tower": replace(ONE_HEAD, early=False),
    "one network: without colours by rule": replace(ONE_HEAD, coloured=False),
    "one network: without changed views": replace(ONE_HEAD, views=1),
    "one network: without openclipart": replace(ONE_HEAD, left_out=("openclipart",)),
    "one network: without emoji": replace(ONE_HEAD, left_out=EMOJI),
    "one network: without flags and Tango": replace(ONE_HEAD, left_out=("flag-icons", "tango")),
    "one network: sigmoid loss instead of InfoNCE": replace(ONE_HEAD, settings=replace(FULL.settings, loss="sigmoid")),
    "one network: without what a class is a kind of": replace(ONE_HEAD, above=0.0),
    "one network: without definitions": replace(ONE_HEAD, definition=0.0),
    "one network: ten classes instead of sixty": replace(ONE_HEAD, top=10),
    "one network: learned half weighed 1": replace(ONE_HEAD, share=1.0),
}
SHOWN = (
    "sentences @1",
    "sentences @10",
    "sentences median",
    "picture finds sentence @1",
    "picture finds sentence @10",
    "words @1",
    "words @5",
    "words @10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--target", type=Path, default=HERE / "ablation.md")
    arguments = parser.parse_args()
    things = materials(arguments.work, print)
    lines = [
        "# What each part of the recipe is worth",
        "",
        "All queries of the held-out sets (both halves), recall with 95 % bootstrap intervals. Written by",
        "`python recipes/lite/ablation.py`. A part whose line lies within the intervals of the line that it is",
        "compared with (the recipe, or one network, which has no crowd) is worth no more than these sets can tell.",
        "",
        "| | " + " | ".join(SHOWN) + " |",
        "| --- |" + " --- |" * len(SHOWN),
    ]
    for name, parts in VARIANTS.items():
        started = time.monotonic()
        head = things.ground.learned(parts)
        found = rows(things.asked, things.ground.asked(head), head.encode)
        lines.append(f"| {name} | " + " | ".join(found[figure] for figure in SHOWN) + " |")
        print(f"{time.monotonic() - started:5.0f} s  {lines[-1]}", flush=True)
    arguments.target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
