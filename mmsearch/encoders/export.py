"""From an open_clip model in torch to the files of a bundle. Run by `openclip.make_bundle`, in a process of its own.

The one module outside `train/` that imports open_clip. A tower is a small torch module around the model's own code: the
image tower begins with plain pixels and their normalisation, both end where the projection head begins if that is a
linear layer, and at the vector if it is not. What was converted is compared with torch before it is kept.
"""

import difflib
import hashlib
import json
import os
import pickle
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from huggingface_hub import is_offline_mode
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from open_clip.transformer import VisionTransformer, text_global_pool
from safetensors import SafetensorError
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from mmsearch.encoders import hugging_face
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.conversion import convert, sample_pixels
from mmsearch.encoders.manifest import Clean, HeadSpec, TextSpec
from mmsearch.encoders.openclip import HF_DIR, OUT_OF_REACH, Progress
from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.writing import conversion_card, write_bundle
from mmsearch.errors import ModelError

AGREEMENT = 0.999  # cosine between torch and the bundle, the least of all rows
SAMPLES = (
    "",
    "a dog",
    "Grandma&#39;s caf\u00e9, 2019 \u2014 \U0001f600\n\u4f60\u597d \u0645\u0631\u062d\u0628\u0627 <b>_x_</b>",
    "a very long caption " * 200,
)


def export_bundle(
    name: str,
    model_name: str,
    weights: str | None,
    folder: str | os.PathLike[str],
    *,
    licence: str | None = None,
    progress: Progress = lambda line: None,
) -> Bundle:
    """Loads an open_clip model and writes its bundle. Raises ModelError; torch may say things on stderr."""
    model, tokenizer = load(model_name, weights, progress)
    config = open_clip.get_model_config(model_name)
    return write_model(model, tokenizer, config, folder, name=name, licence=licence, progress=progress)


def write_model(
    model: Any,
    tokenizer: Any,
    config: dict[str, Any],
    folder: str | os.PathLike[str],
    *,
    name: str,
    licence: str | None = None,
    about: str = "",
    progress: Progress = lambda line: None,
) -> Bundle:
    """Writes the bundle of an open_clip model in evaluation mode, which is taken apart for that. Raises ModelError.

    config: open_clip's own of its architecture. about: what else the model card says.
    """
    mean, deviation, pixels = pixels_of(model.visual.preprocess_cfg)
    text, tokenizer_json = _text(tokenizer, model)
    sample, ids = sample_pixels(pixels), tokenizer(list(SAMPLES))  # (n, h, w, 3) uint8, (n, t) int64
    with torch.inference_mode():
        expected_images = model.encode_image(Normalised(nn.Identity(), mean, deviation)(sample)).numpy()
        expected_texts = model.encode_text(ids).numpy()
    fingerprint = _fingerprint(model, config, model.visual.preprocess_cfg, ids.tolist())
    image_head, text_head = _take_image_head(model.visual), _take_text_head(model)
    towers = [Normalised(model.visual, mean, deviation), _text_tower(model)]
    del model  # from here on `towers` alone holds the weights, one tower after the other

    def write_towers(draft: Path) -> None:
        progress("converting the text tower")
        free = {0: "n"} if text.fixed_length else {0: "n", 1: "t"}
        convert(
            towers.pop(),
            {"input_ids": ids if text.fixed_length else ids[:, :-3]},
            {"input_ids": free},
            draft / "text.onnx",
        )
        progress("converting the image tower")
        convert(towers.pop(), {"pixels": sample}, {"pixels": {0: "n"}}, draft / "image.onnx")
        progress("comparing the result with open_clip's")

    def check(bundle: Bundle) -> None:
        images = bundle.project_images(bundle.image_features(sample.numpy()))
        texts = np.concatenate([bundle.encode_texts([text]) for text in SAMPLES])
        agreement = min(_least_cosine(images, expected_images), _least_cosine(texts, expected_texts))
        if not agreement >= AGREEMENT:  # also where it is not a number
            raise ModelError(f"its vectors differ from open_clip's own (cosine {agreement:.4f}).")

    return write_bundle(
        folder,
        write_towers,
        name=name,
        dim=expected_images.shape[1],
        pixels=pixels,
        text=text,
        tokenizer_json=tokenizer_json,
        image_head=image_head,
        text_head=text_head,
        card=conversion_card(
            name,
            "An open_clip model",
            "open_clip",
            ("open_clip_torch", "torch", "timm", "onnx", "onnxruntime"),
            licence=licence,
            dim=expected_images.shape[1],
            pixels=pixels,
            text=text,
        )
        + about,
        fingerprint=fingerprint,
        check=check,
    )


