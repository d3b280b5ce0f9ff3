"""float16 in compiled loops, as 16 bits: Numba has no arithmetic of its own for it on a CPU."""

from __future__ import annotations

import numba
import numpy as np

_SIGN = np.uint32(0x80000000)
_INFINITY = np.uint32(0x47800000)  # 65536, as float32 bits
_NORMAL = np.uint32(0x38800000)  # 2^-14, float16's smallest normal number
_BIAS = np.uint32(112 << 23)  # between the exponents of the two formats
_TO_INTEGER = np.float32(2.0**24)  # float16's subnormal numbers are multiples of 2^-24
_ROUND = np.float32(1.5 * 2**23)  # where the steps of float32 are 1: adding it rounds half to even
_ROUND_BITS = _ROUND.view(np.uint32)
_TO_FLOAT = np.float32(2.0**112)


@numba.njit(inline="always", error_model="numpy")
def to_half(x):
    """The uint16 bits of float32 ``x``, rounded to the nearest float16, ties to even."""
    bits = np.float32(x).view(np.uint32)
    sign = np.uint32(bits & _SIGN)
    rest = np.uint32(bits ^ sign)
    if rest >= _INFINITY:
        half = np.uint32(0x7C00) if rest <= np.uint32(0x7F800000) else np.uint32(0x7E00)
    elif rest < _NORMAL:
        scaled = np.float32(rest.view(np.float32) * _TO_INTEGER + _ROUND)
        half = np.uint32(scaled.view(np.uint32) - _ROUND_BITS)
    else:
        even = np.uint32((rest >> np.uint32(13)) & np.uint32(1))
        half = np.uint32((rest - _BIAS + np.uint32(0xFFF) + even) >> np.uint32(13))
    return np.uint16(half | (sign >> np.uint32(16)))


@numba.njit(inline="always", error_model="numpy")
def from_half(low, high):
    """The float32 of a float16's two bytes."""
    return wide(np.uint16(np.uint32(low) | (np.uint32(high) << np.uint32(8))))


@numba.njit(inline="always", error_model="numpy")
def wide(bits):
    """The float32 of a float16's bits, uint16."""
    half = np.uint32(bits)
    rest = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
    # The product moves the exponent, and makes a normal number of a subnormal one.
    value = np.uint32(np.float32(rest.view(np.float32) * _TO_FLOAT).view(np.uint32))
    full = np.uint32(rest | np.uint32(0x7F800000)) if rest >= np.uint32(0x7C00 << 13) else value
    return np.uint32(full | ((half & np.uint32(0x8000)) << np.uint32(16))).view(np.float32)
