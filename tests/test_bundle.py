"""Bundles: what they compute, how they are written, and what is said of a damaged one."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.encoders import Bundle, FeatureEncoder, HeadSpec, PixelSpec, TextSpec, optimise, write_bundle
from mmsearch.encoders.bundle import TEXTS_AT_ONCE, clean_text
from mmsearch.encoders.catalog import LITE_FOLDER
from mmsearch.encoders.manifest import damaged
from mmsearch.encoders.sessions import RUNS_BEFORE_PACKING
from mmsearch.errors import ModelError

SIDE, WORDS, DIM = 8, 40, 6
SPECIALS = {"[PAD]": 0, "[UNK]": 1, "<s>": 2, "</s>": 3}


def image_tower(path: Path) -> None:
    """The mean colour of a picture, through a matrix."""
    write_graph(
        path,
        [
            ("Cast", ["pixels"], ["real"], {"to": 1}),
            ("ReduceMean", ["real", "axes"], ["colour"], {"keepdims": 0}),
            ("MatMul", ["colour", "weight"], ["features"], {}),
        ],
        {"axes": np.array([1, 2]), "weight": noise(3, 5)},
        ("pixels", "UINT8", ["n", SIDE, SIDE, 3], 5),
    )


def text_tower(path: Path) -> None:
    """The sum of what the tokens stand for; padding stands for nothing, the last token of all for much."""
    embedding = noise(WORDS, 4)
    embedding[0] = 0
    write_graph(
        path,
        [
            ("Gather", ["embedding", "input_ids"], ["rows"], {}),
            ("ReduceSum", ["rows", "axes"], ["features"], {"keepdims": 0}),
        ],
        {"embedding": embedding, "axes": np.array([1])},
        ("input_ids", "INT64", ["n", "t"], 4),
    )


def write_graph(
    path: Path, nodes: list[Any], constants: dict[str, np.ndarray], ends: tuple[str, str, list[Any], int]
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    name, kind, shape, width = ends
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **settings) for kind, inputs, outputs, settings in nodes],
        "tower",
        [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {f"w{number}": number for number in range(len(SPECIALS), WORDS)}
    tokenizer = Tokenizer(models.WordLevel(SPECIALS | words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return tokenizer.to_str()


def make(folder: Path, **changes: Any) -> Bundle:
    def towers(draft: Path) -> None:
        image_tower(draft / "plain.onnx")
        optimise(draft / "plain.onnx", draft / "image.onnx")
        (draft / "plain.onnx").unlink()
        text_tower(draft / "text.onnx")

    settings: dict[str, Any] = {
        "name": "tiny",
        "dim": DIM,
        "pixels": PixelSpec(SIDE, SIDE),
        "text": TextSpec(max_tokens=7),
        "tokenizer_json": tokenizer_json(),
        "image_head": HeadSpec("linear", {"weight": noise(5, DIM), "bias": noise(DIM)}),
        "text_head": HeadSpec("linear", {"weight": noise(4, DIM)}),
        "card": "# tiny\n",
    }
    return write_bundle(folder, towers, **(settings | changes))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def copy(shared: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared.folder, tmp_path / "copy"))


def test_a_bundle_is_a_feature_encoder(shared: Bundle) -> None:
    assert isinstance(shared, FeatureEncoder)
    assert (shared.name, shared.dim, shared.max_tokens) == ("tiny", DIM, 7)


def test_a_vector_is_the_head_applied_to_the_features(shared: Bundle) -> None:
    features = shared.text_features(["w5 w6"])
    expected = features @ noise(4, DIM)
    np.testing.assert_allclose(shared.encode_texts(["w5 w6"]), expected / np.linalg.norm(expected), atol=1e-6)


def test_rows_come_back_in_order_whatever_their_length(shared: Bundle) -> None:
    texts = [" ".join(["w5", "w9", "w17"][: number % 4]) + f" w{4 + number % 30}" for number in range(50)]
    alone = np.concatenate([shared.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(shared.encode_texts(texts), alone, atol=1e-6)
    assert len(np.unique(alone.round(4), axis=0)) > 30


def test_nothing_gives_no_rows_of_the_right_width(shared: Bundle) -> None:
    assert shared.encode_images([]).shape == (0, DIM)
    assert shared.encode_texts([]).shape == (0, DIM)
    assert shared.image_features(np.empty((0, SIDE, SIDE, 3), np.uint8)).shape == (0, 5)
    assert shared.text_features([]).shape == (0, 4)


def test_an_empty_text_has_a_vector(shared: Bundle) -> None:
    assert np.linalg.norm(shared.encode_texts([""])) == pytest.approx(1)


def test_a_long_text_is_cut_and_keeps_its_closing_token(shared: Bundle) -> None:
    long = " ".join(f"w{number}" for number in range(5, 35))
    np.testing.assert_array_equal(shared.encode_texts([long]), shared.encode_texts(["w5 w6 w7 w8 w9"]))
    assert shared.count_tokens(long) == 32


def test_a_tower_of_fixed_length_gets_rows_of_that_length(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", text=TextSpec(max_tokens=7, fixed_length=True, pad_id=9, last_id=11, blank_id=3))
    embedding = noise(WORDS, 4)
    embedding[0] = 0
    np.testing.assert_allclose(
        bundle.text_features(["w5"])[0], embedding[[2, 5, 0, 9, 9, 9, 11]].sum(axis=0), atol=1e-5
    )


def test_pictures_of_any_mode_and_size_are_encoded(shared: Bundle) -> None:
    modes = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
    images = [Image.new(mode, (width, 9)) for mode in modes for width in (1, 40)]
    assert shared.encode_images(images).shape == (len(images), DIM)


@pytest.mark.parametrize(
    ("clean", "cleaned"),
    [
        ("none", " A &amp;\u00a0 B_c, \r\n D! "),
        ("whitespace", "A & B_c, D!"),
        ("lower", "a & b_c, d!"),
        ("canonicalize", "a b c d"),
    ],
)
def test_texts_are_cleaned_as_the_model_was_trained(clean: Any, cleaned: str) -> None:
    assert clean_text(" A &amp;\u00a0 B_c, \r\n D! ", clean) == cleaned


def test_plain_text_is_cleaned_without_importing_ftfy() -> None:
    script = (
        "import sys; from mmsearch.encoders.bundle import clean_text;"
        "clean_text('A plain, long sentence; 100%!\\n', 'lower'); assert 'ftfy' not in sys.modules;"
        "clean_text('caf\u00e9', 'lower'); assert 'ftfy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=paths())


def paths() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_search_by_words_never_reads_the_image_tower(copy: Path) -> None:
    (copy / "image.onnx").write_bytes(bytes((copy / "image.onnx").stat().st_size))
    bundle = Bundle.open(copy)
    assert bundle.encode_texts(["w5"]).shape == (1, DIM)
    with pytest.raises(ModelError, match=r"image\.onnx cannot be loaded"):
        bundle.encode_images([Image.new("RGB", (9, 9))])


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_ready_reads_no_more_files(shared: Bundle, copy: Path, count: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    bundle = Bundle.open(copy)
    bundle.get_ready(count)
    shutil.rmtree(copy)
    expected = shared.project_images(shared.image_features(pixels))
    assert np.array_equal(bundle.project_images(bundle.image_features(pixels)), expected)


def test_repacked_weights_change_no_vector(copy: Path) -> None:
    bundle = Bundle.open(copy)
    runs = [bundle.encode_texts(["w5 w6"]) for _ in range(RUNS_BEFORE_PACKING + 2)]
    np.testing.assert_allclose(runs[0], runs[-1], atol=1e-6)


def test_threads_share_a_bundle(copy: Path) -> None:
    bundle = Bundle.open(copy)
    start = threading.Barrier(8)

    def encode(number: int) -> np.ndarray:
        start.wait()
        return bundle.encode_texts([f"w{number}"] * (TEXTS_AT_ONCE + 1))

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(encode, range(5, 13)))
    for number, row in zip(range(5, 13), rows, strict=True):
        np.testing.assert_allclose(row[-1:], bundle.encode_texts([f"w{number}"]), atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_encodes_and_ends(shared: Bundle) -> None:
    script = """