def main() -> None:
    """`python -m mmsearch.encoders.export '[name, model_name, weights, folder, licence]'`; events are JSON lines."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr, which our parent keeps to itself

    def say(kind: str, text: str) -> None:
        events.write(json.dumps([kind, text]) + "\n")

    name, model_name, weights, folder, licence = json.loads(sys.argv[1])
    try:
        if model_name.startswith(HF_DIR):
            source = Path(model_name.removeprefix(HF_DIR))
            hugging_face.export_bundle(name, source, folder, licence, lambda line: say("progress", line))
            return
        export_bundle(name, model_name, weights, folder, licence=licence, progress=lambda line: say("progress", line))
    except ModelError as error:
        say("failure", str(error))
        sys.exit(1)


# Loading


def load(model_name: str, weights: str | None, progress: Progress) -> tuple[Any, Any]:
    """-> an open_clip model in evaluation mode, and its tokenizer."""
    schema, repository = open_clip.factory.parse_model_name(model_name)
    if schema is None:
        _known(model_name, weights)
    try:
        if schema == "hf-hub":
            _fetch(repository, open_clip.constants.HF_WEIGHTS_NAME, progress)
        elif schema is None and (entry := open_clip.get_pretrained_cfg(model_name, weights).get("hf_hub")):
            repository, _, file = entry.rpartition("/")
            _fetch(repository, file or open_clip.constants.HF_WEIGHTS_NAME, progress)
        progress("loading the weights")
        model = open_clip.create_model(model_name, weights, require_pretrained=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(model_name)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as error:
        if is_offline_mode() and _needs_hub(schema, model_name, weights):
            raise ModelError(OUT_OF_REACH) from error
        raise ModelError(_reason(error)) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            "its checkpoint holds Python objects beside the weights, which could run anything and so are not loaded. "
            "Save it as safetensors."
        ) from error
    return model.eval().requires_grad_(False), tokenizer


def _known(architecture: str, weights: str | None) -> None:
    architectures = open_clip.list_models()
    if architecture not in architectures:
        near = difflib.get_close_matches(architecture, architectures, n=3)
        raise ModelError(f"open_clip has no architecture {architecture!r}{_did_you_mean(near)}.")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights and not Path(weights).is_file() and not open_clip.get_pretrained_cfg(architecture, weights):
        near = difflib.get_close_matches(weights, tags, n=3) or tags[:5]
        raise ModelError(f"open_clip has no weights {weights!r} for {architecture}{_did_you_mean(near)}.")


def _needs_hub(schema: str | None, model_name: str, weights: str | None) -> bool:
    if schema == "hf-hub" or (weights and not Path(weights).is_file()):
        return True
    return any(key.startswith("hf_") for key in open_clip.get_model_config(model_name).get("text_cfg", {}))


def _did_you_mean(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fetch(repository: str, file: str, progress: Progress) -> None:
    """Puts weights into the Hugging Face cache, saying first how large they are. open_clip finds them there."""
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import EntryNotFoundError

    stem = file.rpartition(".")[0]
    safe = (
        open_clip.constants.HF_SAFE_WEIGHTS_NAME
        if file == open_clip.constants.HF_WEIGHTS_NAME
        else f"{stem}.safetensors"
    )
    candidates = [file] if file == safe else [safe, file]
    if is_offline_mode() or any(isinstance(try_to_load_from_cache(repository, each), str) for each in candidates):
        return
    for candidate in candidates:
        try:
            size_bytes = get_hf_file_metadata(hf_hub_url(repository, candidate)).size or 0
        except EntryNotFoundError:
            continue
        progress(f"fetching {candidate} of {repository}, {size_bytes / 1e6:,.0f} MB")
        hf_hub_download(repository, candidate, tqdm_class=_reporting(progress))
        return


def _reporting(progress: Progress) -> type:
    """A tqdm that says every few seconds how far it is, in a line."""
    from tqdm import tqdm

    class Reporting(tqdm):  # type: ignore[misc]
        said_at = time.monotonic()

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.total and time.monotonic() - self.said_at > 5:
                self.said_at = time.monotonic()
                progress(f"fetched {self.n / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")

    return Reporting


def _fingerprint(model: nn.Module, *settings: object) -> str:
    """Of all that decides the vectors, in open_clip's own terms: the same whichever libraries convert the model."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


