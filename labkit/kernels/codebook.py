"""Products with a weight of 4-bit indices into sixteen numbers: NF4 and FP4."""

from __future__ import annotations

from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.core.errors import ShapeError
from labkit.kernels import checks, choose


def codebook_linear(
    x: Tensor,
    weight: CodebookTensor,
    bias: Tensor | None = None,
    *,
    implementation: choose.Implementation | None = None,
) -> Tensor:
    """x @ weight.T + bias, [..., out] in x's dtype.

    The weights are levels[code] * absmax in float32. `CodebookTensor.dequantize` rounds them to the
    dtype that the weight once had; here they never are in memory, and not rounded. With bfloat16 x
    on a CPU that multiplies pairs of them (AVX512-BF16) the sixteen levels are rounded to bfloat16.

    Args:
        x: float32, float16 or bfloat16 [..., in].
        weight: a matrix [out, in] as `labkit.quantize.nf4.quantize` gives it.
        bias: floating point [out].

    Raises:
        SchemeError: dtypes, devices or an implementation that cannot be.
        ShapeError: parts that do not fit, or a weight that is no matrix.
    """
    where = f"codebook_linear, {weight.quant_type} {tuple(weight.shape)}"
    if len(weight.shape) != 2:
        raise ShapeError(f"weight has shape {tuple(weight.shape)}", where, "Expected [out, in].")
    rows, columns = weight.shape
    checks.require_activations(x, columns, weight.packed.device, where)
    checks.require_bias(bias, rows, weight.packed.device, where)
    kernel = choose.module("codebook", weight.packed.device, implementation)
    y = checks.product(x, columns, rows, lambda flat: kernel.linear(flat, weight))
    return checks.finish(y, x, rows, bias)
