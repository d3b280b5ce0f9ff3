"""Products with a weight of 4-bit indices into sixteen numbers: NF4 and FP4."""

from __future__ import annotations

from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.core.errors import SchemeError, ShapeError
from labkit.kernels import checks, choose
from labkit.kernels.codebook_panels import CodebookPanels


def codebook_linear(
    x: Tensor,
    weight: CodebookTensor | CodebookPanels,
    bias: Tensor | None = None,
    *,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out] in x's dtype.

    The weights are levels[code] * absmax in float32. `CodebookTensor.dequantize` rounds them to the
    dtype that the weight once had; here they are not rounded. With panels and bfloat16 x, on a CPU
    that multiplies pairs of them (AVX512-BF16), the sixteen levels are rounded to bfloat16: by at
    most 2^-9 of a level, as much as rounding a weight to bfloat16 may change it.

    Args:
        x: float32, float16 or bfloat16 [..., in].
        weight: a matrix [out, in] as `labkit.quantize.nf4.quantize` gives it, or sixteen of its
            rows side by side, which is the faster form on a CPU.
        bias: floating point [out].

    Raises:
        SchemeError: dtypes, devices or an implementation that cannot be.
        ShapeError: parts that do not fit, or a weight that is no matrix.
    """
    where = f"codebook_linear, {weight.quant_type} {tuple(weight.shape)}"
    if len(weight.shape) != 2:
        raise ShapeError(f"weight has shape {tuple(weight.shape)}", where, "Expected [out, in].")
    panels = isinstance(weight, CodebookPanels)
    if panels and implementation == "gpu":
        raise SchemeError("panels are laid out for a CPU", where, "On a GPU give a CodebookTensor.")
    rows, columns = weight.shape
    device = (weight.codes if panels else weight.packed).device
    checks.require_activations(x, columns, device, where)
    checks.require_bias(bias, rows, device, where)
    kernel = choose.module("codebook", device, implementation)
    y = checks.product(x, columns, rows, lambda flat: kernel.linear(flat, weight))
    return checks.finish(y, x, rows, bias)
