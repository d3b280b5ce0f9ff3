"""y = x @ w.T with w = codes * scale in FP8."""

from __future__ import annotations

from torch import Tensor

from labkit.core.float8_tensor import Float8Tensor


def linear(x: Tensor, weight: Float8Tensor) -> Tensor:
    """x [tokens, in] @ dequantized weight.T in float64, [tokens, out]."""
    scale = weight.scale.double()
    return x.double() @ (weight.codes.float().double() * scale).T
