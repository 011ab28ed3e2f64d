"""An LSTM that can be written as ONNX for texts of any length.

torch takes an LSTM apart for `torch.export`, a step for each place, and so fixes the length; where the length is a sum,
as of an image's tokens and a text's, all of the graph is then for that length alone (torch 2.14). Here an export sees
one operator, which ONNX has too.
"""

from typing import Any

import torch
from torch import Tensor, nn


@torch.library.custom_op("mmsearch::lstm", mutates_args=())
def lstm(tokens: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """(n, t, w) -> (n, t, h); weights as `nn.LSTM` has them, the state zeros at first."""
    state = tokens.new_zeros(1, tokens.shape[0], w_hh.shape[1])
    weights = [w_ih, w_hh, b_ih, b_hh]
    read: Tensor = torch.lstm(tokens, (state, state), weights, True, 1, 0.0, False, False, True)[0]
    return read


@lstm.register_fake
def _(tokens: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return tokens.new_empty(tokens.shape[0], tokens.shape[1], w_hh.shape[1])


class Lstm(nn.LSTM):
    """One layer, one direction, batch first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden, batch_first=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        if torch.compiler.is_exporting():
            return lstm(tokens, self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0), None
        read: tuple[Tensor, Any] = super().forward(tokens)
        return read


def as_onnx(tokens: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """The operator in ONNX's, whose gates stand in another order: input, output, forget, cell."""
    from onnxscript import opset20

    op: Any = opset20  # what it is given here are values of a graph
    hidden = int(w_hh.shape[1])
    gates = [list(range(gate * hidden, (gate + 1) * hidden)) for gate in range(4)]
    order = op.Constant(value_ints=gates[0] + gates[3] + gates[1] + gates[2])

    def ordered(weight: Any) -> Any:
        return op.Gather(weight, order, axis=0)

    biases = op.Concat(ordered(b_ih), ordered(b_hh), axis=0)
    first = op.Constant(value_ints=[0])
    weights = [op.Unsqueeze(each, first) for each in (ordered(w_ih), ordered(w_hh), biases)]
    read, _, _ = op.LSTM(op.Transpose(tokens, perm=[1, 0, 2]), *weights, hidden_size=hidden)
    return op.Transpose(op.Squeeze(read, op.Constant(value_ints=[1])), perm=[1, 0, 2])  # of (t, 1, n, h)


IN_ONNX: dict[Any, Any] = {torch.ops.mmsearch.lstm.default: as_onnx}