# Pictures


class Normalised(nn.Module):
    """A tower that reads plain pixels: (n, h, w, 3) uint8."""

    scale: Tensor
    shift: Tensor

    def __init__(self, visual: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.visual = visual
        spread = torch.tensor(deviation).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * spread))
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / spread)

    def forward(self, pixels: Tensor) -> Tensor:
        return _first(self.visual(pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift))


def _first(output: Any) -> Tensor:
    """Some towers (CoCa's) give their tokens beside the features."""
    features: Tensor = output[0] if isinstance(output, tuple) else output
    return features


def pixels_of(settings: dict[str, Any]) -> tuple[list[float], list[float], PixelSpec]:
    """open_clip's `preprocess_cfg` -> mean, standard deviation, the rest."""
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    mean, deviation = (
        [float(value)] * 3 if isinstance(value, (int, float)) else [float(each) for each in value]
        for value in (settings["mean"], settings["std"])
    )
    interpolation: Literal["bicubic", "bilinear"] = (
        "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"  # as open_clip reads "random"
    )
    return mean, deviation, PixelSpec(width, height, settings["resize_mode"], interpolation, settings["fill_color"])


def _take_image_head(visual: Any) -> HeadSpec:
    """Takes the last linear layer off an image tower, if it ends in one."""
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        weight, visual.proj = visual.proj, None
        return HeadSpec("linear", {"weight": weight.numpy()})
    if isinstance(visual, TimmModel):
        last = visual.head[-1] if len(visual.head) else visual.trunk.get_classifier()
        visual.trunk = reparameterize_model(visual.trunk, inplace=True)
        if isinstance(last, nn.Linear):
            _replace(visual, last, nn.Identity())
            return _linear(last)
    return HeadSpec("identity")


def _linear(layer: nn.Linear) -> HeadSpec:
    tensors = {"weight": layer.weight.T.numpy()}
    return HeadSpec("linear", tensors if layer.bias is None else tensors | {"bias": layer.bias.numpy()})


def _replace(within: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in within.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)


# Texts


class _CausalText(nn.Module):
    """open_clip's text transformer for as many tokens as there are; what follows the end of a text changes nothing."""

    def __init__(self, model: Any, pool: str, eos_id: int) -> None:
        super().__init__()
        self.token_embedding, self.transformer, self.ln_final = model.token_embedding, model.transformer, model.ln_final
        self.positional_embedding, self.attn_mask = model.positional_embedding, model.attn_mask
        self.pool, self.eos_id = pool, eos_id

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        embedded = self.token_embedding(input_ids) + self.positional_embedding[:length]  # (n, t, width)
        rows = self.ln_final(self.transformer(embedded, attn_mask=self.attn_mask[:length, :length]))
        return _first(text_global_pool(rows, input_ids, self.pool, eos_token_id=self.eos_id))  # (n, width)


class _HuggingFaceText(nn.Module):
    """`HFTextEncoder.forward`, less the tokens that it gives beside the features."""

    def __init__(self, text: HFTextEncoder) -> None:
        super().__init__()
        self.transformer, self.pooler, self.proj = text.transformer, text.pooler, text.proj
        self.pad_id = text.config.pad_token_id

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = (input_ids != self.pad_id).long()
        return _first(self.proj(self.pooler(self.transformer(input_ids=input_ids, attention_mask=mask), mask)))


class _WholeText(nn.Module):
    """Any text tower, for rows of its full length."""

    def __init__(self, encode: nn.Module) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, input_ids: Tensor) -> Tensor:
        return _first(self.encode(input_ids))


