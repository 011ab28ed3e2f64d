"""open_clip models of every build, tiny and with random weights, as bundles: the same vectors, row by row."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from PIL import Image

from mmsearch.encoders import Bundle
from mmsearch.encoders.openclip import bundle_folder, bundle_for, hub_answers, make_bundle, parse_name
from mmsearch.encoders.preprocess import fit
from mmsearch.errors import ModelError
from mmsearch.media import load_rgb

open_clip = pytest.importorskip("open_clip")
torch = pytest.importorskip("torch")
from mmsearch.encoders.conversion import _check_free  # noqa: E402
from mmsearch.encoders.torch_graph import TorchGraph  # noqa: E402

TEXTS = [
    "",
    "dog",
    "a red bicycle in the snow",
    "A Mixed-Case SENTENCE, it's punctuated; isn't it? don't_underscore",
    "words " * 500,
    "supercalifragilisticexpialidocious" * 20,
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 party \U0001f389",
    "\u96ea\u4e2d\u7684\u7ea2\u8272\u81ea\u884c\u8f66",
    "\u062f\u0631\u0627\u062c\u0629 \u062d\u0645\u0631\u0627\u0621 \u0641\u064a \u0627\u0644\u062b\u0644\u062c",
    "\u0932\u093e\u0932 \u0938\u093e\u0907\u0915\u093f\u0932",
    "Tom &amp; Jerry &lt;3 caf&eacute; &amp;quot;",
    "caf\u00c3\u00a9 mojibake, na\u00efve \u201cquotes\u201d \ufb01ne",
    "first line\nsecond line\r\n\ttabbed   wide\u00a0gap",
    "control \x0b\x1b[1mcodes\x00 here",
    "12345 3.14 \u00bd \u2167 1st",
]


def pictures() -> list[Image.Image]:
    """Odd sizes and modes, with content that differs."""
    random = np.random.default_rng(0)

    def drawn(width: int, height: int) -> Image.Image:
        small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    return [
        Image.new("RGB", (1, 1), "orange"),
        drawn(3, 500),
        drawn(640, 427),
        drawn(427, 640),
        drawn(31, 33),
        drawn(200, 200).convert("L"),
        Image.merge("RGBA", (*drawn(90, 70).split(), drawn(90, 70).convert("L"))),
        drawn(120, 80).quantize(16),
        drawn(64, 64).convert("1"),
        drawn(50, 80).convert("CMYK"),
    ]


VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
BERT = {
    "model_type": "bert",
    "vocab_size": 600,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}

Config = dict[str, Any]
ARCHITECTURES: dict[str, Callable[[Path], tuple[Config, Config]]] = {
    "vit": lambda folder: ({"vision_cfg": VIT, "text_cfg": TEXT}, {}),
    "resnet": lambda folder: (
        {
            "quick_gelu": True,
            "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
            "text_cfg": TEXT | {"proj_bias": True},
        },
        {"interpolation": "bilinear"},
    ),
    "bert": lambda folder: (
        {
            "vision_cfg": VIT,
            "text_cfg": {
                "hf_model_name": os.fspath(text_model(folder, BERT)),
                "hf_tokenizer_name": "here",
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": 40,
            },
        },
        {"resize_mode": "longest", "fill_color": 127},
    ),
    "siglip": lambda folder: (
        {
            "custom_text": True,
            "init_logit_bias": -10,
            "vision_cfg": {
                "image_size": 160,
                "timm_model_name": "test_vit",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": 24,
                "vocab_size": 600,
                "hf_tokenizer_name": "here",
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "width": 192,
                "heads": 4,
                "layers": 2,
                "no_causal_mask": True,
                "proj_bias": True,
                "pool_type": "last",
                "norm_kwargs": {"eps": 1e-6},
                "act_kwargs": {"approximate": "tanh"},
            },
        },
        {"resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3},
    ),
    "mobileclip": lambda folder: (
        {
            "custom_text": True,
            "vision_cfg": {
                "image_size": 256,
                "timm_model_name": "fastvit_t8",
                "timm_pool": "avg",
                "timm_proj": None,
            },
            "text_cfg": TEXT | {"no_causal_mask": True},
        },
        {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
    ),
    "coca": lambda folder: (
        {
            "custom_text": True,
            "vision_cfg": VIT
            | {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 8, "output_tokens": True},
            "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": TEXT | {"context_length": 76, "attn_pooler_heads": 4},
        },
        {},
    ),
}


def text_model(folder: Path, config: Config) -> Path:
    """A configuration for `transformers`, which is all that open_clip reads of a text model when it has weights."""
    path = folder / "text-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def train_tokenizer(folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=600, min_frequency=1, show_progress=False)
    BertTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(folder)


def save_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder as open_clip's `local-dir:` reads it; random weights, wide enough that outputs differ."""
    from safetensors.torch import save_file

    folder.mkdir()
    model_settings, pixel_settings = ARCHITECTURES[kind](folder)
    model_settings = {"embed_dim": 32, **model_settings}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_settings, "preprocess_cfg": pixel_settings})
    )
    if "hf_tokenizer_name" in model_settings["text_cfg"]:
        train_tokenizer(folder)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dim() >= 2:
            fan_in = 1 if "embedding" in name else tensor[0].numel()
            tensor.normal_(std=1.2 / fan_in**0.5, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point() and tensor.dim():
            tensor.add_(torch.empty_like(tensor).normal_(std=0.2, generator=generator))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@dataclass(frozen=True)
class Pair:
    """A model as open_clip runs it, and its bundle."""

    folder: Path
    model: Any
    transform: Any
    tokenizer: Any
    bundle: Bundle


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from mmsearch.encoders.export import export_bundle  # in this process: torch is imported once for all of them

    work = tmp_path_factory.mktemp(request.param)
    folder = save_model(work / "model", request.param)
    name = f"local-dir:{folder}"
    model, transform = open_clip.create_model_from_pretrained(name)
    bundle = export_bundle(name, name, None, work / "bundle", licence="MIT")
    return Pair(folder, model.eval(), transform, open_clip.get_tokenizer(name), bundle)


def assert_rows_agree(rows: np.ndarray, expected: np.ndarray) -> None:
    """Row by row, and also once the mean is taken off, in case all rows are much alike."""
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert (rows * expected).sum(axis=1).min() >= 0.999
    assert (expected @ expected.T).min() < 0.98, "the model tells nothing apart, so this would show nothing"
    middle = expected.mean(axis=0)
    ours, theirs = rows - middle, expected - middle
    cosines = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.999


def test_pictures_get_open_clips_own_vectors(pair: Pair) -> None:
    # For `longest`, open_clip fails where a side rounds to nothing.
    images = [image for image in pictures() if pair.bundle.pixels.resize != "longest" or image.size != (3, 500)]
    with torch.no_grad():
        # made small by a whole factor first, as in an index
        batch = torch.stack([pair.transform(load_rgb(image, pair.bundle.pixels)) for image in images])
        expected = pair.model.encode_image(batch).numpy()
    assert_rows_agree(pair.bundle.encode_images(images), expected)


def test_torch_runs_the_image_tower_as_onnx_runtime_does(pair: Pair) -> None:
    pixels = np.stack([fit(load_rgb(picture), pair.bundle.pixels) for picture in pictures()])
    expected = pair.bundle.image_features(pixels)
    graph = TorchGraph(pair.bundle.folder / "image.onnx", torch.device("cpu"), torch.float32)
    for some in (slice(0, 10), slice(0, 10), slice(2, 5), slice(1, 2)):  # a number that it knows, and new ones
        found = graph.run(torch.from_numpy(pixels[some]))["features"].numpy()
        np.testing.assert_allclose(found, expected[some], rtol=0, atol=2e-4 * np.abs(expected).max())


def test_texts_get_open_clips_own_vectors(pair: Pair) -> None:
    with torch.no_grad():
        expected = pair.model.encode_text(pair.tokenizer(TEXTS)).numpy()
    assert_rows_agree(pair.bundle.encode_texts(TEXTS), expected)
    assert_rows_agree(np.concatenate([pair.bundle.encode_texts([text]) for text in TEXTS]), expected)


def test_tokens_are_counted_before_the_cut(pair: Pair) -> None:
    assert pair.bundle.count_tokens("words " * 500) > pair.bundle.max_tokens
    assert 1 <= pair.bundle.count_tokens("dog") <= pair.bundle.max_tokens


def test_the_model_card_says_what_is_known(pair: Pair) -> None:
    card = (pair.bundle.folder / "README.md").read_text(encoding="utf-8")
    assert pair.bundle.name in card
    assert "| licence | MIT |" in card


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "vit", "vit")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass(frozen=True)
class Conversion:
    """What two processes printed that wanted the same model at once, and where its bundle came to be."""

    cache: Path
    outputs: list[str]
    errors: list[str]


