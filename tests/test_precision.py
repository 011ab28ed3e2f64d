"""Bundles in 8 bits, and where encoding runs: what `auto` takes, what is said, and what an index remembers."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch import Index, load_encoder
from mmsearch.encoders import Bundle
from mmsearch.encoders.bundle import has_cuda
from mmsearch.encoders.openclip import bundle_folder, bundle_for, parse_name
from mmsearch.encoders.preprocess import fit
from mmsearch.encoders.quantise import LEAST_COSINE, agrees, sample_pictures
from mmsearch.errors import ModelError, ModelMismatchError, UsageError
from tests.conftest import Run

pytest.importorskip("open_clip")
pytest.importorskip("torch")


@dataclass(frozen=True)
class Converted:
    """A model in a cache of its own, both in full precision and in 8 bits, and what was said meanwhile."""

    name: str
    cache: Path
    full: Bundle
    small: Bundle
    said: list[str]


def converted(work: Path, spoilt: tuple[str, ...] = ()) -> Converted:
    from mmsearch.encoders.export import export_bundle  # in this process: torch is imported once for all of them
    from tests.test_openclip import save_model

    folder = save_model(work / "model", "vit")
    for part in spoilt:
        make_coarse(folder / "model.safetensors", part)
    name, said = f"local-dir:{folder}", list[str]()
    with cache_in(work / "cache"):
        full = export_bundle(name, name, None, bundle_folder(parse_name(name)))
        small = bundle_for(name, precision="int8", progress=said.append)
    return Converted(name, work / "cache", full, small, said)


def make_coarse(weights: Path, part: str) -> None:
    """Blow up one channel between two matrices, a thousandfold, and take it back in the second.

    In full precision nothing changes; the one scale of 8 bits leaves nothing of the other channels.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    block = f"{part}transformer.resblocks.1.attn."
    into, out = tensors[f"{block}in_proj_weight"], tensors[f"{block}out_proj.weight"]
    channel = 2 * out.shape[0]  # of the values, which come after queries and keys
    into[channel] *= 1000
    tensors[f"{block}in_proj_bias"][channel] *= 1000
    out[:, 0] /= 1000
    save_file(tensors, weights)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """$MMSEARCH_CACHE, where `monkeypatch` is not to be had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSEARCH_CACHE", os.fspath(folder))
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return converted(tmp_path_factory.mktemp("coarse"), spoilt=("visual.", ""))


@pytest.fixture
def in_cache(good: Converted, monkeypatch: pytest.MonkeyPatch) -> Converted:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(good.cache))
    return good


def pictures() -> list[Image.Image]:
    return sample_pictures()[::9]


def test_auto_takes_8_bits_where_they_agree_and_the_card_says_how_well(in_cache: Converted) -> None:
    said: list[str] = []
    bundle = bundle_for(in_cache.name, progress=said.append)
    assert (bundle.precision, said) == ("int8", [])
    assert agrees(bundle)
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    for figure, value in bundle.agreement.items():
        assert f"| {figure} | {value:.4f} |" in card
    assert any(line.startswith("8 bits find the same (") for line in in_cache.said)


def test_auto_stays_in_full_precision_where_they_do_not(coarse: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(coarse.cache))
    bundle = bundle_for(coarse.name)
    assert (bundle.precision, bundle.fingerprint) == ("fp32", coarse.full.fingerprint)


def test_who_insists_gets_8_bits_and_the_figures(coarse: Converted) -> None:
    assert coarse.small.precision == "int8"
    assert coarse.small.agreement["mean cosine of pictures"] < LEAST_COSINE
    assert any(line.startswith("8 bits do not find the same (") for line in coarse.said)
    assert f"{coarse.small.agreement['mean cosine of pictures']:.4f}" in (coarse.small.folder / "README.md").read_text()


def test_a_text_tower_that_8_bits_would_spoil_stays_as_it_is(coarse: Converted, good: Converted) -> None:
    texts = ["a dog", "a cat in the snow"]
    np.testing.assert_allclose(coarse.small.encode_texts(texts), coarse.full.encode_texts(texts), atol=1e-5)
    assert np.abs(good.small.encode_texts(texts) - good.full.encode_texts(texts)).max() > 1e-5


def test_the_two_have_folders_and_fingerprints_of_their_own(good: Converted) -> None:
    assert good.small.folder != good.full.folder
    assert good.small.fingerprint != good.full.fingerprint
    assert (good.small.name, good.small.dim) == (good.full.name + "#int8", good.full.dim)
    weights = "image.onnx.data"
    assert (good.small.folder / weights).stat().st_size < (good.full.folder / weights).stat().st_size / 2
    rows, expected = good.small.encode_images(pictures()), good.full.encode_images(pictures())
    assert (rows * expected).sum(axis=1).min() > 0.99


def test_in_8_bits_a_row_does_not_depend_on_its_neighbours(good: Converted) -> None:
    pixels = np.stack([fit(picture, good.small.pixels) for picture in pictures()])
    alone = np.concatenate([good.small.image_features(picture[None]) for picture in pixels])
    np.testing.assert_array_equal(good.small.image_features(pixels), alone)
    texts = ["a dog", "a very long caption " * 20, ""]
    alone = np.concatenate([good.small.text_features([text]) for text in texts])
    np.testing.assert_array_equal(good.small.text_features(texts), alone)


@pytest.mark.slow
def test_what_was_made_for_8_bits_alone_is_not_kept_and_auto_keeps_what_it_takes(
    coarse: Converted, good: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(tmp_path))
    assert bundle_for(coarse.name).fingerprint == coarse.full.fingerprint  # converted anew, in another process
    assert bundle_for(good.name).fingerprint == good.small.fingerprint
    kept = {path.name for path in (tmp_path / "bundles").iterdir() if path.suffix != ".lock"}
    assert kept == {coarse.full.folder.name, coarse.small.folder.name, good.small.folder.name}


def test_a_model_that_cannot_be_made_into_8_bits_stays_as_it_is(
    good: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(tmp_path))
    folder = bundle_folder(parse_name(good.name))
    shutil.copytree(good.full.folder, folder)
    graph = folder / "image.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    said: list[str] = []
    assert bundle_for(good.name, progress=said.append).fingerprint == good.full.fingerprint
    assert "cannot be made into 8 bits" in said[-1]
    with pytest.raises(ModelError, match="cannot be made into 8 bits"):
        bundle_for(good.name, precision="int8")
    assert [path.name for path in (tmp_path / "bundles").iterdir() if path.suffix != ".lock"] == [folder.name]


@pytest.fixture
def indexes(in_cache: Converted, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """An index of each kind, by precision."""
    folders = {}
    for precision in ("fp32", "int8"):
        folders[precision] = tmp_path / precision
        with Index(folders[precision], model=in_cache.name, precision=precision) as index:  # type: ignore[arg-type]
            index.add_images(pictures())
    yield folders


def test_an_index_is_opened_again_with_the_bundle_that_it_was_made_with(
    indexes: dict[str, Path], in_cache: Converted
) -> None:
    for precision, bundle in (("fp32", in_cache.full), ("int8", in_cache.small)):
        for model in (None, in_cache.name):
            with Index(indexes[precision], model=model) as index:
                assert index.search(pictures()[0], k=1)[0].score > 0.0
                assert index.encoder.fingerprint == bundle.fingerprint  # type: ignore[attr-defined]


def test_another_precision_than_an_index_has_is_refused(indexes: dict[str, Path]) -> None:
    with pytest.raises(ModelMismatchError, match=r"in int8; you asked for fp32. Leave out --precision"):
        Index(indexes["int8"], precision="fp32")
    with pytest.raises(ModelMismatchError, match="in fp32; you asked for int8"):
        Index(indexes["fp32"], precision="int8")


def test_the_command_line_takes_a_precision(in_cache: Converted, mmsearch: Run, home: Path) -> None:
    pictures()[0].save(home / "one.png")
    made = mmsearch("index", "one.png", "--model", in_cache.name, "--precision", "int8", "--device", "cpu")
    assert made.returncode == 0, made.stderr
    assert f"{in_cache.name}#int8" in mmsearch("status").stdout
    assert mmsearch("index", "--precision", "fp32").returncode == 1
    assert mmsearch("index", "--precision", "int4").returncode == 2


def test_a_name_can_ask_for_8_bits(in_cache: Converted) -> None:
    assert load_encoder(f"{in_cache.name}#int8").fingerprint == in_cache.small.fingerprint
    with pytest.raises(ModelError, match="Leave out one of the two"):
        load_encoder(f"{in_cache.name}#int8", precision="fp32")


def test_a_bundle_that_nothing_is_made_of_has_the_precision_that_it_has(good: Converted) -> None:
    with pytest.raises(ModelError, match="'lite' is a bundle in fp32"):
        load_encoder("lite", precision="int8")
    assert load_encoder("lite", precision="fp32").name == "lite"
    with pytest.raises(ModelError, match="in int8, and stays so"):
        load_encoder(os.fspath(good.small.folder), precision="fp32")
    assert load_encoder(os.fspath(good.small.folder)).fingerprint == good.small.fingerprint


def test_an_encoder_of_ones_own_has_no_precision(good: Converted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an encoder of your own"):
        Index(tmp_path / "index", encoder=good.full, precision="int8")


@pytest.mark.skipif(has_cuda(), reason="there is a CUDA GPU here")
def test_without_cuda_auto_is_the_processor_and_cuda_is_one_clear_sentence(mmsearch: Run, home: Path) -> None:
    expected = load_encoder("lite", device="cpu").encode_images(pictures()[:1])
    np.testing.assert_array_equal(load_encoder("lite", device="auto").encode_images(pictures()[:1]), expected)
    with pytest.raises(ModelError, match=r"torch finds no CUDA GPU here\. Take --device cpu, or install"):
        load_encoder("lite", device="cuda")
    pictures()[0].save(home / "one.png")
    refused = mmsearch("index", "one.png", "--model", "lite", "--device", "cuda")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "torch finds no CUDA GPU here. Take --device cpu" in refused.stderr
    assert "Traceback" not in refused.stderr
