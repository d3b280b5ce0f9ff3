"""What a trained layer becomes: modules that hold integers, and give what training computed.

Weights alone in few bits: the codes are turned into floats at each call, and the product is that of
training, bit for bit. Where `labkit.nn.quantized_linear.QuantizedLinear` can take the layer (8-bit
inputs, a symmetric weight by tensor or channel) the sum itself runs over integers, and so it does
in a convolution: such sums are exact, those of training are rounded in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.core.tensor import QuantizedTensor
from labkit.nn.quantized_linear import QuantizedLinear
from labkit.quantize.activation import ActivationQuantizer, Dynamic, Static
from labkit.training.batch_norm import QatConvBn2d
from labkit.training.fake_quant import FakeQuant
from labkit.training.layers import (
    QatConv2d,
    QatLinear,
    Rounder,
    convolution_like,
    exported_weight,
)


class IntegerLinear(nn.Module):
    """y = x @ dequantize(codes).T + bias, x rounded first where training rounded it."""

    def __init__(
        self, weight: QuantizedTensor, bias: Tensor | None, input_quant: nn.Module | None
    ) -> None:
        super().__init__()
        self.quantized, self.bias, self.input_quant = weight, bias, input_quant

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        if self.input_quant is not None:
            x = self.input_quant(x)
        return functional.linear(x, self.quantized.dequantize(), self.bias)

    def extra_repr(self) -> str:
        return repr(self.quantized)


class IntegerEmbedding(nn.Module):
    """Looks rows up in a table of codes [vocabulary, width], and dequantizes those alone."""

    def __init__(self, table: QuantizedTensor) -> None:
        super().__init__()
        self.quantized = table

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] to [..., width]."""
        wanted, places = torch.unique(ids, return_inverse=True)
        table = self.quantized
        if table.scheme.granularity != "tensor":
            zero_point = None if table.zero_point is None else table.zero_point[wanted]
            table = QuantizedTensor(
                table.codes[wanted], table.scale[wanted], zero_point, table.scheme
            )
            return table.dequantize()[places]
        return table.dequantize()[ids]

    def extra_repr(self) -> str:
        return repr(self.quantized)


class IntegerConv2d(nn.Module):
    """A convolution of integer codes: the sum is exact, the scales come after it.

        y = s_x · s_w · conv(q_x - z_x, q_w - z_w) + bias

    Integers below 2^53 and their sums are exact in float64, so torch's float convolution computes
    them; the zeros that it pads with are the real number 0.

    Args:
        layer: of shape, stride and padding; its weight is not used.
        weight: codes [out, in / groups, kh, kw] by tensor or channel.
        activation: turns the input into integers; None where only the weight is rounded.
    """

    def __init__(
        self, layer: nn.Conv2d, weight: QuantizedTensor, activation: ActivationQuantizer | None
    ) -> None:
        super().__init__()
        self.quantized, self.activation = weight, activation
        self.bias = None if layer.bias is None else layer.bias.detach()
        self._convolve = convolution_like(layer, nn.Conv2d)._conv_forward

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] to [batch, out, ...]."""
        if self.activation is None:
            return self._convolve(x, self.quantized.dequantize(), self.bias)
        inputs, weight = self.activation(x), self.quantized
        sums = self._convolve(_steps(inputs), _steps(weight), None)
        scale = inputs.scale.float() * weight.scale.float().reshape(1, -1, 1, 1)
        y = sums.float() * scale
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"{self.quantized!r}, {self.activation}"


def _steps(quantized: QuantizedTensor) -> Tensor:
    """Codes less zero-point, as float64."""
    codes = quantized.codes.to(torch.float64)
    return codes if quantized.zero_point is None else codes - quantized.zero_point


def activation_of(quant: Rounder) -> ActivationQuantizer:
    """The quantizer of `labkit.quantize.activation` that does what a trained one did.

    Raises:
        CalibrationError: it never saw anything, or one value alone.
    """
    if isinstance(quant, FakeQuant) and quant.ranges == "current" and not quant.frozen:
        return Dynamic(quant.scheme)
    quant.require_ready()
    return Static(quant.scheme, *quant.qparams())


def integer_linear(layer: QatLinear) -> nn.Module:
    """The module that a trained linear layer becomes."""
    weight, bias = exported_weight(layer), layer.bias
    bias = None if bias is None else bias.detach()
    quant = layer.input_quant
    if quant is None:
        return IntegerLinear(weight, bias, None)
    activation = activation_of(quant)
    by_row = weight.scheme.granularity in ("tensor", "channel")
    if weight.scheme.symmetric and by_row and quant.scheme.granularity in ("tensor", "token"):
        return QuantizedLinear(weight, activation, bias)
    return IntegerLinear(weight, bias, quant)


def integer_convolution(layer: QatConv2d | QatConvBn2d) -> IntegerConv2d:
    """The module that a trained convolution becomes, its batch norm folded in."""
    folded = layer.folded() if isinstance(layer, QatConvBn2d) else layer
    activation = None if folded.input_quant is None else activation_of(folded.input_quant)
    return IntegerConv2d(folded, exported_weight(folded), activation)
