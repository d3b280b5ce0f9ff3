"""y = x @ w.T with a 4-bit weight as it is (W4A16)."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.int4_weight import Int4Weight


def linear(x: Tensor, weight: Int4Weight | Int4Panels) -> Tensor:
    """x [tokens, in] @ dequantized weight.T in float64, [tokens, out]."""
    return x.double() @ weight.dequantize().double().T
