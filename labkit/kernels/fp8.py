"""Products with a weight in 8-bit floating point (E4M3)."""

from __future__ import annotations

from torch import Tensor

from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels import checks, choose


def fp8_linear(
    x: Tensor,
    weight: Float8Tensor,
    bias: Tensor | None = None,
    *,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ (codes * scale).T + bias, [..., out] in x's dtype; x is not quantized.

    Args:
        x: float32, float16 or bfloat16 [..., in].
        weight: E4M3 codes [out, in], one scale or one for each output.
        bias: floating point [out].

    Raises:
        SchemeError: dtypes, devices or an implementation that cannot be.
        ShapeError: x or bias that do not fit the weight.
    """
    device = weight.codes.device
    checks.require_operands(x, bias, weight.shape, device, "fp8_linear, weight")
    kernel = choose.module("fp8", device, implementation)
    return checks.product(x, weight.shape, bias, kernel.linear, weight)