import os, signal, sys
from PIL import Image
from mmsearch.encoders import Bundle
bundle = Bundle.open(sys.argv[1])
images = [Image.new("RGB", (64, 64))] * 8
before = bundle.encode_images(images), bundle.encode_texts(["w5"] * 40)
child = os.fork()
signal.alarm(30)  # ends a child that hangs, too
after = bundle.encode_images(images), bundle.encode_texts(["w5"] * 40)
assert all((a == b).all() for a, b in zip(before, after))
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("the child's last words")
sys.exit(3)
"""
    command = [sys.executable, "-c", script, os.fspath(shared.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=paths())
    assert (done.returncode, done.stdout, done.stderr) == (3, "the child's last words\n", "")


def test_equal_content_has_an_equal_fingerprint_and_other_content_another(shared: Bundle, tmp_path: Path) -> None:
    assert make(tmp_path / "same").fingerprint == shared.fingerprint
    assert make(tmp_path / "size", pixels=PixelSpec(SIDE, SIDE, "squash")).fingerprint != shared.fingerprint
    head = HeadSpec("linear", {"weight": noise(4, DIM) + 1})
    assert make(tmp_path / "head", text_head=head).fingerprint != shared.fingerprint


def test_a_bundle_that_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def refuse(bundle: Bundle) -> None:
        raise ModelError("no good")

    with pytest.raises(ModelError, match="no good"):
        make(tmp_path / "b", check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_new_bundle_takes_the_place_of_the_old(tmp_path: Path) -> None:
    make(tmp_path / "b")
    assert make(tmp_path / "b", name="newer").name == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_that_write_at_once_leave_one_whole_bundle(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: make(tmp_path / "b", name=str(number)), range(6)))
    assert Bundle.open(tmp_path / "b").encode_texts(["w5"]).shape == (1, DIM)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "name", ["image.onnx", "text.onnx", "tokenizer.json", "heads.safetensors", "preprocess.json", "README.md"]
)
def test_a_missing_or_shortened_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1] if name != "preprocess.json" else b"{")
    with pytest.raises(ModelError, match=f"damaged: {name} .*Put back a copy"):
        Bundle.open(copy)
    (copy / name).unlink()
    with pytest.raises(ModelError, match=f"damaged: {name} is missing"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["text.onnx", "tokenizer.json", "heads.safetensors"])
def test_a_file_of_rubbish_is_named_when_it_is_read(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"\xff" * (copy / name).stat().st_size)
    with pytest.raises(ModelError, match=f"damaged: {name}"):
        Bundle.open(copy).encode_texts(["w5"])


def test_a_folder_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        Bundle.open(tmp_path / "nothing")


def test_a_bundle_of_a_newer_version_says_so(copy: Path) -> None:
    says = json.loads((copy / "preprocess.json").read_text())
    (copy / "preprocess.json").write_text(json.dumps(says | {"format": 2}))
    with pytest.raises(ModelError, match="newer mmsearch"):
        Bundle.open(copy)


def test_opening_a_bundle_imports_nothing_heavy(shared: Bundle) -> None:
    script = (
        "import sys; from mmsearch.encoders import Bundle; Bundle.open(sys.argv[1]);"
        "heavy = {'onnxruntime', 'tokenizers', 'torch', 'open_clip', 'safetensors', 'ftfy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, os.fspath(shared.folder)], check=True, env=paths())


def test_a_damaged_model_of_mmsearchs_own_is_not_to_be_deleted(tmp_path: Path) -> None:
    assert str(damaged(LITE_FOLDER, "it is cut short")).endswith("it is cut short. Install mmsearch again.")


def test_only_what_is_made_again_is_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    assert "Delete that folder; it is made again" in str(damaged(tmp_path / "cache/bundles/ViT-B-32-0123", "it is cut"))
    for folder in (tmp_path / "my-encoder", tmp_path / "cache", tmp_path / "cache/bundles"):
        said = str(damaged(folder, "it is cut short"))
        assert "elete" not in said and "Put back a copy of that folder" in said


def test_a_trained_model_of_a_newer_version_is_not_to_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "preprocess.json").write_text('{"format": 99}')
    with pytest.raises(ModelError, match=r"newer mmsearch\. Upgrade mmsearch\.$"):
        Bundle.open(tmp_path)
