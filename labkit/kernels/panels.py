"""Products with a GGUF weight in panels, of x as it is or rounded to 8 bits, run by run."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.kernels import checks, choose
from labkit.kernels.gguf_panels import HALF_FIRST, GgufPanels

_OPERATIONS = {16: "panels", 8: "panels_act8"}


def panel_linear(
    x: Tensor,
    weight: GgufPanels,
    bias: Tensor | None = None,
    *,
    activation_bits: Literal[16, 8] = 16,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out] in x's dtype.

    Args:
        x: float32, float16 or bfloat16 [..., in], any strides, on a CPU.
        bias: floating point [out].
        activation_bits: 16: x as it is, products in float32. 8: x is rounded to int8; each run of
            32 neighbours of a token has a scale of its own, its largest magnitude / 127, and the
            sum over a run is exact in int32. llama.cpp does alike (Q8_0; its Q8_K has runs of 256).
        implementation: "cpu" (None means it) or "reference"; a panel is made for a CPU.

    Raises:
        SchemeError: a weight of floats; dtypes, devices, activation bits or an implementation that
            cannot be.
        ShapeError: x or bias that do not fit the weight.
        NonFiniteError: with 8 activation bits, NaN or infinity in x.
    """
    what, shape, device = f"panel_linear, {weight.type_name}", weight.shape, weight.data.device
    checks.require_operands(x, bias, shape, device, what)
    if weight.type_name not in HALF_FIRST:
        raise SchemeError("a weight without codes", what, f"Use {', '.join(HALF_FIRST)}.")
    if activation_bits not in _OPERATIONS:
        raise SchemeError(f"activation_bits is {activation_bits!r}", what, "Choose 16 or 8.")
    if implementation == "gpu":
        raise SchemeError(
            "panels are laid out for a CPU", what, "On a GPU call gguf_linear with the blocks."
        )
    kernel = choose.module(_OPERATIONS[activation_bits], device, implementation)
    if implementation == "reference":
        return checks.product(x, shape, bias, kernel.linear, weight)
    dtype = checks.result_dtype(x, bias)
    return checks.product(x, shape, bias, kernel.linear, weight, dtype)
