"""Image and text towers by name, with random or given weights. Each gives its tokens and one feature vector.

    image   a timm name (resnet18, vgg16, inception_v3, efficientnet_b0, vit_small_patch16_224, mobilenetv3_small_100,
            convnext_tiny, …) or open_clip:ARCHITECTURE
            or the folder of a vision model of Hugging Face's (ViT, or the half of a CLIP, SigLIP or AltCLIP)
    text    bilstm, bert, roberta, distilbert, minilm, gpt2, open_clip, or the folder of a Hugging Face model (or the
            half of one of these)

Weights are safetensors. Anything that would have to be unpickled is refused.
"""

import difflib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsearch.encoders.hugging_face import TWO_TOWERS, config_of, loaded, pixels_of
from mmsearch.errors import ModelError, UsageError, in_a_line
from mmsearch.train.design import TEXT_KINDS, EncoderDesign
from mmsearch.train.recurrent import Lstm

PAD = 0  # the token that fills up; every tokenizer that is learned here has it first
MASKED = -1e4  # below every activation; finite, so that half precision and ONNX Runtime keep it


class Read(NamedTuple):
    """What a tower makes of a batch."""

    features: Tensor  # (n, width), what the projection head reads
    tokens: Tensor  # (n, t, token width), what a fusion encoder or a decoder reads


# Pictures


class ImageTower(nn.Module):
    """Plain pixels (n, h, w, 3) uint8 -> Read. Mean and deviation are part of it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, trunk: nn.Module, size: int, mean: Any, deviation: Any) -> None:
        super().__init__()
        self.trunk = trunk
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1) * 255, persistent=False)
        with torch.no_grad():
            was = trunk.training
            trunk.eval()
            sample = self(torch.zeros(1, size, size, 3, dtype=torch.uint8))
            trunk.train(was)
        self.width, self.token_width = sample.features.shape[1], sample.tokens.shape[2]

    def forward(self, pixels: Tensor) -> Read:
        return self.read((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.deviation)

    def read(self, normal: Tensor) -> Read:
        """(n, 3, h, w) float32, normalised."""
        trunk: Any = self.trunk
        maps = trunk.forward_features(normal)
        features = trunk.forward_head(maps, pre_logits=True)
        if maps.ndim == 3:  # a transformer's
            tokens = maps
        elif maps.shape[1] == trunk.num_features:  # (n, c, h, w)
            tokens = maps.flatten(2).transpose(1, 2)
        else:  # (n, h, w, c), as swin has them
            tokens = maps.flatten(1, 2)
        return Read(features.flatten(1), tokens)


class OpenClipImageTower(ImageTower):
    """A vision transformer of open_clip's, less its projection."""

    def read(self, normal: Tensor) -> Read:
        features, tokens = self.trunk(normal)
        return Read(features, tokens)


def image_tower(design: EncoderDesign) -> ImageTower:
    """Raises UsageError for an unknown name or a size that does not fit, ModelError for weights that do not."""
    schema, colon, name = design.image_tower.partition(":")
    folder = Path(design.image_tower).expanduser()
    if (folder / "config.json").is_file():
        tower: ImageTower = _hugging_face_image(folder, design)
    else:
        tower = _open_clip_image(name, design) if colon and schema == "open_clip" else _timm_image(design)
    if design.image_weights:
        _fill(tower.trunk, Path(design.image_weights), design.image_tower)
    return tower


def _timm_image(design: EncoderDesign) -> ImageTower:
    import timm

    name = design.image_tower
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(
            f"timm has no image tower '{name}'{f'; did you mean {chr(32).join(near)}?' if near else ''}. "
            "open_clip's are open_clip:NAME."
        )
    settings = timm.get_pretrained_cfg(name)
    made_for = settings.input_size[-1] if settings is not None else 224
    size = design.image_size or made_for
    extra: dict[str, Any] = {"img_size": size} if size != made_for and not _is_convolutional(name) else {}
    try:
        make: Any = timm.create_model
        trunk = make(name, pretrained=False, num_classes=0, **extra)
        mean, deviation = (settings.mean, settings.std) if settings is not None else ((0.5,) * 3, (0.5,) * 3)
        return ImageTower(trunk, size, mean, deviation)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"{name} cannot read pictures of {size} x {size} pixels: {in_a_line(error)}.") from error


def _is_convolutional(name: str) -> bool:
    return not any(part in name for part in ("vit", "swin", "deit", "beit", "mixer", "cait", "eva", "xcit", "gmlp"))


