"""Codes to numbers and numbers to codes, for any FloatFormat.

Both directions compute in float64. Every format here has at most 23 mantissa bits and 8 exponent
bits, so each scaling by a power of two is exact and the only rounding is the one that is meant.
"""

from __future__ import annotations

import torch

from labkit.core.float_formats import FloatFormat, Overflow

# Layout of the float64 that the arithmetic runs in.
_F64_MANTISSA_BITS = 52
_F64_BIAS = 1023


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """``2.0 ** exponent`` as float64, exact: the exponent is written into the bits of the result.

    exponent: int64, any shape, from -1022 to 1023.
    """
    return ((exponent + _F64_BIAS) << _F64_MANTISSA_BITS).view(torch.float64)


def floor_log2(magnitude: torch.Tensor) -> torch.Tensor:
    """``floor(log2(magnitude))`` as int64, exact: read from the exponent field.

    magnitude: float64, any shape, not negative. Zero and float64 subnormals give -1023, which is
    below the exponents of every format; infinity and NaN give 1024.
    """
    return (magnitude.contiguous().view(torch.int64) >> _F64_MANTISSA_BITS) - _F64_BIAS


def decode_float(codes: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """The number that each code stands for.

    codes: int64, any shape, 0 to ``2**fmt.bits - 1``. Returns float64 of the same shape.
    """
    mantissa = codes & ((1 << fmt.mantissa_bits) - 1)
    exponent = (codes >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)

    normal = (exponent > 0) if fmt.subnormals else torch.ones_like(exponent, dtype=torch.bool)
    # "1.mantissa" as a count of steps; a subnormal is "0.mantissa" at the smallest exponent.
    steps = mantissa + (normal.long() << fmt.mantissa_bits)
    step_exponent = (exponent - fmt.bias).clamp(min=fmt.min_exponent) - fmt.mantissa_bits
    value = steps * power_of_two(step_exponent)

    if fmt.specials != "none":
        value[(codes & _magnitude_mask(fmt)) > fmt.max_code] = torch.nan
    if fmt.has_inf:
        value[(codes & _magnitude_mask(fmt)) == fmt.max_code + 1] = torch.inf
    if fmt.signed:
        negative = (codes >> (fmt.bits - 1)).bool()
        value = torch.where(negative, -value, value)
    return value


def encode_float(
    x: torch.Tensor, fmt: FloatFormat, overflow: Overflow | None = None
) -> torch.Tensor:
    """The code of the nearest representable number; a tie goes to the even mantissa.

    x: float64, any shape. Returns int64 codes of the same shape.
    overflow: what a number beyond the rounding range of ``fmt.max`` becomes, infinity included:
    "inf" (the default of IEEE formats), "nan", or "saturate" (the default of the others: the
    largest number of that sign). Zero and negative numbers become NaN in an unsigned format.
    A NaN stays NaN with its sign; a format without NaN must not be given one.

    Raises SchemeError where the format has no code for that overflow.
    """
    answer = _overflow_code(fmt, fmt.resolve_overflow(overflow))
    # Twice the maximum overflows just as infinity does, and is safe to convert to an integer.
    magnitude = x.abs().nan_to_num(nan=0.0).clamp(max=2 * fmt.max)

    # One step is the spacing of the grid around x. All subnormals share the smallest spacing.
    exponent = floor_log2(magnitude).clamp(min=fmt.min_exponent)
    steps = torch.round(magnitude * power_of_two(fmt.mantissa_bits - exponent)).long()

    # The leading 1 of "1.mantissa" adds one to the exponent field, and so does a mantissa that
    # rounds up to 2.0: the carry runs into the exponent by itself.
    code = ((exponent - fmt.min_exponent) << fmt.mantissa_bits) + steps
    if not fmt.subnormals:
        code = (code - (1 << fmt.mantissa_bits)).clamp(min=0)

    code[code > fmt.max_code] = answer
    if fmt.has_nan:
        code[torch.isnan(x)] = _nan_code(fmt)
    if not fmt.signed:
        code[x <= 0] = _nan_code(fmt)
        return code
    return code | (torch.signbit(x).long() << (fmt.bits - 1))


def _magnitude_mask(fmt: FloatFormat) -> int:
    """All bits but the sign."""
    return (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1


def _nan_code(fmt: FloatFormat) -> int:
    """The NaN that encode writes: the quiet one of IEEE 754 (top mantissa bit), or all ones."""
    if fmt.specials == "ieee":
        return fmt.max_code + 1 + (1 << (fmt.mantissa_bits - 1))
    return _magnitude_mask(fmt)


def _overflow_code(fmt: FloatFormat, overflow: Overflow) -> int:
    if overflow == "inf":
        return fmt.max_code + 1
    return _nan_code(fmt) if overflow == "nan" else fmt.max_code
