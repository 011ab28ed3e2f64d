"""ONNX operators in torch, as far as image towers have them: those of opset 20 and ONNX Runtime's own fused ones.

Each is called with its inputs, None for one that is left out, and its attributes, of which "dtype" is the type that
numbers with a fraction are computed in. It returns one tensor, or a tuple where the node has several outputs.
Sources: github.com/onnx/onnx/blob/main/docs/Operators.md,
github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Inputs: TypeAlias = Sequence[Any]
Attributes: TypeAlias = Mapping[str, Any]
Operator: TypeAlias = Callable[[Inputs, Attributes], Any]

# Of TensorProto.DataType; numbers with a fraction become what the tower is computed in
_FRACTIONS = {1, 10, 11, 16}
_TYPES = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}


def _plain(function: Callable[..., Any]) -> Operator:
    """An operator that takes its inputs alone."""
    return lambda inputs, attributes: function(*inputs)


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    kind = attributes["to"]
    return data.to(attributes["dtype"] if kind in _FRACTIONS else _TYPES[kind])


# Shapes


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    shape = inputs[1].tolist()
    kept = not attributes.get("allowzero", 0)
    return data.reshape([data.shape[place] if kept and side == 0 else side for place, side in enumerate(shape)])


def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    return data.expand(np.broadcast_shapes(data.shape, tuple(inputs[1].tolist())))


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    axes = _axes(inputs, attributes)
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    axes = _axes(inputs, attributes) or []
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _axes(inputs: Inputs, attributes: Attributes) -> list[int] | None:
    """Once an attribute, now an input."""
    if len(inputs) > 1 and inputs[1] is not None:
        return list(inputs[1].reshape(-1).tolist())
    return attributes.get("axes")


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    starts, ends, axes, steps = [*inputs[1:], None, None][:4]
    span: list[Any] = [slice(None)] * data.dim()
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = place if axes is None else int(axes[place])
        step = 1 if steps is None else int(steps[place])
        if step < 1:
            raise UnknownOperatorError("Slice backwards")
        length = data.shape[axis]  # an end beyond it may be beyond what torch counts to
        span[axis] = slice(max(start, -length), min(end, length), step)
    return data[tuple(span)]


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    data, axis = inputs[0], attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(data.split(inputs[1].tolist(), axis))
    return tuple(data.split(math.ceil(data.shape[axis] / attributes["num_outputs"]), axis))


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    places: Tensor = inputs[1]
    axis = attributes.get("axis", 0)
    if places.dim() == 0 and places.device.type == "cpu":
        return data.select(axis, int(places))
    places = torch.where(places < 0, places + data.shape[axis], places)
    taken = data.index_select(axis, places.reshape(-1))
    axis %= data.dim()
    return taken.reshape(*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])


def _concat(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.cat(list(inputs), attributes["axis"])


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    return data.permute(attributes.get("perm") or list(range(data.dim()))[::-1])


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    axis = attributes.get("axis", 1)
    return data.reshape(math.prod(data.shape[:axis]), -1)


def _range(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.arange(*(one.item() for one in inputs), dtype=inputs[0].dtype)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = attributes.get("value")
    filler = torch.zeros(1) if value is None else value
    return torch.full(inputs[0].tolist(), filler.item(), dtype=filler.dtype)


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.tensor(inputs[0].shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


# Products and normalisation


def _fused_matmul(inputs: Inputs, attributes: Attributes) -> Tensor:
    left, right = inputs
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise UnknownOperatorError("FusedMatMul of transposed batches")
    left = left.mT if attributes.get("transA") else left
    right = right.mT if attributes.get("transB") else right
    alpha = attributes.get("alpha", 1.0)
    product: Tensor = torch.matmul(left if alpha == 1 else left * alpha, right)
    return product


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    left, right, *rest = inputs
    left = left.mT if attributes.get("transA") else left
    right = right.mT if attributes.get("transB") else right
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if not rest or rest[0] is None:
        return torch.mm(left, right).mul(alpha)
    return torch.addmm(rest[0], left, right, beta=beta, alpha=alpha)


def _linear(inputs: Inputs, attributes: Attributes) -> Tensor:
    """MatMul by a weight, and Add."""
    data, weight, bias = inputs
    found: Tensor = functional.linear(data, weight.mT, bias)
    return found


def _linear_gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    """MatMul by a weight, and BiasGelu."""
    return functional.gelu(_linear(inputs, attributes))


def _attention(inputs: Inputs, attributes: Attributes) -> Tensor:
    """softmax(alpha q k^T) v; k as (..., length, width) where "transB" says so, else transposed."""
    query, key, value = inputs
    if not attributes.get("transB"):
        key = key.mT
    scale = attributes.get("alpha", 1.0)
    if query.dim() == 3:  # torch's fast kernels want heads of their own
        return functional.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale)[0]
    return functional.scaled_dot_product_attention(query, key, value, scale=scale)


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, scale, bias = [*inputs, None][:3]
    axis = attributes.get("axis", -1) % data.dim()
    return functional.layer_norm(data, data.shape[axis:], scale, bias, attributes.get("epsilon", 1e-5))


def _skip_layer_norm(inputs: Inputs, attributes: Attributes) -> tuple[Tensor | None, ...]:
    data, skip, scale, shift, bias = [*inputs, None, None][:5]
    total = data + skip if bias is None else data + skip + bias
    normal = functional.layer_norm(total, total.shape[-1:], scale, shift, attributes.get("epsilon", 1e-12))
    return normal, None, None, total


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, scale, bias, mean, variance = inputs
    return functional.batch_norm(data, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.softmax(inputs[0], attributes.get("axis", -1))


# Convolutions


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, weight, bias = [*inputs, None][:3]
    strides = attributes.get("strides", [1] * (weight.dim() - 2))
    dilations = attributes.get("dilations", [1] * (weight.dim() - 2))
    data, padding = _padded(data, weight.shape[2:], strides, dilations, attributes)
    if list(strides) == list(weight.shape[2:]) and data.shape[1] == weight.shape[1] <= 4 and not any(padding):
        return _of_patches(data, weight, bias)
    return torch.conv2d(data, weight, bias, strides, padding, dilations, attributes.get("group", 1))


def _of_patches(data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of patches that do not overlap, as a transformer begins with: a linear layer, and faster as one."""
    count, colours, height, width = data.shape
    high, wide = weight.shape[2:]
    data = data[:, :, : height // high * high, : width // wide * wide]
    patches = data.reshape(count, colours, height // high, high, width // wide, wide).permute(0, 2, 4, 1, 3, 5)
    found = functional.linear(patches.reshape(count, height // high, width // wide, -1), weight.flatten(1), bias)
    return found.permute(0, 3, 1, 2)


def _fused_conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    """A convolution, what is to be added, and an activation."""
    found = _conv(inputs[:3], attributes)
    if len(inputs) > 3 and inputs[3] is not None:
        found = found + inputs[3]
    kind, parameters = attributes.get("activation"), attributes.get("activation_params", [])
    if kind is None:
        return found
    if kind not in _ACTIVATIONS:
        raise UnknownOperatorError(f"FusedConv with {kind}")
    return _ACTIVATIONS[kind](found, *parameters)


_ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": lambda data, slope=0.01: functional.leaky_relu(data, slope),
    "Clip": lambda data, low, high: torch.clamp(data, low, high),
    "HardSigmoid": lambda data, slope=0.2, shift=0.5: torch.clamp(data * slope + shift, 0, 1),
}


def _padded(
    data: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], attributes: Attributes
) -> tuple[Tensor, list[int]]:
    """The data, and how much torch is to pad on both sides; padded here where the sides differ."""
    kind = attributes.get("auto_pad", "NOTSET")
    n_axes = len(kernel)
    if kind in ("NOTSET", "VALID"):
        pads = list(attributes.get("pads", [0] * 2 * n_axes)) if kind == "NOTSET" else [0] * 2 * n_axes
        before, after = pads[:n_axes], pads[n_axes:]
    else:
        sides = data.shape[2:]
        spans = [dilation * (side - 1) + 1 for dilation, side in zip(dilations, kernel, strict=True)]
        whole = [
            max(0, (math.ceil(side / stride) - 1) * stride + span - side)
            for side, stride, span in zip(sides, strides, spans, strict=True)
        ]
        less = [each // 2 for each in whole]
        more = [each - half for each, half in zip(whole, less, strict=True)]
        before, after = (less, more) if kind == "SAME_UPPER" else (more, less)
    if before == after:
        return data, before
    by_axis = [amount for pair in zip(before[::-1], after[::-1], strict=True) for amount in pair]
    return functional.pad(data, by_axis), [0] * n_axes


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides", [1] * len(kernel))
    pads = attributes.get("pads", [0] * 2 * len(kernel))
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[: len(kernel)] != pads[len(kernel) :]:
        raise UnknownOperatorError("AveragePool with sides that differ")
    return functional.avg_pool2d(
        inputs[0],
        kernel,
        strides,
        pads[: len(kernel)],
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel = attributes["kernel_shape"]
    strides = attributes.get("strides", [1] * len(kernel))
    dilations = attributes.get("dilations", [1] * len(kernel))
    pads = attributes.get("pads", [0] * 2 * len(kernel))
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or pads[: len(kernel)] != pads[len(kernel) :]:
        raise UnknownOperatorError("MaxPool with sides that differ")
    found: Tensor = functional.max_pool2d(
        inputs[0], kernel, strides, pads[: len(kernel)], dilations, ceil_mode=bool(attributes.get("ceil_mode", 0))
    )
    return found


def _reduced(function: Callable[..., Tensor]) -> Operator:
    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        data: Tensor = inputs[0]
        axes = _axes(inputs, attributes)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return data
        return function(data, axes or list(range(data.dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, pads, value, axes = [*inputs, None, None][:4]
    if attributes.get("mode", "constant") != "constant":
        raise UnknownOperatorError("Pad by reflection")
    amounts = pads.tolist()
    listed = list(range(data.dim())) if axes is None else axes.tolist()
    by_axis = [0] * 2 * data.dim()
    for place, axis in enumerate(listed):
        behind = 2 * (data.dim() - 1 - axis % data.dim())
        by_axis[behind], by_axis[behind + 1] = amounts[place], amounts[place + len(listed)]
    return functional.pad(data, by_axis, value=0 if value is None else value.item())


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, low, high = [*inputs, None, None][:3]
    low, high = (None if bound is None else bound.item() for bound in (low, high))
    return torch.clamp(data, low, high)


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return functional.gelu(inputs[0], approximate=attributes.get("approximate", "none"))


def _fast_gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    data = inputs[0] if len(inputs) < 2 or inputs[1] is None else inputs[0] + inputs[1]
    return functional.gelu(data, approximate="tanh")


def _quick_gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    data: Tensor = inputs[0]
    return data * torch.sigmoid(data * attributes.get("alpha", 1.702))


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.clamp(inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1)


def _divide(left: Tensor, right: Tensor) -> Tensor:
    whole = not left.is_floating_point() and not right.is_floating_point()
    return torch.div(left, right, rounding_mode="trunc" if whole else None)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Attention of parts": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "BiasGelu": _plain(lambda data, bias: functional.gelu(data + bias)),
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda inputs, attributes: attributes["value"],
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": _plain(torch.cos),
    "Div": _plain(_divide),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "FastGelu": _fast_gelu,
    "Flatten": _flatten,
    "Floor": _plain(torch.floor),
    "FusedConv": _fused_conv,
    "FusedMatMul": _fused_matmul,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(lambda data: data.mean((2, 3), keepdim=True)),
    "Greater": _plain(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda data: data),
    "LayerNormalization": _layer_norm,
    "Less": _plain(torch.lt),
    "Linear": _linear,
    "Linear and Gelu": _linear_gelu,
    "MatMul": _plain(torch.matmul),
    "Max": _plain(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _plain(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "QuickGelu": _quick_gelu,
    "Range": _range,
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sin": _plain(torch.sin),
    "SkipLayerNormalization": _skip_layer_norm,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Tile": _plain(lambda data, times: data.tile(times.tolist())),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
# What else than data their inputs are is read here, by Python
READS_SHAPES = {"Clip", "Expand", "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Slice", "Split"}
READS_SHAPES |= {"Squeeze", "Tile", "Unsqueeze"}


class UnknownOperatorError(Exception):
    """An operator, or a way to use it, that is not here."""
