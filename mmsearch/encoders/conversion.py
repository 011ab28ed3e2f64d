"""A torch module -> an ONNX file that ONNX Runtime runs, its graph optimised as far as that holds on any processor."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmsearch.encoders.preprocess import PixelSpec
from mmsearch.encoders.sessions import optimise
from mmsearch.errors import ModelError

OPSET = 20  # the first with Gelu, which ONNX Runtime has as one kernel


def convert(
    tower: nn.Module,
    samples: Mapping[str, Tensor],
    free: Mapping[str, Mapping[int, str]],
    path: Path,
    outputs: Sequence[str] = ("features",),
    operators: Mapping[Any, Any] | None = None,
) -> None:
    """Writes an ONNX file. samples: an input of each name, in the order of the module's arguments.

    free: the axes of inputs that may be of any length, each with its name; one name is one length. operators: of our
    own, each with what makes ONNX of it. Raises ModelError.
    """
    dims = {label: torch.export.Dim(label) for axes in free.values() for label in axes.values()}
    shapes = tuple({axis: dims[label] for axis, label in free.get(name, {}).items()} for name in samples)
    with tempfile.TemporaryDirectory(dir=path.parent) as plain:
        try:
            with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter's to its own authors
                program: Any = torch.onnx.export(
                    tower.eval(),
                    tuple(samples.values()),
                    dynamo=True,
                    input_names=list(samples),
                    output_names=list(outputs),
                    dynamic_shapes=shapes,
                    opset_version=OPSET,
                    custom_translation_table=dict(operators or {}),
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            raise ModelError(f"torch cannot write it as ONNX: {' '.join(str(error).split())[:300]}") from error
        _check_free(program.model.graph.inputs, free)
        program.save(Path(plain) / path.name, external_data=True)
        del program
        optimise(Path(plain) / path.name, path)


def sample_pixels(spec: PixelSpec) -> Tensor:
    """(3, h, w, 3) uint8: three images that have little in common, noise, a gradient and stripes."""
    noise = torch.randint(0, 256, (spec.height, spec.width, 3), generator=torch.Generator().manual_seed(0))
    gradient = torch.linspace(0, 255, spec.width)[None, :, None].expand_as(noise)
    stripes = (torch.arange(spec.height) // 16 % 2 * 255)[:, None, None].expand_as(noise)
    return torch.stack([noise, gradient.long(), stripes]).to(torch.uint8)


def _check_free(inputs: Sequence[Any], free: Mapping[str, Mapping[int, str]]) -> None:
    """Raises ModelError where an axis that has to be free was fixed, as torch 2.11 does with the length of an LSTM."""
    for value in inputs:
        for axis in free.get(value.name, {}):
            if isinstance(value.shape[axis], int):
                raise ModelError(
                    f"torch {torch.__version__} writes '{value.name}' for {value.shape[axis]} alone along axis {axis}, "
                    "not for any length. Take another tower, or another version of torch."
                )
