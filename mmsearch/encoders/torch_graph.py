"""An ONNX graph of an image tower, run by torch.

The graph is read node by node. What follows from weights alone is computed when it is loaded, what follows from the
number of pictures when that number is first met; what is left is a list of steps. On the way attention and linear
layers become the kernels that torch has for them, and the many nodes that only look at memory in another way become one
step, or none: exporters write a torch module's every view, and some of them, taken alone, would copy what is there.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor

from mmsearch.encoders.operators import OPERATORS, READS_SHAPES, Operator, UnknownOperatorError

_FRACTIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_VIEWS = {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_LINEAR = {"Gemm", "Linear", "Linear and Gelu", "MatMul"}


@dataclass(frozen=True)
class Node:
    """A node of a graph."""

    operator: str
    inputs: tuple[str, ...]  # "" for one that is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass
class _Step:
    """What is to be run for pictures of one number; the inputs that do not depend on them are known."""

    run: Operator
    inputs: tuple[str | None, ...]  # None where the input is known
    known: tuple[Any, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    frees: list[str] = field(default_factory=list)  # what nothing reads after it

    def take(self, values: dict[str, Any]) -> None:
        read = [known if name is None else values[name] for name, known in zip(self.inputs, self.known, strict=True)]
        _keep(values, self.outputs, self.run(read, self.attributes))


class _View:
    """A tensor seen in another way: its axes cut into parts, those put into another order, and grouped again."""

    def __init__(self, root: str, shape: Sequence[int]) -> None:
        self.root = root
        self.sizes = [size for size in shape if size != 1]  # of the parts
        self.before = list(range(len(self.sizes)))  # the parts, in the order of the root
        places = iter(self.before)  # of groups of parts: the axes as they are seen
        self.groups = [[] if size == 1 else [next(places)] for size in shape]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sizes[part] for part in group) for group in self.groups)

    @property
    def order(self) -> list[int]:
        return [part for group in self.groups for part in group]

    def copy(self) -> "_View":
        other = _View(self.root, ())
        other.sizes, other.before = list(self.sizes), list(self.before)
        other.groups = [list(group) for group in self.groups]
        return other

    def permuted(self, axes: Sequence[int]) -> "_View":
        other = self.copy()
        other.groups = [list(self.groups[axis]) for axis in axes]
        return other

    def reshaped(self, shape: Sequence[int]) -> "_View | None":
        """None where an axis would have to begin within another and end without."""
        other = self.copy()
        left = other.order
        groups: list[list[int]] = []
        for size in shape:
            group: list[int] = []
            while size > 1:
                if not left:
                    return None
                part = left.pop(0)
                if size % other.sizes[part] != 0:
                    if other.sizes[part] % size != 0:
                        return None
                    left.insert(0, other._cut(part, size))
                group.append(part)
                size //= other.sizes[part]
            groups.append(group)
        if left:
            return None
        other.groups = groups
        return other

    def _cut(self, part: int, size: int) -> int:
        """Cut a part in two, the first of a size; -> the second."""
        second = len(self.sizes)
        self.sizes.append(self.sizes[part] // size)
        self.sizes[part] = size
        self.before.insert(self.before.index(part) + 1, second)
        for group in self.groups:
            if part in group:
                group.insert(group.index(part) + 1, second)
        return second

    def step(self, name: str) -> "_Step":
        """That computes it."""
        order = [self.before.index(part) for part in self.order]
        parts = [self.sizes[part] for part in self.before]
        seen = _reshaped if order == sorted(order) else _reordered
        return _Step(seen, (self.root,), (None,), (name,), {"parts": parts, "order": order, "shape": self.shape})


def _reshaped(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    return inputs[0].reshape(attributes["shape"])


def _reordered(inputs: Sequence[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    return inputs[0].reshape(attributes["parts"]).permute(attributes["order"]).reshape(attributes["shape"])


class TorchGraph:
    """An ONNX graph that reads pixels, run by torch. For one thread at a time."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UnknownOperatorError for a graph with an operator that is not in `operators`."""
        graph = onnx.load(path).graph
        self._device, self._dtype = device, dtype
        weights = {entry.name: self._placed(onnx.numpy_helper.to_array(entry)) for entry in graph.initializer}
        self._input = next(entry.name for entry in graph.input if entry.name not in weights)
        self._outputs = [entry.name for entry in graph.output]
        with torch.inference_mode():
            known, nodes = _folded(weights, [self._read(node) for node in graph.node])
        self._nodes = _joined(nodes, known, self._outputs)
        read = {name for node in self._nodes for name in node.inputs}
        self._known = {name: value for name, value in known.items() if name in read}
        self._steps: tuple[int, list[_Step]] = 0, []  # for pictures of this number

    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """(n, h, w, 3) uint8 on the device -> every output of the graph."""
        values: dict[str, Any] = {self._input: pixels}
        with torch.inference_mode():
            if self._steps[0] != len(pixels):
                run = _FirstRun(self._known, self._nodes, self._outputs, self._device)
                self._steps = len(pixels), run.steps(values)
            else:
                for step in self._steps[1]:
                    step.take(values)
                    for name in step.frees:
                        del values[name]
        return {name: values[name] for name in self._outputs}

    def _read(self, node: onnx.NodeProto) -> Node:
        if node.op_type not in OPERATORS:
            raise UnknownOperatorError(node.op_type)
        attributes: dict[str, Any] = {"dtype": self._dtype}
        for entry in node.attribute:
            value = onnx.helper.get_attribute_value(entry)
            if isinstance(value, onnx.TensorProto):
                value = self._placed(onnx.numpy_helper.to_array(value))
            attributes[entry.name] = value.decode() if isinstance(value, bytes) else value
        return Node(node.op_type, tuple(node.input), tuple(node.output), attributes)

    def _placed(self, array: npt.NDArray[Any]) -> Tensor:
        """A weight on the device; whole numbers are shapes and places, and stay where Python reads them."""
        tensor = torch.from_numpy(np.array(array))
        return tensor.to(self._device, self._dtype) if tensor.dtype in _FRACTIONS else tensor


