"""From a folder that `transformers` saved to the files of a bundle. Run by `openclip.make_bundle`, in its own process.

CLIP, SigLIP and AltCLIP are read: each has two towers and ends in vectors that are compared by their cosine. What was
converted is compared with transformers' own answers before it is kept. Nothing of the folder is unpickled or run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.conversion import convert, sample_pixels
from mmsearch.encoders.manifest import HeadSpec, TextSpec
from mmsearch.encoders.preprocess import Interpolation, PixelSpec
from mmsearch.encoders.writing import conversion_card, write_bundle
from mmsearch.errors import ModelError, in_a_line

AGREEMENT = 0.999  # cosine between transformers and the bundle, the least of all rows
TWO_TOWERS = ("clip", "siglip", "altclip")  # model_type in config.json
SAMPLES = ("a dog", "a longer text, with a few more words in it: two, or three", "x", "many words " * 200)
_MEANS = {"siglip": ([0.5] * 3, [0.5] * 3)}
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_BILINEAR = 2  # PIL's number, as preprocessor_config.json has it


def config_of(folder: Path) -> dict[str, Any]:
    """config.json. Raises ModelError where there is none that can be understood."""
    try:
        says = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return dict(says) if says["model_type"] else {}
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no model of Hugging Face's: it has no config.json.") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be understood: {in_a_line(error)}.") from error


def check_safetensors(folder: Path) -> None:
    """Raises ModelError where the weights are not there as safetensors."""
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        pickled = [path.name for path in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))]
        raise ModelError(
            f"{folder} has no model.safetensors"
            + (f", only {pickled[0]}: a pickle can run anything when it is opened, and is not" if pickled else "")
            + ". Save the weights as safetensors."
        )


def loaded(folder: Path) -> Any:
    """The model in a folder, in evaluation mode. Raises ModelError."""
    import transformers
    from safetensors import SafetensorError

    check_safetensors(folder)
    make: Any = transformers.AutoModel
    try:
        model = make.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="eager", trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {in_a_line(error)}.") from error
    return model.eval().requires_grad_(False)


def export_bundle(name: str, folder: Path, target: str, licence: str | None, progress: Any) -> Bundle:
    """Loads a model of two towers and writes its bundle. Raises ModelError."""
    config = config_of(folder)
    kind = config["model_type"]
    if kind not in TWO_TOWERS:
        raise ModelError(
            f"it is of the kind '{str(kind)[:60]}'. Models of two towers are read of the kinds "
            f"{', '.join(TWO_TOWERS)}; a text or image model alone can be a tower of `mmsearch train encoder`."
        )
    progress("loading the weights")
    model = loaded(folder)
    tokenizer, tokenizer_json = _tokenizer(folder)
    mean, deviation, pixels = pixels_of(folder, kind, model.config.vision_config.image_size)
    text = _text_spec(kind, model.config.text_config, tokenizer)
    sample = sample_pixels(pixels)
    ids = _ids(tokenizer, text)
    towers: dict[str, nn.Module] = {"image": _Image(model, kind, mean, deviation), "text": _Text(model, kind, text)}
    with torch.inference_mode():
        mask = {} if kind == "siglip" else {"attention_mask": (ids != text.pad_id).long()}
        shown, said = towers["image"](sample), towers["text"](ids)
        expected = {
            "image": _vectors(model.get_image_features(pixel_values=_normal(sample, mean, deviation))),
            "text": _vectors(model.get_text_features(input_ids=ids, **mask)),
        }
    heads = {"image": _head(model, kind, "visual_projection"), "text": _head(model, kind, "text_projection")}
    dim = int(expected["image"].shape[1])
    del model

    def write_towers(draft: Path) -> None:
        progress("converting the text tower")
        free = {0: "n"} if text.fixed_length else {0: "n", 1: "t"}
        convert(towers["text"], {"input_ids": ids}, {"input_ids": free}, draft / "text.onnx")
        progress("converting the image tower")
        convert(towers["image"], {"pixels": sample}, {"pixels": {0: "n"}}, draft / "image.onnx")
        progress("comparing the result with transformers'")

    def check(bundle: Bundle) -> None:
        rows = {
            "image": bundle.project_images(bundle.image_features(sample.numpy())),
            "text": np.concatenate([bundle.encode_texts([each]) for each in SAMPLES]),
        }
        least = min(float((rows[each] * expected[each]).sum(axis=1).min()) for each in rows)
        if not least >= AGREEMENT:  # also where it is not a number
            raise ModelError(f"its vectors differ from transformers' own (cosine {least:.4f}).")

    fingerprint = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for tensor in (shown, said, *map(torch.from_numpy, expected.values())):
        fingerprint.update(tensor.contiguous().numpy().tobytes())
    return write_bundle(
        target,
        write_towers,
        name=name,
        dim=dim,
        pixels=pixels,
        text=text,
        tokenizer_json=tokenizer_json,
        image_head=heads["image"],
        text_head=heads["text"],
        card=conversion_card(
            name,
            "A model that transformers saved",
            "transformers",
            ("transformers", "torch", "onnxruntime"),
            licence=licence,
            dim=dim,
            pixels=pixels,
            text=text,
        ),
        fingerprint=fingerprint.hexdigest(),
        check=check,
    )


def _normal(pixels: Tensor, mean: list[float], deviation: list[float]) -> Tensor:
    spread = torch.tensor(deviation).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / spread


def _vectors(found: Any) -> Any:
    """(n, dim) of length 1; transformers 5 gives them within a record."""
    rows = found if isinstance(found, Tensor) else found.pooler_output
    return nn.functional.normalize(rows, dim=1).numpy()


class _Image(nn.Module):
    """(n, h, w, 3) uint8 -> what the projection reads."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, kind: str, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.vision = model.vision_model
        spread = torch.tensor(deviation).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * spread))
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / spread)

    def forward(self, pixels: Tensor) -> Tensor:
        normal = pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        features: Tensor = self.vision(pixel_values=normal).pooler_output
        return features


