"""Products with a GGUF weight in panels; activations are rounded to 8 bits, run by run."""

from __future__ import annotations

from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.kernels import checks, choose
from labkit.kernels.gguf_panels import HALF_FIRST, GgufPanels


def panel_linear(
    x: Tensor,
    weight: GgufPanels,
    bias: Tensor | None = None,
    *,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out] in x's dtype, with x rounded to int8.

    Each run of 32 neighbours of a token has a scale of its own, its largest magnitude / 127. The
    sum over a run is exact in int32. llama.cpp does alike (Q8_0; its Q8_K has runs of 256).

    Args:
        x: float32, float16 or bfloat16 [..., in], any strides, on a CPU.
        bias: floating point [out].
        implementation: "cpu" (None means it) or "reference"; a panel is made for a CPU.

    Raises:
        SchemeError: a weight of floats; dtypes, devices or an implementation that cannot be.
        ShapeError: x or bias that do not fit the weight.
        NonFiniteError: NaN or infinity in x.
    """
    where = f"panel_linear, {weight.type_name} {tuple(weight.shape)}"
    rows, columns = weight.shape
    checks.require_activations(x, columns, weight.data.device, where)
    checks.require_bias(bias, rows, weight.data.device, where)
    if weight.type_name not in HALF_FIRST:
        raise SchemeError("a weight without codes", where, f"Use {', '.join(HALF_FIRST)}.")
    if implementation == "gpu":
        raise SchemeError(
            "panels are laid out for a CPU", where, "On a GPU call gguf_linear with the blocks."
        )
    kernel = choose.module("panels", weight.data.device, implementation)
    y = checks.product(x, columns, rows, lambda flat: kernel.linear(flat, weight))
    return checks.finish(y, x, rows, bias)
