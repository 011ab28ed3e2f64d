"""Folders that transformers saved: models of two towers are indexed with, halves are towers, the rest is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mmsearch import Index, load_encoder
from mmsearch.errors import Error, ModelError
from mmsearch.train.design import EncoderDesign
from mmsearch.train.encoder import train_encoder
from mmsearch.train.towers import image_tower, text_tower
from tests import toys
from tests.colours import plain

WORDS = ["a red disc by night", "a blue disc by day", "two green cats", "a dog in the snow", "x", "0123456789"]
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "vocab_size": 300,
}  # fmt: skip


def tokenizer(folder: Path, kind: str) -> None:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    specials = ["<pad>", "<bos>", "<unk>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(WORDS * 9, trainer)
    single = "$A <eos>" if kind == "siglip" else "<bos> $A <eos>"
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, made.token_to_id(name)) for name in ("<bos>", "<eos>")]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


def clip() -> Any:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT | tokens, vision_config=VISION, projection_dim=12)
    )


def clip_of_today() -> Any:  # eos_token_id 2 stands for the greatest token, as OpenAI's own had it
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT | tokens, vision_config=VISION, projection_dim=12)
    )


def siglip() -> Any:
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))


def altclip() -> Any:
    text = TEXT | {"project_dim": 16, "pad_token_id": 0, "max_position_embeddings": 20, "type_vocab_size": 1}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    )


TWO_TOWERS: dict[str, Callable[[], Any]] = {
    "clip": clip_of_today, "clip of old": clip, "siglip": siglip, "altclip": altclip,
}  # fmt: skip


def saved(folder: Path, made: Any, kind: str = "") -> Path:
    torch.manual_seed(0)
    model = made()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that outputs differ
    model.save_pretrained(folder)
    tokenizer(folder, kind)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_a_folder_of_two_towers_is_a_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    folder = saved(tmp_path / kind, TWO_TOWERS[kind], kind)
    plain("red").save(tmp_path / "red.png")
    with Index(tmp_path / "index", model=str(folder)) as index:
        assert index.add(tmp_path / "red.png").added == 1
        assert [Path(hit.path or "").name for hit in index.search("a red disc")] == ["red.png"]
        assert index.status().model.removesuffix("#int8") == f"hf-dir:{folder}"
    bundle = load_encoder(f"hf-dir:{folder}", precision="fp32")
    torch_model = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    pad = "max_length" if kind == "siglip" else True
    made = words(["a blue disc"], padding=pad, max_length=16, truncation=True, return_tensors="pt")
    given = {"input_ids": made["input_ids"]} | ({} if kind == "siglip" else {"attention_mask": made["attention_mask"]})
    with torch.inference_mode():
        found = torch_model.get_text_features(**given)
    due = torch.nn.functional.normalize(getattr(found, "pooler_output", found), dim=1).numpy()
    np.testing.assert_allclose(bundle.encode_texts(["a blue disc"]), due, atol=2e-3)
    assert bundle.encode_images([Image.new("RGB", (50, 40))]).shape == due.shape


OTHERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                vocab_size=300)),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**VISION)),
    "t5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300)),
    "blip": lambda: transformers.BlipModel(
        transformers.BlipConfig(text_config=TEXT | {"encoder_hidden_size": 16}, vision_config=VISION,
                                projection_dim=12)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_model_of_two_towers_is_refused_in_a_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    folder = saved(tmp_path / kind, OTHERS[kind])
    with pytest.raises(ModelError, match=f"it is of the kind '{kind}'. Models of two towers are read"):
        load_encoder(str(folder))


TEXT_HALVES = ("bert", "t5", *TWO_TOWERS)
IMAGE_HALVES = ("vit", *TWO_TOWERS)


def design(**parts: object) -> EncoderDesign:
    tiny = {
        "image_tower": "resnet10t", "image_size": 0, "dim": 16, "text_width": 16, "batch": 4, "steps": 2, "interval": 2,
        "warmup_steps": 1, "max_tokens": 12, "device": "cpu", "fusion": "none",
    }  # fmt: skip
    return EncoderDesign.of(tiny | parts)


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text"), zip(("", *IMAGE_HALVES, ""), TEXT_HALVES, strict=False))
def test_halves_are_towers(image: str, text: str, tmp_path: Path) -> None:
    every = TWO_TOWERS | OTHERS
    parts: dict[str, object] = {"text_tower": str(saved(tmp_path / "text", every[text], text))}
    parts |= {"image_tower": str(saved(tmp_path / "image", every[image]))} if image else {"image_size": 32}
    report = train_encoder([toys.pairs(tmp_path / "pairs", 24)], tmp_path / "mine", design(**parts))
    assert report is not None
    rows = load_encoder(str(report.folder)).encode_texts(["a red disc by night", "x"])
    assert rows.shape == (2, 16) and np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"text_tower": "vit"}, "is no text tower: a model of the kind 'vit'"),
        ({"text_tower": "blip"}, "is no text tower: a model of the kind 'blip'"),
        ({"image_tower": "bert"}, "is no image tower: it is of the kind 'bert'"),
        ({"image_tower": "vit", "image_size": 64}, "reads pictures of 32 x 32 pixels"),
        ({"text_tower": "clip", "max_tokens": 17}, "reads 16 tokens at most"),
    ],
)
def test_what_is_no_tower_is_refused_in_a_sentence(parts: dict[str, Any], said: str, tmp_path: Path) -> None:
    every = TWO_TOWERS | OTHERS
    kind = str(parts.get("text_tower") or parts["image_tower"])
    folder = str(saved(tmp_path / kind, every[kind]))
    given = design(**parts | ({"text_tower": folder} if "text_tower" in parts else {"image_tower": folder}))
    with pytest.raises(Error, match=said):
        text_tower(given, 300) if "text_tower" in parts else image_tower(given)


@pytest.mark.parametrize("says", ["{", "[]", '{"model_type": 3}', "null", "[" * 100_000, "{}"])
def test_a_config_that_makes_no_sense_is_a_sentence(says: str, tmp_path: Path) -> None:
    from mmsearch.encoders.hugging_face import export_bundle

    (tmp_path / "config.json").write_text(says)
    with pytest.raises(Error) as raised:
        export_bundle("x", tmp_path, str(tmp_path / "b"), None, lambda line: None)
    assert len(str(raised.value)) < 400 and "Traceback" not in str(raised.value)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    from mmsearch.encoders.hugging_face import export_bundle

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin: a pickle can run anything"):
        export_bundle("x", tmp_path, str(tmp_path / "b"), None, lambda line: None)
