"""Makes an ONNX tower small: fused once, its weights as int8 or float16, restored to float32 where they are used.

Matrices are kept as int8 with a float32 scale for each output, convolutions as float16 (as int8, EfficientNet's best
class changes for one picture in eleven). What runs are float32 kernels, which give the same vectors on every processor.
A Cast of constants is done once, while the graph is loaded, where the session may fold constants; where it may not, it
costs a short text two or three milliseconds and saves more than that in loading. The table of word vectors stays int8
in memory, and only the rows that a text needs are restored.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

LARGE = 2048  # weights; smaller arrays (biases, scales, shapes) stay as they are


def fused(model: Path, target: Path) -> None:
    """Writes `model` with its graph fused as far as that holds on any processor."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(target)
    options.log_severity_level = 3
    ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])


def compacted(source: Path, target: Path) -> None:
    """Writes `source` with its large weights as int8 or float16."""
    model = onnx.load(source)
    graph = model.graph
    by_name = {tensor.name: tensor for tensor in graph.initializer}
    for node in list(graph.node):
        place = 0 if node.op_type == "Gather" else 1
        tensor = by_name.get(node.input[place]) if len(node.input) > place else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < LARGE:
            continue
        weight = numpy_helper.to_array(tensor)
        if node.op_type == "Gather":
            _look_up_int8(graph, node, weight)
        elif node.op_type in ("Conv", "FusedConv"):
            _from_float16(graph, node, weight)
        elif node.op_type == "MatMul":
            _times_int8(graph, node, weight)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _forget_its_making(model)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _from_float16(graph: onnx.GraphProto, node: onnx.NodeProto, weight: npt.NDArray[np.float32]) -> None:
    name = node.input[1]
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float16), f"{name}.half"))
    node.input[1] = f"{name}.restored"
    graph.node.insert(list(graph.node).index(node), _cast(f"{name}.half", node.input[1]))


def _times_int8(graph: onnx.GraphProto, node: onnx.NodeProto, weight: npt.NDArray[np.float32]) -> None:
    """The product with whole numbers, and a scale for each of its columns after that: less work than scaling them."""
    name, result = node.input[1], node.output[0]
    whole, scale = int8(weight, weight.ndim - 1)
    graph.initializer.extend(
        [numpy_helper.from_array(whole, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    )
    node.input[1], node.output[0] = f"{name}.float", f"{result}.whole"
    place = list(graph.node).index(node)
    scaled = helper.make_node("Mul", [f"{result}.whole", f"{name}.scale"], [result], f"{result}.mul")
    graph.node.insert(place + 1, scaled)
    graph.node.insert(place, _cast(f"{name}.int8", f"{name}.float"))


def _cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=onnx.TensorProto.FLOAT)


def _look_up_int8(graph: onnx.GraphProto, node: onnx.NodeProto, table: npt.NDArray[np.float32]) -> None:
    """Rows are looked up as int8 and restored after that, so that the table never stands in memory as float32."""
    name, result = node.input[0], node.output[0]
    whole, scale = int8(table, 0)  # a scale for each row
    graph.initializer.extend(
        [numpy_helper.from_array(whole, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    )
    node.input[0], node.output[0] = f"{name}.int8", f"{result}.int8"
    after = list(graph.node).index(node) + 1
    ids = node.input[1]
    for new in (
        helper.make_node("Mul", [f"{result}.float", f"{result}.scale"], [result], f"{result}.mul"),
        helper.make_node("Gather", [f"{name}.scale", ids], [f"{result}.scale"], f"{result}.scales", axis=0),
        _cast(f"{result}.int8", f"{result}.float"),
    ):
        graph.node.insert(after, new)


def int8(weight: npt.NDArray[np.float32], axis: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(whole numbers -127..127, scales that broadcast to them), one scale for each place along `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(weight / scale).astype(np.int8), scale


def _forget_its_making(model: onnx.ModelProto) -> None:
    """Stack traces and file names of the machine that exported it have no place in what is shipped."""
    for thing in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del thing.metadata_props[:]
        thing.doc_string = ""
    del model.graph.value_info[:]
