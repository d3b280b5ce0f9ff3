"""Affine quantization: a real number becomes an integer and back, by a scale and a zero-point.

    code = clamp(round(x / scale) + zero_point, qmin, qmax)        x̂ = (code - zero_point) * scale

``scale`` (float, > 0) is the distance between two neighbours of the grid, ``zero_point`` (integer)
the code that stands for exactly 0. Source: Jacob et al. 2018, "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", section 2.1.

Two integer ranges:

* symmetric: zero_point is 0. The default is the *narrow* range -(2^(b-1)-1) .. 2^(b-1)-1, so -127
  to 127 for 8 bits and {-1, 0, 1} for 2. It gives up one code so that -x always has the code -q,
  and so that the largest |x| lands exactly on a code. With ``narrow_range=False`` it is -2^(b-1) ..
  2^(b-1)-1 and scale = absmax / (2^(b-1) - 1/2), as GPTQ and compressed-tensors choose it: the
  whole range is used, and the largest positive value is rounded down by half a step. That extra
  code is worth little at 8 bits (1 of 256) and a lot at 2 (1 of 4).
* asymmetric: 0 .. 2^b-1, with a zero_point inside it.
"""

from __future__ import annotations

import torch

from labkit.core.errors import CalibrationError, SchemeError
from labkit.core.finite import require_finite

_FLOAT32 = torch.finfo(torch.float32)


def integer_range(bits: int, symmetric: bool, narrow_range: bool = True) -> tuple[int, int]:
    """Return (qmin, qmax), the smallest and the largest code.

    Args:
        bits: 1 to 8; symmetric needs 2, for one bit has no room for -1, 0 and 1.
        symmetric: signed codes around zero_point 0, or unsigned codes from 0.
        narrow_range: drop the most negative code; means nothing when asymmetric.

    Raises:
        SchemeError: bits out of range.
    """
    least = 2 if symmetric else 1
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 8:
        kind = "symmetric" if symmetric else "asymmetric"
        raise SchemeError(
            f"{bits!r} bits", where=f"{kind} integer range", remedy=f"Choose {least} to 8 bits."
        )
    if not symmetric:
        return 0, 2**bits - 1
    qmax = 2 ** (bits - 1) - 1
    return (-qmax if narrow_range else -qmax - 1), qmax