class _Detached(nn.Module):
    """The text half of a `CLIP`, which is both towers in one module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        del model.visual

    def forward(self, input_ids: Tensor) -> Tensor:
        return _first(self.model.encode_text(input_ids))


def _text_tower(model: Any) -> nn.Module:
    text = getattr(model, "text", model)
    if isinstance(text, HFTextEncoder):
        return _HuggingFaceText(text)
    if _is_causal(text):
        return _CausalText(text, *_pooling(text))
    return _WholeText(text if text is not model else _Detached(model))


def _take_text_head(model: Any) -> HeadSpec:
    """Takes the last linear layer off a text tower, if it ends in one."""
    text = getattr(model, "text", model)
    attribute = "proj" if isinstance(text, HFTextEncoder) else "text_projection"
    last = getattr(text, attribute)
    if isinstance(last, nn.Linear):
        setattr(text, attribute, nn.Identity() if attribute == "proj" else None)
        return _linear(last)
    if isinstance(last, nn.Parameter):
        setattr(text, attribute, None)
        return HeadSpec("linear", {"weight": last.numpy()})
    return HeadSpec("identity")


def _pooling(text: Any) -> tuple[str, int]:
    """`CLIP` calls by other names what its `TextTransformer` had."""
    return getattr(text, "text_pool_type", None) or text.pool_type, getattr(text, "text_eos_id", None) or text.eos_id


def _is_causal(text: Any) -> bool:
    return text.attn_mask is not None and getattr(text, "cls_emb", None) is None


def _may_be_cropped(model: Any, pad_id: int) -> bool:
    """Whether a row without its padding gives the same features, so that short texts are cheap."""
    text = getattr(model, "text", model)
    if isinstance(text, HFTextEncoder):
        masked = isinstance(text.pooler, (MeanPooler, ClsPooler, ClsLastHiddenStatePooler))
        return masked and pad_id == text.config.pad_token_id
    pool, eos_id = _pooling(text)
    return _is_causal(text) and ((pool == "argmax" and pad_id == 0) or (pool == "eos" and pad_id != eos_id))


def _text(tokenizer: Any, model: Any) -> tuple[TextSpec, str]:
    """-> how a bundle makes tokens as the tokenizer does, and what goes into `tokenizer.json`."""
    cleaners: dict[Any, Clean] = {get_clean_fn(mode): mode for mode in ("whitespace", "lower", "canonicalize")}
    if isinstance(tokenizer, SimpleTokenizer):
        fixed = not _may_be_cropped(model, pad_id=0)
        spec = TextSpec(tokenizer.context_length, 0, cleaners[tokenizer.clean_fn], fixed_length=fixed)
        return spec, _clip_bpe(tokenizer)
    inner = tokenizer.tokenizer
    fast = getattr(inner, "backend_tokenizer", None)
    if fast is None or inner.truncation_side != "right":
        raise ModelError(f"its tokenizer, {type(inner).__name__}, is of a kind that `tokenizers` cannot run.")
    clean = cleaners[tokenizer.clean_fn] if isinstance(tokenizer, HFTokenizer) else "canonicalize"
    clips = getattr(tokenizer, "tokenizer_mode", "") == "clips"
    blanked = getattr(tokenizer, "strip_sep_token", False) and not clips
    spec = TextSpec(
        max_tokens=tokenizer.context_length,
        pad_id=inner.pad_token_id or 0,
        clean=clean,
        fixed_length=clips or inner.padding_side != "right" or not _may_be_cropped(model, inner.pad_token_id or 0),
        padding=inner.padding_side if not clips else "right",
        last_id=inner.cls_token_id if clips else None,
        blank_id=inner.sep_token_id if blanked else None,
    )
    runs = json.loads(fast.to_str())
    if clips:  # `HFTokenizer._clips_tokenize` puts these itself
        runs["post_processor"] = _between(inner.bos_token, inner.bos_token_id, inner.eos_token, inner.eos_token_id)
    return spec, json.dumps(runs, ensure_ascii=False)


def _clip_bpe(tokenizer: SimpleTokenizer) -> str:
    """open_clip's `SimpleTokenizer` as a `tokenizers` file."""
    vocabulary = tokenizer.encoder
    specials = [tokenizer.decoder[token] for token in tokenizer.all_special_ids]
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": vocabulary[special],
                    "content": special,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for special in specials
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "post_processor": _between(specials[0], tokenizer.sot_token_id, specials[1], tokenizer.eot_token_id),
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": "</w>",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": [list(pair) for pair in tokenizer.bpe_ranks],
            },
        },
        ensure_ascii=False,
    )


def _between(first: str, first_id: int, last: str, last_id: int) -> dict[str, Any]:
    """The post-processor of `tokenizers` that puts a text between two tokens."""
    tokens = {
        token: {"id": token, "ids": [number], "tokens": [token]}
        for token, number in ((first, first_id), (last, last_id))
    }
    put = [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    put.append({"SpecialToken": {"id": last, "type_id": 0}})
    pair = [*put, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": put, "pair": pair, "special_tokens": tokens}


def _least_cosine(rows: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Of unit rows with rows of any length."""
    return float(((rows * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)).min())


if __name__ == "__main__":
    main()