def _open_clip_image(name: str, design: EncoderDesign) -> ImageTower:
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transformer import VisionTransformer

    settings = open_clip.get_model_config(name)
    if settings is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        raise UsageError(f"open_clip has no architecture '{name}'{f'; did you mean {near[0]}?' if near else ''}.")
    vision = dict(settings["vision_cfg"])
    if design.image_size:
        vision["image_size"] = design.image_size
    if vision.get("timm_model_name"):
        raise UsageError(f"The image tower of {name} is timm's {vision['timm_model_name']}: name that.")
    visual = _build_vision_tower(design.dim, CLIPVisionCfg(**vision), quick_gelu=settings.get("quick_gelu", False))
    if not isinstance(visual, VisionTransformer):
        raise UsageError(f"The image tower of {name} is no vision transformer; take timm's resnet50 instead.")
    visual.proj, visual.output_tokens = None, True
    size = vision["image_size"]
    return OpenClipImageTower(visual, size if isinstance(size, int) else size[0], CLIP_MEAN, CLIP_DEVIATION)


class HuggingFaceImage(ImageTower):
    """A vision transformer of Hugging Face's."""

    def read(self, normal: Tensor) -> Read:
        trunk: Any = self.trunk
        tokens: Tensor = trunk(pixel_values=normal).last_hidden_state
        return Read(tokens[:, 0] if trunk.config.model_type in _WITH_CLASS else tokens.mean(dim=1), tokens)


_WITH_CLASS = ("vit", "deit", "dinov2", "clip_vision_model", "altclip_vision_model")  # their first token is of it all
_ALONE = ("vit", "deit", "dinov2")


def _hugging_face_image(folder: Path, design: EncoderDesign) -> ImageTower:
    config = config_of(folder)
    kind = config.get("model_type")
    if kind not in (*TWO_TOWERS, *_ALONE):
        raise ModelError(
            f"{folder} is no image tower: it is of the kind '{str(kind)[:60]}'. Those that are read are "
            f"{', '.join((*_ALONE, *TWO_TOWERS))}."
        )
    model = loaded(folder).requires_grad_(True)
    trunk = model if kind in _ALONE else model.vision_model
    size = int(trunk.config.image_size)
    if design.image_size not in (0, size):
        raise UsageError(f"{folder} reads pictures of {size} x {size} pixels: leave out image_size, or say {size}.")
    mean, deviation, _ = pixels_of(folder, kind, size)
    return HuggingFaceImage(trunk, size, mean, deviation)


CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# Texts


class TextTower(nn.Module):
    """Tokens (n, t) int64, filled up with `pad_id` on the right -> Read."""

    width: int
    token_width: int
    pad_id: int = PAD

    def forward(self, input_ids: Tensor) -> Read:
        raise NotImplementedError


class BiLstm(TextTower):
    """Learned word embeddings, read in both directions; the features are the largest of each (Conneau et al. 2017).

    The second direction is an LSTM over each row turned round within its own length, so that what fills a row up
    comes last for both and changes nothing.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)
        self.onward = nn.ModuleList(Lstm(width, width // 2) for _ in range(layers))
        self.back = nn.ModuleList(Lstm(width, width // 2) for _ in range(layers))
        self.width = self.token_width = width

    def forward(self, input_ids: Tensor) -> Read:
        mask = input_ids != PAD  # (n, t)
        tokens = self.dropout(self.embedding(input_ids))
        for onward, back in zip(self.onward, self.back, strict=True):
            tokens = self.dropout(both_ways(onward, back, tokens, mask))
        return Read(tokens.masked_fill(~mask[..., None], MASKED).amax(dim=1), tokens)


def both_ways(onward: nn.Module, back: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, t, w) -> (n, t, 2 h): each row read from both ends. mask: (n, t), true to the left."""
    turned = turned_places(mask)[..., None]  # (n, t, 1)
    ahead = onward(tokens)[0]
    behind = back(torch.gather(tokens, 1, turned.expand(-1, -1, tokens.shape[2])))[0]
    return torch.cat((ahead, torch.gather(behind, 1, turned.expand(-1, -1, behind.shape[2]))), dim=2)


def turned_places(mask: Tensor) -> Tensor:
    """(n, t) int64: where each place is when a row is turned round within its length; its own inverse."""
    length = mask.sum(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device)[None]
    return torch.where(place < length, length - 1 - place, place)


