"""Where a panel of sixteen int4 rows lies, and what its groups have beside their codes."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import (
    address_of,
    ask_ahead,
    bytes_at,
    float16_at,
    float32_at,
    number_at,
    word_at,
)
from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import multiply_ints
from labkit.kernels.int4_weight import SYMMETRIC_ZERO
from labkit.kernels.nibble_panels import ROWS
from labkit.quantize.lanes import splat, to_floats

BYTES_OF_SLOT = ROWS // 2  # in a panel
TOKENS = 32  # so many tokens' x stay in the cache while panels pass by
_NONE, _ZERO, _MIDDLE = np.int32(0), np.float32(0), np.int32(SYMMETRIC_ZERO)


@inlined
def scales_at(scales, half, group):
    """The sixteen scales of a group, float16 if ``half``."""
    place = scales + (32 * group if half else 64 * group)
    ask_ahead(place)
    return float16_at(place) if half else float32_at(place)


@inlined
def zeros_at(zeros, group):
    """The sixteen zero-points of a group; without an address 8 everywhere."""
    return splat(_MIDDLE) if zeros == 0 else bytes_at(zeros + 16 * group)


@inlined
def begin(zero, sums, group):
    """-zero * (sum of int8 x), int32."""
    return multiply_ints(zero, splat(_NONE) - word_at(sums + 4 * group))


@inlined
def offset(zeros, group, sums):
    """-(zero - 8) * (sum of float x); 0 where all zero-points are 8."""
    if zeros == 0:
        return splat(_ZERO)
    less = splat(_MIDDLE) - bytes_at(zeros + 16 * group)
    return to_floats(less) * number_at(sums + 4 * group)


@inlined
def panel_place(codes, scales, zeros, panel):
    """The addresses of a panel's codes, scales and zero-points (0: there are none)."""
    zero = np.int64(0)
    if zeros.shape[0] > 0:
        zero = address_of(zeros) + panel * zeros.shape[1]
    place = address_of(codes) + panel * codes.shape[1]
    return place, address_of(scales) + panel * scales.shape[1], zero