class _FirstRun:
    """Runs a graph for pictures of a new number, and tells the steps that do it again."""

    def __init__(
        self, known: Mapping[str, Any], nodes: Sequence[Node], outputs: Sequence[str], device: torch.device
    ) -> None:
        self._known = dict(known)
        self._nodes, self._outputs, self._device = nodes, outputs, device
        self._views: dict[str, _View] = {}  # not computed, as long as nobody needs them
        self._values: dict[str, Any] = {}
        self._steps: list[_Step] = []
        self._last_reads = {name: place for place, node in enumerate(nodes) for name in node.inputs}
        self._last_reads |= dict.fromkeys(outputs, len(nodes))

    def steps(self, values: dict[str, Any]) -> list[_Step]:
        """Leaves the graph's outputs in `values`."""
        self._values = values
        for place, node in enumerate(self._nodes):
            if node.operator == "Shape" and node.inputs[0] not in self._known:
                shape = torch.empty(self._shape(node.inputs[0]), device="meta")
                self._known[node.outputs[0]] = OPERATORS["Shape"]([shape], node.attributes)
            elif not _follows(node, self._known) and not self._noted_as_view(node) and not self._done_as_linear(node):
                self._do(node)
            self._forget(place)
        for name in self._outputs:
            self._compute(name)
        return self._freeing()

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._views[name].shape if name in self._views else tuple(self._values[name].shape)

    def _noted_as_view(self, node: Node) -> bool:
        """Whether a node only looks at a tensor in another way, which is noted then."""
        if node.operator not in _VIEWS or node.inputs[0] in self._known:
            return False
        name = node.inputs[0]
        view = self._views.get(name) or _View(name, self._shape(name))
        if node.operator == "Transpose":
            self._views[node.outputs[0]] = view.permuted(node.attributes.get("perm") or range(len(view.shape))[::-1])
            return True
        plain = torch.empty(view.shape, device="meta")
        found = OPERATORS[node.operator]([plain, *(self._known[name] for name in node.inputs[1:])], node.attributes)
        reshaped = view.reshaped(tuple(found.shape))
        if reshaped is not None:
            self._views[node.outputs[0]] = reshaped
        return reshaped is not None

    def _done_as_linear(self, node: Node) -> bool:
        """Whether a node is a linear layer on a view; run then on its rows as they lie in memory: none is copied."""
        weight = self._known.get(node.inputs[1]) if node.operator in _LINEAR else None
        view = self._views.get(node.inputs[0])
        if view is None or not isinstance(weight, Tensor) or weight.dim() != 2 or not view.groups[-1]:
            return False
        if node.operator == "Gemm" and node.attributes.get("transA"):
            return False
        strides = self._values[view.root].reshape([view.sizes[part] for part in view.before]).stride()
        last = view.groups[-1]
        rows = sorted(set(view.order) - set(last), key=lambda part: -strides[view.before.index(part)])
        ordered = view.copy()
        ordered.groups = [rows, last]
        data, made = f"{node.outputs[0]} rows", f"{node.outputs[0]} made"
        self._views[data] = ordered
        self._do(replace(node, inputs=(data, *node.inputs[1:]), outputs=(made,)))
        width = self._values[made].shape[-1]
        found = _View(made, [*(view.sizes[part] for part in rows), width])
        places = {part: found.groups[place] for place, part in enumerate(rows)}
        rest = [[one for part in group for one in places[part]] for group in view.groups[:-1]]
        found.groups = [*rest, found.groups[-1]]
        self._views[node.outputs[0]] = found
        return True

    def _compute(self, name: str) -> None:
        """Make a tensor of what is a view so far."""
        if name in self._views and name not in self._values:
            step = self._views.pop(name).step(name)
            step.take(self._values)
            self._steps.append(step)

    def _do(self, node: Node) -> None:
        for name in node.inputs:
            self._compute(name)
        inputs = tuple(None if not name or name in self._known else name for name in node.inputs)
        device = None if node.operator in READS_SHAPES else self._device
        known = tuple(_moved(self._known.get(name), device) for name in node.inputs)
        step = _Step(OPERATORS[node.operator], inputs, known, node.outputs, node.attributes)
        step.take(self._values)
        self._steps.append(step)

    def _forget(self, place: int) -> None:
        """Let go of what nothing reads after a node, as the steps do when they are run again."""
        self._views = {name: view for name, view in self._views.items() if self._last_reads.get(name, -1) > place}
        roots = {view.root for view in self._views.values()}
        for name in [name for name in self._values if name not in roots and self._last_reads.get(name, -1) <= place]:
            del self._values[name]

    def _freeing(self) -> list[_Step]:
        last = {name: step for step in self._steps for name in (*step.outputs, *step.inputs) if name}
        for name, step in last.items():
            if name not in self._outputs:
                step.frees.append(name)
        return self._steps


