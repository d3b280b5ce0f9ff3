"""Looking at a format's numbers: the fields of a code, the neighbours of a number, the gaps."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.core.dtypes_arrays import Array, like_input, to_tensor
from labkit.core.dtypes_cast import Format, all_values, decode, encode, get_format
from labkit.core.errors import NonFiniteError, PackingError
from labkit.core.float_codec import floor_log2, power_of_two
from labkit.core.float_formats import FloatFormat
from labkit.core.int_formats import IntFormat


class Fields(NamedTuple):
    """The bits of one code, left to right, as strings of 0 and 1; a part may be empty."""

    sign: str
    exponent: str
    mantissa: str


def fields(code: int, fmt: str | Format) -> Fields:
    """Split a code into sign, exponent and mantissa bits.

    An integer format has no exponent, and its sign bit weighs ``-2**(bits-1)``. A codebook's code
    is an index: all its bits stand under mantissa. Raises PackingError for a code out of range.
    """
    fmt = get_format(fmt)
    if not 0 <= code < 2**fmt.bits:
        raise PackingError(f"code {code} is not in 0 to {2**fmt.bits - 1}", where=fmt.name)
    pattern = f"{code:0{fmt.bits}b}"
    if isinstance(fmt, FloatFormat):
        start, end = int(fmt.signed), int(fmt.signed) + fmt.exponent_bits
        return Fields(pattern[:start], pattern[start:end], pattern[end:])
    if isinstance(fmt, IntFormat):
        return Fields(pattern[:1], "", pattern[1:])
    return Fields("", "", pattern)


def neighbours(x: float, fmt: str | Format) -> tuple[float, float]:
    """The nearest representable numbers strictly below and strictly above x.

    Where nothing lies further out the answer is -inf or inf, whether or not the format has a code
    for it. Raises NonFiniteError for NaN.
    """
    fmt = get_format(fmt)
    if math.isnan(x):
        raise NonFiniteError("NaN has no neighbours", where=fmt.name, remedy="Pass a number.")
    if isinstance(fmt, FloatFormat) and fmt.bits > 16:
        return _neighbours_by_code(x, fmt)
    values = _sorted_values(fmt)
    below = int(np.searchsorted(values, x, side="left")) - 1
    above = int(np.searchsorted(values, x, side="right"))
    return (
        float(values[below]) if below >= 0 else -math.inf,
        float(values[above]) if above < len(values) else math.inf,
    )


@overload
def spacing(x: torch.Tensor, fmt: str | Format) -> torch.Tensor: ...
@overload
def spacing(x: NDArray[Any], fmt: str | Format) -> NDArray[np.float32]: ...
@overload
def spacing(x: float, fmt: str | Format) -> float: ...
def spacing(x: Array, fmt: str | Format) -> Any:
    """Width of the gap between representable numbers in which x lies, as float32 of x's shape.

    At a representable number it is the gap above it (for a float format: the gap away from zero).
    NaN where x is NaN or lies beyond the format's smallest or largest number.
    """
    fmt = get_format(fmt)
    values = to_tensor(x).double()
    if isinstance(fmt, FloatFormat):
        exponent = floor_log2(values.abs().clamp(max=fmt.max)).clamp(min=fmt.min_exponent)
        gap = power_of_two(exponent - fmt.mantissa_bits)
    else:
        grid = torch.from_numpy(_sorted_values(fmt)).to(values.device)
        above = torch.bucketize(values, grid, right=True).clamp(1, len(grid) - 1)
        gap = grid[above] - grid[above - 1]
    inside = (values >= fmt.min) & (values <= fmt.max)
    return like_input(torch.where(inside, gap, torch.nan).float(), x)


@lru_cache(maxsize=32)
def _sorted_values(fmt: Format) -> NDArray[np.float64]:
    values = all_values(fmt).double().numpy()
    return np.unique(values[~np.isnan(values)])


def _neighbours_by_code(x: float, fmt: FloatFormat) -> tuple[float, float]:
    """Too many codes to list, but without the sign bit they are in the order of their numbers."""
    sign = -1 if x < 0 else 1
    nearest = sign * encode(abs(x), fmt, overflow="saturate")

    def value(signed_code: int) -> float:
        if abs(signed_code) > fmt.max_code:
            return math.copysign(math.inf, signed_code)
        return math.copysign(decode(abs(signed_code), fmt), signed_code)

    below = value(nearest) if value(nearest) < x else value(nearest - 1)
    above = value(nearest) if value(nearest) > x else value(nearest + 1)
    return below, above
