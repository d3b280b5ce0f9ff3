"""y = x @ w.T with integers inside the sum and the scales outside.

    y[t, o] = s_x[t] s_w[o] sum_i (q_x[t, i] - z_x[t]) q_w[o, i]

The sum runs over int8 products in int32, exactly: 127 * 127 * in stays below 2^31 for up to
133,000 columns. A zero-point of the activations leaves the sum as well:
sum (q_x - z) q_w = sum q_x q_w - z sum q_w, and sum q_w is known beforehand. Source: Jacob et al.
2018, section 2.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.tensor import QuantizedTensor

_LONGEST = (2**31 - 1) // (128 * 128)


def accumulate(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T of int8 codes [m, k] and [n, k], summed exactly: int32 [m, n].

    Raises ShapeError when k differs, or is so large that int32 could overflow.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] > _LONGEST:
        raise ShapeError(
            f"codes of shape {tuple(a.shape)} and {tuple(b.shape)}",
            where="integer matrix product",
            remedy=f"Expected [m, k] and [n, k] with the same k, at most {_LONGEST}.",
        )
    fast = a.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    # One row or one column has no stride of its own, and _int_mm then reads past the end.
    if fast and min(*a.shape, *b.shape) > 1:
        return torch._int_mm(a.contiguous(), b.contiguous().T)
    # Without that instruction set torch's integer product is a plain loop. A sum of integers that
    # fits int32 is exact in float64, whatever its order, and float64 products are fast everywhere.
    return (a.to(torch.float64) @ b.to(torch.float64).T).to(torch.int32)


def linear(x: QuantizedTensor, weight: QuantizedTensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, float32 [..., out].

    Args:
        x: codes [..., in], at most 8 bits, a scale for each token or one for all.
        weight: codes [out, in], at most 8 bits, symmetric, a scale for each row or one for all.
        bias: floating point [out].

    Raises:
        SchemeError: a scale that cannot leave the sum, or an asymmetric weight.
        ShapeError: columns that do not match.
    """
    if not weight.scheme.symmetric or weight.scheme.granularity not in ("tensor", "channel"):
        raise SchemeError(
            f"a weight in {weight.scheme}",
            where="integer matrix product",
            remedy="Use a symmetric weight with a scale per tensor or per output channel.",
        )
    if x.scheme.granularity not in ("tensor", "token"):
        raise SchemeError(
            f"activations in {x.scheme}",
            where="integer matrix product",
            remedy="Use a scale per tensor or per token.",
        )
    codes, zero_point = _signed(x)
    sums = accumulate(codes.flatten(0, -2), weight.codes)
    if zero_point is not None:
        column_sums = weight.codes.sum(dim=1, dtype=torch.int32)
        sums = sums - zero_point.reshape(-1, 1) * column_sums
    scale = x.scale.float().reshape(-1, 1) * weight.scale.float().reshape(1, -1)
    y = (sums.to(torch.float32) * scale).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias.float()


def _signed(x: QuantizedTensor) -> tuple[Tensor, Tensor | None]:
    """The codes as int8, and the zero-point that goes with them (None: all 0)."""
    if x.zero_point is None:
        return x.codes, None
    half = 2 ** (x.scheme.bits - 1)
    return (x.codes.to(torch.int16) - half).to(torch.int8), x.zero_point - half