@pytest.fixture(scope="module")
def conversion(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    cache = tmp_path_factory.mktemp("cache")
    script = (
        "import sys; from mmsearch.encoders.openclip import bundle_for;"
        "bundle_for(sys.argv[1], progress=lambda line: print(line, flush=True))"
    )
    command = [sys.executable, "-c", script, f"local-dir:{vit}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "MMSEARCH_CACHE": os.fspath(cache)}
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) for _ in range(2)]
    said = [child.communicate(timeout=180) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    return Conversion(cache, [outputs for outputs, _ in said], [errors for _, errors in said])


def test_two_processes_convert_a_model_once(conversion: Conversion) -> None:
    assert sum("converting the image tower" in lines for lines in conversion.outputs) == 1


def test_torch_and_open_clip_have_nothing_to_say_to_the_user(conversion: Conversion) -> None:
    assert conversion.errors == ["", ""]


def test_the_second_use_loads_what_the_first_has_made(
    vit: Path, conversion: Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(conversion.cache))
    said: list[str] = []
    started = time.monotonic()
    bundle = bundle_for(f"local-dir:{vit}", progress=said.append)
    assert time.monotonic() - started < 0.5
    assert said == []
    assert bundle.folder.is_relative_to(conversion.cache)
    assert bundle.precision == "int8"


def test_changed_weights_give_another_bundle(tmp_path: Path, cache: Path) -> None:
    folder = save_model(tmp_path / "model", "vit")
    before = bundle_folder(parse_name(f"local-dir:{folder}"))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert bundle_folder(parse_name(f"local-dir:{folder}")) != before


@pytest.mark.slow
def test_a_checkpoint_file_is_a_model_and_equal_weights_have_an_equal_fingerprint(vit: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from mmsearch.encoders.export import export_bundle

    open_clip.add_model_config(tiny_architecture(tmp_path))
    checkpoint = tmp_path / "weights.pt"
    torch.save({"state_dict": load_file(vit / "model.safetensors")}, checkpoint)
    source = parse_name(f"tiny-vit@{checkpoint}")
    bundle = export_bundle(source.name, source.model, source.weights, tmp_path / "bundle")
    by_folder = export_bundle(f"local-dir:{vit}", f"local-dir:{vit}", None, tmp_path / "by-folder")
    assert bundle.fingerprint == by_folder.fingerprint
    np.testing.assert_allclose(bundle.encode_texts(TEXTS), by_folder.encode_texts(TEXTS), atol=1e-5)


def tiny_architecture(folder: Path) -> Path:
    path = folder / "tiny-vit.json"
    path.write_text(json.dumps({"embed_dim": 32, **ARCHITECTURES["vit"](folder)[0]}))
    return path


class Runs:
    """What a hostile checkpoint would do when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    from mmsearch.encoders.export import export_bundle

    open_clip.add_model_config(tiny_architecture(tmp_path))
    torch.save({"state_dict": Runs(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="safetensors"):
        export_bundle("x", "tiny-vit", os.fspath(tmp_path / "weights.pt"), tmp_path / "bundle")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "bundle").exists()


def test_a_folder_without_weights_is_refused(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "open_clip_config.json").write_bytes((vit / "open_clip_config.json").read_bytes())
    with pytest.raises(ModelError, match="weights"):
        make_bundle(f"local-dir:{tmp_path / 'model'}", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clip", "no model called 'clip'"),
        ("local-dir:/nowhere/at/all", "does not exist"),
        ("ViT-B-32@/nowhere/weights.pt", "does not exist"),
    ],
)
def test_a_name_that_means_nothing_is_refused_at_once(name: str, says: str, cache: Path) -> None:
    with pytest.raises(ModelError, match=says):
        bundle_for(name)


def test_a_misspelt_tag_is_answered_with_near_ones(tmp_path: Path) -> None:
    from mmsearch.encoders.export import export_bundle

    with pytest.raises(ModelError, match="did you mean datacomp_s34b_b86k"):
        export_bundle("x", "ViT-B-32-256", "datacomp_s34b", tmp_path / "bundle")


def test_a_model_out_of_reach_is_one_clear_sentence(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://does-not-exist.invalid")
    monkeypatch.setenv("HF_HOME", os.fspath(tmp_path / "hub"))
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"cannot be reached.*--model lite"):
        bundle_for("hf-hub:someone/something")
    assert time.monotonic() - started < 40  # a few seconds, and the import of torch on a busy machine
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        started = time.monotonic()
        assert not hub_answers(0.5)
        assert time.monotonic() - started < 2


def test_offline_by_choice_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub_answers(0)


def test_a_graph_for_one_length_alone_is_refused() -> None:
    fixed = onnx_ir.Value(name="input_ids", shape=onnx_ir.Shape(["n", 12]))
    with pytest.raises(ModelError, match=r"12 alone along axis 1.*another version of torch"):
        _check_free([fixed], {"input_ids": {0: "n", 1: "t"}})
    _check_free([fixed], {"input_ids": {0: "n"}})
