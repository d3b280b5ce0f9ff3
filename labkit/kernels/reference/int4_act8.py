"""y = x @ w.T with a 4-bit weight and 8-bit activations (W4A8)."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.int4_weight import Int4Weight
from labkit.kernels.reference import tokens


def linear(x: Tensor, weight: Int4Weight | Int4Panels) -> Tensor:
    """x [tokens, in] rounded to int8 per token, the rest in float64: [tokens, out]."""
    codes, scale = tokens.quantize(x)
    return scale.double() * (codes.double() @ weight.dequantize().double().T)
