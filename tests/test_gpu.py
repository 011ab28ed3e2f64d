"""The image tower on a GPU. What torch makes of a graph is compared on the processor; the rest needs a CUDA GPU."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mmsearch import Index, load_encoder
from mmsearch.encoders import Bundle
from mmsearch.encoders.bundle import FOR_A_GPU, has_cuda
from mmsearch.encoders.catalog import LITE_FOLDER as LITE
from mmsearch.errors import ModelError
from tests import pictures

torch = pytest.importorskip("torch")
from mmsearch.encoders.operators import UnknownOperatorError  # noqa: E402
from mmsearch.encoders.torch_graph import TorchGraph, _View  # noqa: E402

needs_gpu = pytest.mark.skipif(not has_cuda(), reason="needs a CUDA GPU, and a torch that can use it")

Pixels = npt.NDArray[np.uint8]


def pixels(count: int, side: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def on_the_processor(path: Path) -> TorchGraph:
    return TorchGraph(path, torch.device("cpu"), torch.float32)


def save_graph(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, npt.NDArray[Any]]) -> Path:
    """A graph that makes "data" of the pixels, (n, 3, h, w) float32 from -1 to 1, and "features" of that by nodes."""
    prepared = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["numbers", "half"], ["halves"]),
        helper.make_node("Sub", ["halves", "one"], ["data"]),
    ]
    weights = weights | {"half": np.array(127.5, np.float32), "one": np.array(1, np.float32)}
    graph = helper.make_graph(
        [*prepared, *nodes],
        "tower",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", None, None, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def node(operator: str, *weights: str, **attributes: Any) -> onnx.NodeProto:
    domain = "com.microsoft" if attributes.pop("microsoft", False) else None
    return helper.make_node(operator, ["data", *weights], ["features"], domain=domain, **attributes)


RANDOM = np.random.default_rng(7)
WEIGHTS: dict[str, npt.NDArray[Any]] = {
    "kernel": RANDOM.standard_normal((5, 3, 3, 3), np.float32),
    "by colour": RANDOM.standard_normal((3, 1, 3, 3), np.float32),
    "patches": RANDOM.standard_normal((4, 3, 4, 4), np.float32),
    "five": RANDOM.standard_normal(5, np.float32),
    "four": RANDOM.standard_normal(4, np.float32),
    "three": RANDOM.standard_normal((3, 1, 1), np.float32),
    "spread": RANDOM.uniform(0.5, 1.5, 3).astype(np.float32),
    "row": RANDOM.standard_normal(12, np.float32),
    "long row": RANDOM.standard_normal(3 * 12 * 12, np.float32),
    "square": RANDOM.standard_normal((12, 12), np.float32),
    "low": np.array(-0.3, np.float32),
    "high": np.array(0.4, np.float32),
    "axes": np.array([2, 3], np.int64),
    "last": np.array([-1], np.int64),
    "starts": np.array([1, -9], np.int64),
    "ends": np.array([np.iinfo(np.int64).max, -1], np.int64),
    "steps": np.array([1, 2], np.int64),
    "pads": np.array([0, 0, 1, 2, 0, 0, 3, 0], np.int64),
    "flat": np.array([0, -1], np.int64),
    "shape": np.array([2, 1, 1, 1, 1], np.int64),
    "twice": np.array([1, 1, 2, 1], np.int64),
    "places": np.array([2, -1, 0], np.int64),
    "place": np.array(-2, np.int64),
}
NODES = {
    "same padding": node("Conv", "kernel", "five", auto_pad="SAME_UPPER", strides=[2, 2]),
    "lower padding": node("Conv", "kernel", auto_pad="SAME_LOWER", strides=[2, 2]),
    "uneven padding": node("Conv", "kernel", pads=[0, 1, 2, 0]),
    "dilated": node("Conv", "kernel", "five", dilations=[2, 2], pads=[2, 2, 2, 2]),
    "by colour": node("Conv", "by colour", group=3),
    "patches": node("Conv", "patches", "four", strides=[4, 4]),
    "relu after": node("FusedConv", "kernel", "five", activation="Relu", microsoft=True),
    "clip after": node("FusedConv", "kernel", "five", activation="Clip", activation_params=[-1.0, 2.0], microsoft=True),
    "leaky after": node("FusedConv", "kernel", activation="LeakyRelu", activation_params=[0.2], microsoft=True),
    "sigmoid after": node(
        "FusedConv", "kernel", activation="HardSigmoid", activation_params=[0.2, 0.5], microsoft=True
    ),
    "average pool": node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average with padding": node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "max pool": node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "pool of all": node("GlobalAveragePool"),
    "batch norm": node("BatchNormalization", "spread", "spread", "spread", "spread", epsilon=1e-3),
    "layer norm": node("LayerNormalization", "row", "row", axis=-1, epsilon=1e-3),
    "softmax over colours": node("Softmax", axis=1),
    "clip": node("Clip", "low", "high"),
    "clip below": node("Clip", "low"),
    "quick gelu": node("QuickGelu", alpha=1.5, microsoft=True),
    "fast gelu": node("FastGelu", "row", microsoft=True),
    "bias gelu": node("BiasGelu", "row", microsoft=True),
    "gelu by tanh": node("Gelu", approximate="tanh"),
    "hard sigmoid": node("HardSigmoid", alpha=0.3, beta=0.4),
    "hard swish": node("HardSwish"),
    "mean": node("ReduceMean", "axes", keepdims=0),
    "mean of all": node("ReduceMean"),
    "sum": node("ReduceSum", "last"),
    "max": node("ReduceMax", "axes"),
    "slice": node("Slice", "starts", "ends", "axes", "steps"),
    "pad": node("Pad", "pads", "low"),
    "reshape": node("Reshape", "flat"),
    "expand": node("Expand", "shape"),
    "tile": node("Tile", "twice"),
    "gather": node("Gather", "places", axis=1),
    "gather one": node("Gather", "place", axis=-1),
    "flatten": node("Flatten", axis=2),
    "backwards": node("Transpose"),
    "squeezed": node("ReduceMean", "axes", keepdims=1),
    "product": node("MatMul", "square"),
    "scaled product": node("FusedMatMul", "square", alpha=0.3, transB=1, microsoft=True),
    "quotient": node("Div", "three"),
    "larger": node("Max", "three"),
}


SEVERAL = {name: [node] for name, node in NODES.items()} | {
    "power": [helper.make_node("Abs", ["data"], ["size"]), helper.make_node("Pow", ["size", "high"], ["features"])],
    "skip layer norm": [
        helper.make_node("Reshape", ["data", "flat"], ["long"]),
        helper.make_node(
            "SkipLayerNormalization", ["long", "long", "long row"], ["features"], domain="com.microsoft", epsilon=1e-3
        ),
    ],
}


@pytest.mark.parametrize("name", SEVERAL)
def test_an_operator_gives_what_onnx_runtimes_own_gives(name: str, tmp_path: Path) -> None:
    nodes = SEVERAL[name]
    used = {entry for each in nodes for entry in each.input}
    path = save_graph(tmp_path / "tower.onnx", nodes, {key: WEIGHTS[key] for key in WEIGHTS if key in used})
    asked = pixels(2, 12)
    (expected,) = ort.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"]).run(
        ["features"], {"pixels": asked}
    )
    found = on_the_processor(path).run(torch.from_numpy(asked))["features"].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("odd", [node("Elu"), node("Pad", "pads", mode="reflect"), node("LRN", size=3)])
def test_what_is_not_known_is_said_by_name(odd: onnx.NodeProto, tmp_path: Path) -> None:
    path = save_graph(tmp_path / "tower.onnx", [odd], {"pads": WEIGHTS["pads"]})
    with pytest.raises(UnknownOperatorError, match=odd.op_type):
        on_the_processor(path).run(torch.from_numpy(pixels(1, 12)))


def test_lite_gives_what_onnx_runtime_gives() -> None:
    bundle = Bundle.open(LITE)
    asked = pixels(5, bundle.pixels.width)
    expected = bundle.image_features(asked)
    graph = on_the_processor(LITE / "image.onnx")
    for some in (slice(0, 5), slice(0, 5), slice(3, 4)):
        found = graph.run(torch.from_numpy(asked[some]))["features"].numpy()
        np.testing.assert_allclose(found, expected[some], rtol=0, atol=1e-4 * np.abs(expected).max())


@given(st.data())
def test_views_of_views_are_what_torch_sees(data: st.DataObject) -> None:
    size = st.integers(1, 6)
    tensor = torch.arange(2 * 3 * 4 * 6).reshape(data.draw(st.permutations([2, 3, 4, 6])))
    view = _View("root", tensor.shape)
    seen = tensor
    for _ in range(data.draw(size)):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(seen.dim())))
            seen, view = seen.permute(order), view.permuted(order)
            continue
        first = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24, 36, 144]))
        second = data.draw(st.sampled_from([side for side in (1, 2, 3, 4) if 144 // first % side == 0]))
        shape = (first, second, 144 // first // second)
        reshaped = view.reshaped(shape)
        if reshaped is not None:
            seen, view = seen.reshape(shape), reshaped
    assert view.shape == tuple(seen.shape)
    values = {"root": tensor}
    view.step("seen").take(values)
    assert torch.equal(values["seen"], seen)


def test_a_gpu_that_cannot_be_used_leaves_pictures_to_the_processor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if has_cuda():
        pytest.skip("the GPU here can be used")
    bundle = Bundle.open(LITE)
    side = bundle.pixels.width
    expected = bundle.image_features(pixels(4, side))
    monkeypatch.setattr("mmsearch.encoders.bundle.has_cuda", lambda: True)  # a driver that torch finds, and fails with
    hoping = bundle.on("auto")
    assert hoping.uses_gpu_for(4) is False
    assert not caplog.records
    assert hoping.uses_gpu_for(FOR_A_GPU) is False
    assert "lite is run on the processor: torch cannot run it on the GPU" in caplog.text
    np.testing.assert_array_equal(hoping.image_features(pixels(4, side)), expected)
    with pytest.raises(ModelError, match=r"lite cannot use the GPU: torch cannot run it .* Take --device cpu\."):
        bundle.on("cuda").image_features(pixels(1, side))


@needs_gpu
def test_a_gpu_gives_the_processors_vectors() -> None:
    bundle = Bundle.open(LITE)
    asked = pixels(300, bundle.pixels.width)
    asked[::2] //= 3
    expected = bundle.project_images(bundle.image_features(asked))
    found = bundle.project_images(bundle.on("cuda").image_features(asked))
    assert (found * expected).sum(axis=1).min() > 0.999


@needs_gpu
def test_auto_starts_a_gpu_for_many_pictures_alone() -> None:
    bundle = load_encoder("lite", device="auto")
    assert isinstance(bundle, Bundle)
    assert not bundle.uses_gpu_for(FOR_A_GPU - 1)
    assert bundle.uses_gpu_for(FOR_A_GPU)
    assert bundle.uses_gpu_for(1)  # now that it is there
    assert not load_encoder("lite", device="cpu").uses_gpu_for(FOR_A_GPU)  # type: ignore[attr-defined]


@needs_gpu
def test_a_forked_process_encodes_on_the_processor() -> None:
    bundle = load_encoder("lite", device="cuda")
    asked = pixels(2, 288)[:, : bundle.pixels.height, : bundle.pixels.width]  # type: ignore[attr-defined]
    expected = bundle.image_features(asked)  # type: ignore[attr-defined]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        found = bundle.image_features(asked)  # type: ignore[attr-defined]
        os.write(write, b"same" if np.allclose(found, expected, atol=0.05 * np.abs(expected).max()) else b"else")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 4) == b"same"


@needs_gpu
def test_an_index_is_filled_on_a_gpu(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(300):
        pictures.photo(folder / f"{number}.jpg", (96, 64), number)
    found = []
    for device in ("cuda", "cpu"):
        with Index(tmp_path / device, model="lite", device=device) as index:  # type: ignore[arg-type]
            assert index.add(folder).added == 300
            found.append({hit.path: hit.score for hit in index.search(folder / "0.jpg", k=300)})
    assert found[0].keys() == found[1].keys()
    assert max(abs(score - found[1][path]) for path, score in found[0].items()) < 0.005
