"""`python -m tests.benchmarks.emoji PACKAGES WORK STEPS`: a fresh encoder, tested on emoji of a style left out.

PACKAGES: where recipes/lite/sources.py puts the npm packages (`sources.download`). Emoji of all skin tones and genders,
as five styles draw them, with the names of Unicode CLDR; Twemoji is the test. Needs resvg_py, as the recipe of lite.

    two towers   resnet18 and a BiLSTM from random weights: recall@10 on the unseen style, against chance
    fusion       the same with image-text matching: AUC of matched against unmatched pairs of the unseen style
"""

import csv
import io
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmsearch.decoding import DecodePool, Skip
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.joint import fused_of
from mmsearch.evaluate import auc, best_ranks, recall_interval
from mmsearch.train import checkpoints
from mmsearch.train.design import EncoderDesign
from mmsearch.train.encoder import Moment, train_encoder

STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "twemoji")
TEST = "twemoji"
SIDE = 64
DESIGN = EncoderDesign.of(
    {
        "image_tower": "resnet18",
        "text_tower": "bilstm",
        "image_size": 40,
        "dim": 128,
        "text_width": 128,
        "dropout": 0.1,
        "batch": 128,
        "learning_rate": 1e-3,
        "max_tokens": 24,
    }
)


def prepare(packages: Path, work: Path) -> Path:
    """Draws the emoji, once, and writes the table of pairs."""
    table = work / "pairs.csv"
    if table.exists():
        return table
    import resvg_py

    work.mkdir(parents=True, exist_ok=True)
    named = {}
    for part, key in (("cldr-annotations-derived-full/annotationsDerived", "annotationsDerived"),
                      ("cldr-annotations-full/annotations", "annotations")):  # fmt: skip
        said = json.loads((packages / "npm" / part / "en/annotations.json").read_text(encoding="utf-8"))
        named |= {bare(character): of["tts"][0] for character, of in said[key]["annotations"].items() if "tts" in of}
    characters = {}
    for style in STYLES:
        if (chars := packages / "npm" / f"iconify-json-{style}" / "chars.json").exists():
            for codes, name in json.loads(chars.read_text(encoding="utf-8")).items():
                characters[name] = bare("".join(chr(int(code, 16)) for code in codes.split("-")))
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "caption", "group", "split"))
        for style in STYLES:
            (work / style).mkdir(exist_ok=True)
            icons = json.loads((packages / "npm" / f"iconify-json-{style}" / "icons.json").read_text(encoding="utf-8"))
            seen = set()
            for name, icon in icons["icons"].items():
                character = characters.get(name, "")
                if character not in named or character in seen:
                    continue
                seen.add(character)
                width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
                body = icon["body"].replace("currentColor", "#000")
                svg = (
                    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}">{body}</svg>'
                )
                png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, skip_system_fonts=True)
                drawn = Image.open(io.BytesIO(png)).convert("RGBA")
                white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
                path = f"{style}/{re.sub(r'[^a-z0-9-]', '-', name)}.png"
                white.save(work / path)
                rows.writerow((path, named[character], character, "test" if style == TEST else "train"))
    return table


def bare(character: str) -> str:
    """Without the mark that asks for a coloured picture: some sources write it, some do not."""
    return character.replace("\ufe0f", "")


def measured(folder: Path, table: Path) -> None:
    """Prints what the bundle finds of the unseen style, asked as an index asks it."""
    bundle = Bundle.open(folder)
    with table.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    names = list(dict.fromkeys(row["caption"] for row in rows))
    pixels = {}
    with DecodePool(bundle.pixels) as pool:
        for path, decoded in pool.decode(str(table.parent / row["file"]) for row in rows):
            if not isinstance(decoded, Skip):
                pixels[path] = decoded.pixels
    shown = np.stack([pixels[str(table.parent / row["file"])] for row in rows])
    images = bundle.project_images(bundle.image_features(shown))
    texts = bundle.encode_texts(names)
    right = np.array([[row["caption"] == name for row in rows] for name in names])
    found = recall_interval(best_ranks(texts @ images.T, right), 10)
    back = recall_interval(best_ranks(images @ texts.T, right.T), 10)
    chance = 10 / len(rows)
    print(f"{len(names):,} names, {len(rows):,} pictures of an unseen style; chance {chance:.4f}")
    print(f"recall@10 by name: {found} ({found.value / chance:.0f} x chance); by picture: {back}")
    fused = fused_of(bundle)
    if fused is not None and fused.worth is not None:
        print(fused.worth.said())
        random = np.random.default_rng(0)
        places = {name: place for place, name in enumerate(names)}
        own = np.array([places[row["caption"]] for row in rows])
        hard = (images @ texts.T + np.where(right.T, -9, 0)).argmax(axis=1)  # the wrong name that its towers like best
        for what, wrong in (
            ("random", (own + random.integers(1, len(names), len(own))) % len(names)),
            ("hardest", hard),
        ):
            asked = random.permutation(len(rows))[:1000]
            yes = np.concatenate([fused.logits(shown[[i]], [names[own[i]]]) for i in asked])
            no = np.concatenate([fused.logits(shown[[i]], [names[wrong[i]]]) for i in asked])
            cosine_yes = (images[asked] * texts[own[asked]]).sum(axis=1)
            cosine_no = (images[asked] * texts[wrong[asked]]).sum(axis=1)
            print(f"AUC against {what} wrong names: fusion {auc(yes, no):.3f}, cosine {auc(cosine_yes, cosine_no):.3f}")


def told(moment: Moment) -> None:
    """A line on stderr."""
    print(moment, file=sys.stderr, flush=True)


def main() -> None:
    """Draw, train, measure."""
    packages, work, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    wanted = sys.argv[4:] or ["towers", "fusion"]
    table = prepare(packages, work)
    with_fusion = {"objective": {"info_nce": 1.0, "matching": 1.0}, "fusion": "cross_attention", "fusion_width": 128}
    for kind, change in (("towers", {}), ("fusion", with_fusion)):
        if kind in wanted:
            started = time.monotonic()
            design = replace(DESIGN, **change, steps=steps, interval=max(1, steps // 4), warmup_steps=steps // 10)
            resume = checkpoints.latest(work / f"{kind}.training") is not None
            report = train_encoder([table], work / kind, design, tell=told, resume=resume)
            assert report is not None
            print(f"{kind}: {steps} steps of {design.batch} in {report.seconds / 60:.1f} min", flush=True)
            print(f"with decoding and writing the model {(time.monotonic() - started) / 60:.1f} min", flush=True)
            measured(work / kind, table)


if __name__ == "__main__":
    main()
