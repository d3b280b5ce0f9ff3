"""Products with a 4-bit weight: W4A16 and W4A8."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.kernels import checks, choose
from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.int4_weight import Int4Weight

_WHAT = "int4_linear, weight"
_OPERATIONS = {16: "int4", 8: "int4_act8"}
_OF_PANELS = {16: "int4_panels", 8: "int4_panels_act8"}


def int4_linear(
    x: Tensor,
    weight: Int4Weight | Int4Panels,
    bias: Tensor | None = None,
    *,
    activation_bits: Literal[16, 8] = 16,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out], in x's dtype.

    Args:
        x: float32, float16 or bfloat16 [..., in]; any strides, any number of tokens.
        weight: rows, or sixteen of them side by side, which is the faster form on a CPU.
        bias: floating point [out].
        activation_bits: 16: x as it is, products in float32 (W4A16). 8: x is rounded to int8 with
            a scale for each token, and summed in integers (W4A8).
        implementation: None: by device.

    Raises:
        SchemeError: dtypes, devices, activation bits or an implementation that cannot be.
        ShapeError: x or bias that do not fit the weight.
        NonFiniteError: with 8 activation bits, NaN or infinity in x.
    """
    shape, device = weight.shape, weight.codes.device
    checks.require_operands(x, bias, shape, device, _WHAT)
    if activation_bits not in _OPERATIONS:
        where = f"{_WHAT} {tuple(shape)}"
        raise SchemeError(f"activation_bits is {activation_bits!r}", where, "Choose 16 or 8.")
    if not isinstance(weight, Int4Panels) or implementation == "reference":
        kernel = choose.module(_OPERATIONS[activation_bits], device, implementation)
        return checks.product(x, shape, bias, kernel.linear, weight)
    if implementation == "gpu":
        where = f"{_WHAT} {tuple(shape)}"
        raise SchemeError("panels are laid out for a CPU", where, "On a GPU give an Int4Weight.")
    kernel = choose.module(_OF_PANELS[activation_bits], device, implementation)
    dtype = checks.result_dtype(x, bias)
    return checks.product(x, shape, bias, kernel.linear, weight, dtype)