def choose_qparams(
    lo: torch.Tensor | float,
    hi: torch.Tensor | float,
    bits: int,
    symmetric: bool,
    *,
    narrow_range: bool = True,
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale, zero_point) whose grid covers [lo, hi] to within half a step.

    The range is widened to include 0 first, so that 0 (padding, ReLU, a masked weight) is exact.
    ``lo`` and ``hi`` are numbers or tensors of one shape; scale has that shape and ``scale_dtype``,
    zero_point is int32. A scale stored in fewer bits is rounded *before* the zero-point is chosen,
    so the codes fit the scale that is kept. Degenerate ranges have these results:

    * all zero: scale 1, zero_point 0; every value comes back as 0.
    * constant or one element c: c is an end of the widened range [0, c], and comes back within
      one rounding of the float format.
    * so small that the scale would be subnormal in float32: scale is the smallest normal number,
      2^-126, whose reciprocal is still finite; the error stays below scale / 2.
    * a scale that is subnormal in float16 is rounded up, so that it is never 0 and never clips.

    Raises:
        NonFiniteError: a bound is NaN or infinite.
        CalibrationError: lo > hi, or a bound so large (half of float32's maximum) that the grid
            would overflow.
        SchemeError: bits out of range, or a scale beyond ``scale_dtype``'s maximum.
    """
    qmin, qmax = integer_range(bits, symmetric, narrow_range)
    low, high = _widened_range(lo, hi)
    if symmetric:
        exact = torch.maximum(-low, high) / ((qmax - qmin) / 2)
    else:
        exact = (high - low) / (qmax - qmin)
    scale = _stored_scale(exact, scale_dtype)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    # In float32, as torch does it: -lo / scale may lie next to a tie, as in [-1, 1] at 8 bits.
    zero_point = torch.clamp(torch.round(qmin - low.float() / scale.float()), qmin, qmax)
    return scale, zero_point.to(torch.int32)


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | int,
    qmin: int,
    qmax: int,
) -> torch.Tensor:
    """Return int32 codes of x's shape: clamp(round(x / scale) + zero_point, qmin, qmax).

    Rounds half to even. The clamp comes after the zero-point is added and before the cast: a float
    outside of the integer type's range has no defined cast. ``scale`` and ``zero_point`` broadcast
    against x. float64 is computed in float64, everything else in float32.

    Raises:
        NonFiniteError: x holds NaN or infinity.
        SchemeError: a scale that is not a positive finite number.
    """
    require_finite(x, "x")
    dtype = torch.promote_types(x.dtype, torch.float32)
    divisor = torch.as_tensor(scale, device=x.device).to(dtype)
    _require_positive(divisor)
    steps = torch.div(x.to(dtype), divisor).round_()
    codes = steps + torch.as_tensor(zero_point, device=x.device).to(dtype)
    return codes.clamp_(qmin, qmax).to(torch.int32)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor | float, zero_point: torch.Tensor | int
) -> torch.Tensor:
    """Return (codes - zero_point) * scale in float32, broadcasting scale and zero_point."""
    # Subtract as int32: two codes of 8 bits differ by up to 255, which int8 and uint8 wrap.
    offset = torch.as_tensor(zero_point, device=codes.device).to(torch.int32)
    steps = (codes.to(torch.int32) - offset).to(torch.float32)
    return steps * torch.as_tensor(scale, device=codes.device).to(torch.float32)


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | float,
    zero_point: torch.Tensor | int,
    qmin: int,
    qmax: int,
) -> torch.Tensor:
    """Return x rounded to the grid, as float32: quantize, then dequantize."""
    return dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point)


def _widened_range(
    lo: torch.Tensor | float, hi: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[lo, hi] as float64 tensors, checked and stretched to include 0."""
    # float64, because hi - lo of two large float32 numbers overflows, and tiny / 255 underflows.
    low, high = torch.as_tensor(lo).to(torch.float64), torch.as_tensor(hi).to(torch.float64)
    require_finite(low, "lower bounds")
    require_finite(high, "upper bounds")
    if bool((low > high).any()):
        raise CalibrationError(
            f"lower bound above upper bound in {int((low > high).sum())} of {low.numel()} ranges",
            remedy="Pass (lo, hi) in this order, with lo <= hi.",
        )
    limit = _FLOAT32.max / 2
    if low.numel() and (float(low.min()) < -limit or float(high.max()) > limit):
        raise CalibrationError(
            f"a bound beyond {limit:.4g}, half of float32's maximum: the grid would overflow",
            remedy="Rescale the tensor first.",
        )
    return low.clamp(max=0.0), high.clamp(min=0.0)


def _stored_scale(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 scales to ``dtype``: never 0, never infinite; 1 where the range is empty."""
    if not dtype.is_floating_point:
        raise SchemeError(f"scale_dtype {dtype}", remedy="Scales are floating-point numbers.")
    info = torch.finfo(dtype)
    if exact.numel() and float(exact.max()) > info.max:
        raise SchemeError(
            f"a scale of {float(exact.max()):.4g} is beyond the maximum {info.max:.4g} of {dtype}",
            remedy="Keep these scales in float32 (scale_dtype=torch.float32).",
        )
    empty = exact == 0
    if info.tiny > _FLOAT32.tiny:
        # Below float16's smallest normal number the grid of scales is coarse: round up, since a
        # scale that was rounded down would clip, and one rounded to 0 would lose the block.
        step = info.smallest_normal * info.eps
        exact = torch.where(exact < info.tiny, torch.ceil(exact / step) * step, exact)
    else:
        exact = exact.clamp(min=_FLOAT32.tiny)
    return torch.where(empty, torch.ones_like(exact), exact).to(dtype)


def _require_positive(scale: torch.Tensor) -> None:
    valid = torch.isfinite(scale) & (scale > 0)
    if not bool(valid.all()):
        raise SchemeError(
            f"{int((~valid).sum())} of {scale.numel()} scales are zero, negative or not finite",
            remedy="Take scales from choose_qparams, which gives an all-zero block scale 1.",
        )
