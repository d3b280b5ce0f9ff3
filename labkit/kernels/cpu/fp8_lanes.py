"""E4M3 numbers as float32: sixteen bytes, or the sixty-four of a register by way of float16.

Sixteen:     S EEEE MMM  ->  S 0000EEEE MMM00…          as float32,  2^-120 times the number
Sixty-four:  S EEEE MMM  ->  S 0EEEE MMM0000000         as float16,  2^-8 times the number

The powers are the differences of the biases, 127 - 7 and 15 - 7, and E4M3's subnormal numbers come
out right as well. The one pattern that does not is NaN, S 1111 111: sixteen lanes choose it, and
for sixty-four the caller looks for it in the largest byte of a row, which costs half as much.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic

from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import HAS_HALF, as_floats
from labkit.quantize.lanes import FLOATS, INTS, LANES, bits_of, load_bytes, select, splat
from labkit.quantize.lanes_ir import FLOATS_IR, HALVES_IR, INTS_IR, constant_ints

_REST, _SIGN = np.int32(0x7F), np.int32(0x80)
_UP, _TOP = np.int32(20), np.int32(24)
_BIAS, _NAN = np.float32(2.0**120), np.float32(np.nan)
VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()

_SHORTS_IR = ir.VectorType(ir.IntType(16), 2 * LANES)
_MANY_BYTES_IR = ir.VectorType(ir.IntType(8), 4 * LANES)
_KEPT = 0xBF80 - 2**16  # of sixteen bits all but the copy of the sign and what stands below


@inlined
def floats_of(codes, place):
    """codes[place : place + 16], uint8, as float32."""
    byte = load_bytes(codes, place)
    rest = (byte & splat(_REST)) << splat(_UP)
    value = as_floats(rest) * splat(_BIAS)
    value = select(byte & splat(_REST) == splat(_REST), splat(_NAN), value)
    return as_floats(bits_of(value) | ((byte & splat(_SIGN)) << splat(_TOP)))


def _quarter(odd: bool, upper: bool):
    """An intrinsic: every second byte of half a register."""

    @intrinsic
    def quarter(typing_context, word):
        def generate(context, builder, signature, arguments):
            shorts = builder.bitcast(arguments[0], _SHORTS_IR)
            if not odd:
                shorts = builder.shl(shorts, ir.Constant(_SHORTS_IR, [8] * 2 * LANES))
            moved = builder.ashr(shorts, ir.Constant(_SHORTS_IR, [1] * 2 * LANES))
            moved = builder.and_(moved, ir.Constant(_SHORTS_IR, [_KEPT] * 2 * LANES))
            places = range(LANES, 2 * LANES) if upper else range(LANES)
            return _widened(builder, builder.shuffle_vector(moved, moved, constant_ints(places)))

        return FLOATS(INTS), generate

    return quarter


def _widened(builder, shorts):
    """Sixteen finite float16 as float32."""
    if HAS_HALF:
        return builder.fpext(builder.bitcast(shorts, HALVES_IR), FLOATS_IR)
    bits = builder.zext(shorts, INTS_IR)
    rest = builder.shl(builder.and_(bits, constant_ints(0x7FFF)), constant_ints(13))
    up = ir.Constant(FLOATS_IR, [2.0**112] * LANES)
    value = builder.bitcast(builder.fmul(builder.bitcast(rest, FLOATS_IR), up), INTS_IR)
    sign = builder.shl(builder.and_(bits, constant_ints(0x8000)), constant_ints(16))
    return builder.bitcast(builder.or_(value, sign), FLOATS_IR)


# Of the sixty-four bytes of a register: 0, 2 … 30; 32, 34 … 62; 1, 3 … 31; 33, 35 … 63.
first_even, last_even = _quarter(odd=False, upper=False), _quarter(odd=False, upper=True)
first_odd, last_odd = _quarter(odd=True, upper=False), _quarter(odd=True, upper=True)


@intrinsic
def larger_bytes(typing_context, one, other):
    """The larger of each two bytes, unsigned."""

    def generate(context, builder, signature, arguments):
        one, other = (builder.bitcast(side, _MANY_BYTES_IR) for side in arguments)
        found = builder.select(builder.icmp_unsigned(">", one, other), one, other)
        return builder.bitcast(found, INTS_IR)

    return INTS(INTS, INTS), generate