class _Text(nn.Module):
    """(n, t) int64 -> what the projection reads."""

    def __init__(self, model: Any, kind: str, spec: TextSpec) -> None:
        super().__init__()
        self.text, self.masked, self.pad_id = model.text_model, kind == "altclip", spec.pad_id

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = {"attention_mask": (input_ids != self.pad_id).long()} if self.masked else {}
        features: Tensor = self.text(input_ids=input_ids, **mask).pooler_output
        return features


def _head(model: Any, kind: str, name: str) -> HeadSpec:
    if kind == "siglip":
        return HeadSpec("identity")
    return HeadSpec("linear", {"weight": getattr(model, name).weight.T.contiguous().numpy()})


def _tokenizer(folder: Path) -> tuple[Any, str]:
    import transformers

    make: Any = transformers.AutoTokenizer
    try:
        tokenizer = make.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        fast = tokenizer.backend_tokenizer
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise ModelError(
            f"{folder} has no tokenizer that can be run: save the fast one there, with its tokenizer.json."
        ) from error
    return tokenizer, fast.to_str()


def _text_spec(kind: str, config: Any, tokenizer: Any) -> TextSpec:
    longest = int(config.max_position_embeddings)
    pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id or 0)
    if kind == "altclip":  # XLM-RoBERTa counts its places from behind the one that fills up
        longest -= pad_id + 1
    return TextSpec(longest, pad_id=pad_id, fixed_length=kind == "siglip")


def _ids(tokenizer: Any, spec: TextSpec) -> Tensor:
    padding = {"padding": "max_length" if spec.fixed_length else True, "padding_side": "right"}
    made = tokenizer(list(SAMPLES), max_length=spec.max_tokens, truncation=True, return_tensors="pt", **padding)
    ids: Tensor = made["input_ids"]
    return ids


def pixels_of(folder: Path, kind: str, size: int) -> tuple[list[float], list[float], PixelSpec]:
    """Mean, deviation and the rest, by preprocessor_config.json; without one, as models of the kind have them.

    Raises ModelError where the file asks for what mmsearch does not do.
    """
    mean, deviation = _MEANS.get(kind, _CLIP)
    squash = kind == "siglip"
    path = folder / "preprocessor_config.json"
    says: Mapping[str, Any] = {}
    try:
        if path.is_file():
            says = json.loads(path.read_text(encoding="utf-8"))
        crops = bool(says.get("do_center_crop", not squash))
        mean, deviation = (
            [float(each) for each in says.get(name, usual)]
            for name, usual in (("image_mean", mean), ("image_std", deviation))
        )
        asked = says.get("crop_size" if crops else "size", size)
        sides = asked if isinstance(asked, Mapping) else {"height": asked, "width": asked}
        height, width = (int(sides.get(each) or sides.get("shortest_edge") or size) for each in ("height", "width"))
        interpolation: Interpolation = "bilinear" if says.get("resample", 3) == _BILINEAR else "bicubic"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be understood: {in_a_line(error)}.") from error
    if (height, width) != (size, size):
        raise ModelError(f"{path} says {width} x {height} pixels where the model reads {size} x {size}.")
    return mean, deviation, PixelSpec(width, height, "shortest" if crops else "squash", interpolation)
