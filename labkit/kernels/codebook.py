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
    what, shape = f"codebook_linear, {weight.quant_type}", weight.shape
    if len(shape) != 2:
        raise ShapeError(f"weight has shape {tuple(shape)}", what, "Expected [out, in].")
    panels = isinstance(weight, CodebookPanels)
    if panels and implementation == "gpu":
        where = f"{what} {tuple(shape)}"
        raise SchemeError("panels are laid out for a CPU", where, "On a GPU give a CodebookTensor.")
    device = (weight.codes if panels else weight.packed).device
    checks.require_operands(x, bias, shape, device, what)
    kernel = choose.module("codebook", device, implementation)
    if not panels or implementation == "reference":
        return checks.product(x, shape, bias, kernel.linear, weight)
    dtype = checks.result_dtype(x, bias)
    return checks.product(x, shape, bias, kernel.linear, weight, dtype)