class HuggingFaceText(TextTower):
    """A transformer of Hugging Face's: the mean of its tokens, or the last one of a causal model."""

    def __init__(self, model: Any, pad_id: int, causal: bool) -> None:
        super().__init__()
        self.model, self.pad_id, self.causal = model, pad_id, causal
        with torch.no_grad():
            self.width = self.token_width = self(torch.full((1, 2), pad_id)).features.shape[1]

    def forward(self, input_ids: Tensor) -> Read:
        mask = input_ids != self.pad_id  # (n, t)
        tokens = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        return Read(last_token(tokens, mask) if self.causal else masked_mean(tokens, mask), tokens)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, t, w), (n, t) -> (n, w)."""
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def last_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, t, w), (n, t) -> (n, w), the token at the end of each row."""
    last = (mask.sum(dim=1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, tokens.shape[2])
    return torch.gather(tokens, 1, last)[:, 0]


class OpenClipText(TextTower):
    """open_clip's causal text transformer, for as many tokens as there are; the features are those of the last one."""

    attn_mask: Tensor

    def __init__(self, vocabulary: int, max_tokens: int, width: int, layers: int, heads: int) -> None:
        from open_clip.transformer import TextTransformer

        super().__init__()
        made: Any = TextTransformer(max_tokens, vocabulary, width, heads, layers, output_dim=width)
        self.embedding, self.positions = made.token_embedding, made.positional_embedding
        self.transformer, self.norm = made.transformer, made.ln_final
        self.register_buffer("attn_mask", made.attn_mask, persistent=False)
        self.width = self.token_width = width

    def forward(self, input_ids: Tensor) -> Read:
        length = input_ids.shape[1]
        tokens = self.embedding(input_ids) + self.positions[:length]
        tokens = self.norm(self.transformer(tokens, attn_mask=self.attn_mask[:length, :length]))
        return Read(last_token(tokens, input_ids != PAD), tokens)


def text_tower(design: EncoderDesign, vocabulary: int) -> TextTower:
    """vocabulary: how many tokens the tokenizer has. Raises UsageError, ModelError."""
    kind, width, layers = design.text_tower, design.text_width, design.text_layers
    if kind == "bilstm":
        return BiLstm(vocabulary, width, layers, design.dropout)
    if kind == "open_clip":
        return OpenClipText(vocabulary, design.max_tokens, width, layers, design.text_heads)
    if kind in TEXT_KINDS:
        return _fresh_transformer(design, vocabulary)
    return _given_transformer(given_folder(kind), design)


def given_folder(name: str) -> Path:
    """The folder of a Hugging Face model, by its path or by its name on the hub.

    Raises UsageError where it is none, ModelError where it cannot be fetched.
    """
    folder = Path(os.path.expanduser(name))
    if (folder / "config.json").is_file():
        return folder
    if _HUB_NAME.fullmatch(name) and not folder.exists():
        return _of_hub(name)
    near = difflib.get_close_matches(name, TEXT_KINDS, n=1)
    raise UsageError(
        f"There is no text tower '{name}'{f'; did you mean {near[0]}?' if near else ''}. There are "
        f"{', '.join(TEXT_KINDS)}, the folders of Hugging Face models (with a config.json), and names on the hub "
        "(google-bert/bert-base-uncased)."
    )


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OF_A_MODEL = [
    "config.json",
    "tokenizer*",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
]


def _of_hub(name: str) -> Path:
    """The folder of a model in Hugging Face's cache, fetched where it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    from mmsearch.encoders.openclip import hub_answers

    def fetched(*, local_files_only: bool) -> Path:
        return Path(snapshot_download(name, allow_patterns=_OF_A_MODEL, local_files_only=local_files_only))

    with suppress(LocalEntryNotFoundError):
        folder = fetched(local_files_only=True)
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    way = f"fetch it where you can (hf download {name} --local-dir FOLDER), and name that folder"
    if not hub_answers():
        raise ModelError(
            f"'{name}' is a name on the Hugging Face hub, which cannot be reached, and it is not in the cache of this "
            f"machine. Connect, or {way}."
        )
    try:
        return fetched(local_files_only=False)
    except RepositoryNotFoundError as error:
        raise UsageError(f"The Hugging Face hub has no '{name}' that may be read. Check the name.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(f"'{name}' cannot be fetched: {in_a_line(error)}. Try again, or {way}.") from error


def _fresh_transformer(design: EncoderDesign, vocabulary: int) -> TextTower:
    import transformers

    width, layers, heads = design.text_width, design.text_layers, design.text_heads
    common: dict[str, Any] = {"vocab_size": vocabulary, "pad_token_id": PAD}
    longest = design.max_tokens + 2  # RoBERTa counts its places from behind the one that fills up
    if design.text_tower == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=width, n_layer=layers, n_head=heads, n_positions=longest, resid_pdrop=design.dropout,
            embd_pdrop=design.dropout, attn_pdrop=design.dropout, bos_token_id=None, eos_token_id=None, **common
        )  # fmt: skip
    elif design.text_tower == "distilbert":
        config = transformers.DistilBertConfig(
            dim=width, n_layers=layers, n_heads=heads, hidden_dim=4 * width, max_position_embeddings=longest,
            dropout=design.dropout, attention_dropout=design.dropout, **common
        )  # fmt: skip
    else:  # MiniLM is a BERT that is narrow and deep
        kinds = {
            "bert": transformers.BertConfig,
            "roberta": transformers.RobertaConfig,
            "minilm": transformers.BertConfig,
        }
        config = kinds[design.text_tower](
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
            max_position_embeddings=longest, hidden_dropout_prob=design.dropout,
            attention_probs_dropout_prob=design.dropout, **common
        )  # fmt: skip
    pooled = {"add_pooling_layer": False} if design.text_tower in ("bert", "roberta", "minilm") else {}
    made: Any = transformers.AutoModel
    model = made.from_config(config, attn_implementation="eager", **pooled)
    return HuggingFaceText(model, PAD, causal=design.text_tower == "gpt2")


def _given_transformer(folder: Path, design: EncoderDesign) -> TextTower:
    kind = config_of(folder).get("model_type")
    model = loaded(folder).requires_grad_(True)
    if kind in TWO_TOWERS:
        model = model.text_model
    elif kind in ("t5", "mt5", "umt5"):
        model = getattr(model, "encoder", model)
    config = model.config
    pad_id = getattr(config, "pad_token_id", None)
    pad_id = PAD if pad_id is None else pad_id
    try:
        longest = int(getattr(config, "max_position_embeddings", 0) or design.max_tokens)
        if longest < design.max_tokens:
            raise UsageError(f"{folder} reads {longest} tokens at most: set max_tokens to {longest} or less.")
        return HuggingFaceText(model, pad_id, causal=str(kind).startswith(("gpt", "clip")))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{folder} is no text tower: a model of the kind '{str(kind)[:60]}' does not make vectors of tokens alone. "
            "Name a text encoder (BERT, RoBERTa, DistilBERT, MiniLM, GPT-2, T5's), or a CLIP, SigLIP or AltCLIP."
        ) from error


def _fill(module: nn.Module, path: Path, name: str) -> None:
    """Put given weights into a tower. Raises ModelError for a pickle, and for another architecture's."""
    own = module.state_dict()
    weights = as_timm(read_weights(path), own)
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    shaped = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if missing or shaped:
        wrong = missing[0] if missing else shaped[0]
        said = "has no" if missing else f"is {tuple(weights[wrong].shape)} where {tuple(own[wrong].shape)} is due at"
        raise ModelError(f"{path} is not a checkpoint of {name}: it {said} {wrong}. Name the right tower.")
    module.load_state_dict({key: weights[key] for key in own if key in weights}, strict=False)


def as_timm(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's weights under timm's names, where these are others. own: the tower's.

    ResNet and Inception v3 have the same names in both; of a VGG, timm's first layers behind the last map are
    convolutions.
    """
    renamed = dict(weights)
    for theirs, ours in (("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2")):
        for part in ("weight", "bias"):
            given, due = weights.get(f"{theirs}.{part}"), own.get(f"{ours}.{part}")
            if given is not None and due is not None and given.numel() == due.numel():
                renamed.setdefault(f"{ours}.{part}", given.reshape(due.shape))
    return renamed


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ModelError for anything else; nothing is unpickled."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} is not there. Check the path.") from error
    except (OSError, SafetensorError) as error:
        with open(path, "rb") as file:
            head = file.read(2)
        pickled = head == b"PK" or head[:1] == b"\x80"
        why = "is a pickle, which can run anything when it is opened" if pickled else "is not a safetensors file"
        raise ModelError(f"{path} {why}. Save the weights with safetensors.torch.save_file.") from error