def _keep(values: dict[str, Any], outputs: Sequence[str], found: Any) -> None:
    several = found if isinstance(found, tuple) else (found,)
    values |= ((name, value) for name, value in zip(outputs, several, strict=False) if name)


def _follows(node: Node, known: dict[str, Any]) -> bool:
    """Whether a node follows from what is known; it is known then, too."""
    if not all(not name or name in known for name in node.inputs):
        return False
    found = OPERATORS[node.operator]([known.get(name) for name in node.inputs], node.attributes)
    _keep(known, node.outputs, found)
    return True


def _moved(value: Any, device: torch.device | None) -> Any:
    """A single number serves where it is."""
    return value if device is None or not isinstance(value, Tensor) or value.dim() == 0 else value.to(device)


def _folded(weights: Mapping[str, Tensor], nodes: Sequence[Node]) -> tuple[dict[str, Any], list[Node]]:
    """What follows from weights alone; the nodes that depend on more."""
    known = dict(weights)
    left = [node for node in nodes if not _follows(node, known)]
    return known, left


def _joined(nodes: Sequence[Node], known: Mapping[str, Any], outputs: Sequence[str]) -> list[Node]:
    """The same graph, with two kinds of neighbours as one node each: linear layers, and attention."""
    reads = Counter([*outputs, *(name for node in nodes for name in node.inputs)])
    made = {name: node for node in nodes for name in node.outputs}
    joined: dict[int, Node] = {}  # in the place of a node, by its id
    gone: set[int] = set()

    def only_maker(name: str, *operators: str) -> Node | None:
        node = made.get(name)
        alone = node is not None and reads[name] == 1 and node.operator in operators and id(node) not in gone
        return node if alone else None

    def is_weight(name: str, rank: int) -> bool:
        return isinstance(known.get(name), Tensor) and known[name].dim() == rank

    for node in nodes:
        if node.operator in ("Add", "BiasGelu") and len(node.inputs) == 2:
            for data, bias in (node.inputs, node.inputs[::-1]):
                product = only_maker(data, "MatMul")
                if product is not None and is_weight(bias, 1) and is_weight(product.inputs[1], 2):
                    kind = "Linear" if node.operator == "Add" else "Linear and Gelu"
                    joined[id(node)] = replace(node, operator=kind, inputs=(*product.inputs, bias))
                    gone.add(id(product))
                    break
        elif node.operator == "MatMul":
            softmax = only_maker(node.inputs[0], "Softmax")
            scores = softmax and only_maker(softmax.inputs[0], "MatMul", "FusedMatMul")
            if softmax and scores and _is_over_keys(softmax) and not _transposes_more(scores):
                inputs = (*scores.inputs, node.inputs[1])
                joined[id(node)] = replace(scores, operator="Attention of parts", inputs=inputs, outputs=node.outputs)
                gone |= {id(softmax), id(scores)}
    return [joined.get(id(node), node) for node in nodes if id(node) not in gone]


def _is_over_keys(softmax: Node) -> bool:
    return softmax.attributes.get("axis", -1) in (-1, 3)  # of (pictures, heads, tokens, tokens)


def _transposes_more(scores: Node) -> bool:
    """Than the keys alone."""
    return any(scores.attributes.get(name) for name in ("transA", "transBatchA", "transBatchB"))
