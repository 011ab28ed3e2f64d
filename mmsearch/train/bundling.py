"""From a trained model to a bundle that `index --model` reads at once, compared with torch before it is kept."""

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.calibration import Calibration
from mmsearch.encoders.conversion import convert, sample_pixels
from mmsearch.encoders.joint import describing_of, fused_of
from mmsearch.encoders.manifest import HeadSpec
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.writing import write_bundle
from mmsearch.errors import ModelError
from mmsearch.everyday import QUERIES
from mmsearch.judging import standing
from mmsearch.train.comparing import Compared, HeldOut
from mmsearch.train.model import Model
from mmsearch.train.recurrent import IN_ONNX
from mmsearch.train.towers import ImageTower, TextTower
from mmsearch.train.words import BEGIN, END, Words

AGREEMENT = 0.999  # cosine between torch and the bundle, the least of all rows
LOGITS_APART = 0.04  # and of a fusion encoder's logits, the most: 0.01 of a probability
CALIBRATED_FROM = 30  # held-out pairs
SAMPLES = ("a dog", "red", "a longer text with a few more words in it", "")


class _Tower(nn.Module):
    """A tower as a graph: its features, and its tokens where something reads them."""

    def __init__(self, tower: ImageTower | TextTower, with_tokens: bool) -> None:
        super().__init__()
        self.tower, self.with_tokens = tower, with_tokens

    def forward(self, given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        read = self.tower(given)
        return (read.features, read.tokens) if self.with_tokens else read.features


def make_bundle(
    folder: Path,
    model: Model,
    words: Words,
    spec: PixelSpec,
    classes: Sequence[str],
    facts: Mapping[str, str],
    held_out: HeldOut | None,
) -> Bundle:
    """Writes the bundle of a model on the CPU. facts: for the card. held_out: to calibrate by.

    Raises ModelError where torch cannot write it, or where the result does not agree with torch.
    """
    model.eval()
    design = model.design
    pixels = sample_pixels(spec)
    ids = torch.from_numpy(words.rows(list(SAMPLES)))
    with torch.inference_mode():
        shown, said = model.image(pixels), model.text(ids)
        expected = model.image_vectors(shown).numpy(), model.text_vectors(said).numpy()

    extras: dict[str, Any] = {}
    stands_out = _stands_out(model, words, held_out)
    if held_out is not None and stands_out is not None:
        extras["calibration"] = vars(Calibration.fitted(stands_out[held_out.right], stands_out[~held_out.right]))
    if model.fusion is not None:
        matches = "matching" in design.objective
        extras["fusion"] = {"matches": matches, "classes": list(classes)}
        if matches:
            facts = {**facts, "fusion encoder": "not measured: `match` takes the cosine, `--rerank` is refused"}
            if held_out is not None and stands_out is not None:
                worth, curve = Compared(model, words, held_out, stands_out).judged()
                extras["fusion"] |= {"worth": vars(worth), "calibration": vars(curve)}
                facts = {**facts, "fusion encoder": worth.said()}
    if model.decoder is not None:
        extras["decoder"] = {"begin": words.id(BEGIN), "end": words.id(END)}

    def check(bundle: Bundle) -> None:
        images = bundle.project_images(bundle.image_features(pixels.numpy()))
        texts = bundle.encode_texts(SAMPLES)
        least = min(float((rows * due).sum(axis=1).min()) for rows, due in zip((images, texts), expected, strict=True))
        if not least >= AGREEMENT:  # also where it is not a number
            raise ModelError(f"The model in ONNX differs from torch's (cosine {least:.4f}); it is not kept.")
        fused, describing = fused_of(bundle), describing_of(bundle)
        if fused is not None and model.fusion is not None:
            apart = float(np.abs(fused.logits(pixels.numpy(), SAMPLES[:3]) - _logits(model, pixels, words)).max())
            if not apart <= LOGITS_APART:
                raise ModelError(f"The fusion encoder in ONNX differs from torch's (by {apart:.4f}); it is not kept.")
        if describing is not None:
            describing.describe(pixels.numpy()[0])

    return write_bundle(
        folder,
        lambda draft: _write_graphs(model, words, spec, draft),
        name=folder.name,
        dim=design.dim,
        pixels=spec,
        text=words.spec,
        tokenizer_json=words.json,
        image_head=_linear(model.image_head),
        text_head=_linear(model.text_head),
        card=_card(folder.name, model, spec, words, facts),
        extras=extras,
        check=check,
    )


def check_writable(model: Model, words: Words, spec: PixelSpec, scratch: Path) -> None:
    """Raises ModelError where torch cannot write a model of this kind as ONNX, with whatever weights."""
    training = model.training
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(dir=scratch, prefix=".onnx-") as draft:
        _write_graphs(model.eval(), words, spec, Path(draft))
    model.train(training)


def _write_graphs(model: Model, words: Words, spec: PixelSpec, draft: Path) -> None:
    pixels = sample_pixels(spec)
    ids = torch.from_numpy(words.rows(list(SAMPLES)))
    joint = model.fusion is not None or model.decoder is not None
    outputs = ("features", "tokens") if joint else ("features",)
    with torch.inference_mode():
        shown, said = model.image(pixels), model.text(ids)
    convert(_Tower(model.image, joint), {"pixels": pixels}, {"pixels": {0: "n"}}, draft / "image.onnx", outputs)
    free = {"input_ids": {0: "n", 1: "t"}}
    convert(_Tower(model.text, joint), {"input_ids": ids}, free, draft / "text.onnx", outputs, IN_ONNX)
    image_tokens = shown.tokens.clone()
    if model.fusion is not None:
        text_tokens = said.tokens.clone()[: len(image_tokens)]
        mask = (ids != words.spec.pad_id)[: len(image_tokens)]
        cosine = torch.zeros(len(image_tokens))
        samples = {"image_tokens": image_tokens, "text_tokens": text_tokens, "mask": mask, "cosine": cosine}
        free = {"text_tokens": {0: "n", 1: "t"}, "mask": {0: "n", 1: "t"}}
        axes = {"image_tokens": {0: "n"}, "cosine": {0: "n"}, **free}
        convert(model.fusion, samples, axes, draft / "fusion.onnx", ("match", "classes"), IN_ONNX)
    if model.decoder is not None:
        samples = {"image_tokens": image_tokens, "input_ids": ids[: len(image_tokens)]}
        axes = {"image_tokens": {0: "n"}, "input_ids": {0: "n", 1: "t"}}
        convert(model.decoder, samples, axes, draft / "decoder.onnx", ("next",))


def _logits(model: Model, pixels: Tensor, words: Words) -> FloatArray:
    assert model.fusion is not None
    ids = torch.from_numpy(words.rows(list(SAMPLES[:3])))
    with torch.inference_mode():
        shown, said = model.image(pixels), model.text(ids)
        cosine = (model.image_vectors(shown) * model.text_vectors(said)).sum(dim=1)
        logits, _ = model.fusion(shown.tokens, said.tokens, ids != words.spec.pad_id, cosine)
    found: FloatArray = logits.numpy()
    return found


def _stands_out(model: Model, words: Words, held_out: HeldOut | None) -> FloatArray | None:
    """(p, t) how far each held-out text stands out as an answer to each picture; None where there are too few."""
    if held_out is None or len(held_out.images) < CALIBRATED_FROM or held_out.right.all():
        return None
    with torch.inference_mode():
        everyday = model.text_vectors(model.text(torch.from_numpy(words.rows(QUERIES)))).numpy()
    return np.stack([standing(picture, held_out.texts, everyday) for picture in held_out.images])


def _linear(layer: nn.Linear) -> HeadSpec:
    return HeadSpec("linear", {"weight": layer.weight.detach().T.contiguous().numpy()})


def _card(name: str, model: Model, spec: PixelSpec, words: Words, facts: Mapping[str, str]) -> str:
    design = model.design
    parameters = {
        part: sum(each.numel() for each in module.parameters()) / 1e6
        for part, module in model.named_children()
        if module is not None
    }
    joined = [f"fusion: {design.fusion}"] if model.fusion is not None else []
    joined += ["a decoder"] if model.decoder is not None else []
    objectives = " + ".join(f"{weight:g} {kind}" for kind, weight in design.objective.items())
    made = datetime.datetime.now(datetime.UTC).date()
    rows = {
        "image tower": f"{design.image_tower}, {parameters['image']:.1f} M parameters, "
        f"{design.image_weights or 'random weights'} at the start",
        "text tower": f"{design.text_tower}, {parameters['text']:.1f} M parameters, {len(words):,} tokens",
        "beside them": ", ".join(joined) or "nothing",
        "vectors": f"{design.dim} numbers, length 1",
        "pictures": f"{spec.width} x {spec.height}, {spec.resize}",
        "texts": f"at most {words.spec.max_tokens} tokens",
        "objective": objectives,
        "optimizer": f"{design.optimizer}, {design.schedule}, learning rate {design.learning_rate:g}, "
        f"weight decay {design.weight_decay:g}",
        **facts,
        "made": f"{made}, with torch {version('torch')} and timm {version('timm')}",
    }
    listed = "\n".join(f"| {what} | {said} |" for what, said in rows.items())
    return f"""# {name}

An encoder trained by `mmsearch train encoder`. It knows what its pairs showed, and what they said of it, no more.
Its licence is yours to choose, within what the pictures and texts allow that it has learned from.

| | |
| --- | --- |
{listed}
"""
