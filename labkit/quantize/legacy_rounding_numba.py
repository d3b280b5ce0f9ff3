"""The encoders of `labkit.quantize.legacy_blocks`, compiled: the same bytes.

RUN blocks at a time, in three stages, so that every loop becomes vector instructions: the largest
weights, where a block's 32 positions lie side by side; the scales, where the blocks of the run do;
the codes, a block at a time again. The compiler vectorises such a loop if it does one thing and its
length is not a constant (`v.size`).

Floats without their sign bit are in the order of their bits, and a maximum of integers vectorises
where one of floats, which must mind NaN, does not. A branch on what the weights happen to be would
be guessed wrong for every second block, and cost more than all the rest.

With an importance the work is a search: `labkit.quantize.legacy_search_numba`.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.half_numba import to_half

RUN = 64
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-(2**31))
_LARGEST = np.float32(np.finfo(np.float32).max)
_ALMOST_HALF = np.float32(0.49999997)


@numba.njit(error_model="numpy")
def _first_is_negative(bits, top):
    for j in range(bits.size):
        if np.int32(bits[j] & _MAGNITUDE) == top:
            return bits[j] < 0
    return False


@numba.njit(error_model="numpy")
def _largest(bits, above, below, largest):
    """Of each block (bits, int32 [n, 32]) the first weight of largest magnitude, with its sign.

    It is +0 where all are 0. above, below: int32 [n], scratch.
    """
    for i in range(bits.shape[0]):
        block = bits[i]
        top = np.int32(0)
        for j in range(block.size):
            top = max(top, block[j])
        above[i] = top
        top = np.int32(0)
        for j in range(block.size):
            top = max(top, np.int32(block[j] ^ _SIGN))
        below[i] = top
    for i in range(bits.shape[0]):
        sign = _SIGN if below[i] > above[i] else np.int32(0)
        largest[i] = np.int32(max(above[i], below[i]) | sign)
    for i in range(bits.shape[0]):
        if above[i] == below[i] and above[i] != 0 and _first_is_negative(bits[i], above[i]):
            largest[i] |= _SIGN


@numba.njit(error_model="numpy")
def _first_zero(bits):
    for j in range(bits.size):
        if np.int32(bits[j] & _MAGNITUDE) == 0:
            return bits[j]
    return np.int32(0)


@numba.njit(error_model="numpy")
def _ends(bits, low, high):
    """Of each block the smallest and the largest weight, all as bits; of zeros the first."""
    for i in range(bits.shape[0]):
        block = bits[i]
        # With the other bits of negative numbers turned round, integers are in order, too.
        top = _SIGN
        for j in range(block.size):
            top = max(top, np.int32(block[j] ^ ((block[j] >> 31) & _MAGNITUDE)))
        high[i] = top
        least = _MAGNITUDE
        for j in range(block.size):
            least = min(least, np.int32(block[j] ^ ((block[j] >> 31) & _MAGNITUDE)))
        low[i] = least
    for i in range(bits.shape[0]):
        high[i] ^= (high[i] >> 31) & _MAGNITUDE
        low[i] ^= (low[i] >> 31) & _MAGNITUDE
    for i in range(bits.shape[0]):
        if np.int32(low[i] & _MAGNITUDE) == 0:
            low[i] = _first_zero(bits[i])


@numba.njit(error_model="numpy")
def _inverses(d, inverse, half):
    """1 / d, and d as float16. Where C has no codes but 0 the inverse becomes NaN.

    That is so where d is subnormal, and its inverse infinite. Where d is 0 so is the inverse.
    """
    for i in range(d.size):
        x = np.float32(1) / d[i]
        x = x if d[i] != 0 else np.float32(0)
        inverse[i] = x if (abs(x) <= _LARGEST) & (abs(d[i]) <= _LARGEST) else np.float32(np.nan)
    for i in range(d.size):
        half[i] = to_half(d[i])


@numba.njit(error_model="numpy")
def write_half(block, place, half):
    """Put a uint16 into two bytes of ``block``, the low one first."""
    block[place] = np.uint8(half & np.uint16(255))
    block[place + 1] = np.uint8(half >> np.uint16(8))


@numba.njit(error_model="numpy")
def write_codes(codes, block, nibbles, fifths):
    """Put 32 codes, int32, into 16 bytes of ``block`` from ``nibbles`` on, low 4 bits of each.

    fifths: where the 4 bytes of bit 4 begin; 0 if there are none.
    """
    first, second, qs = codes[0:16], codes[16:32], block[nibbles : nibbles + 16]
    for j in range(qs.size):
        qs[j] = np.uint8((first[j] & 15) | ((second[j] & 15) << 4))
    if fifths == 0:
        return
    mask = np.int32(0)
    for j in range(codes.size):
        mask |= np.int32(((codes[j] >> 4) & np.int32(1)) << np.int32(j))
    for byte in range(4):
        block[fifths + byte] = np.uint8((mask >> np.int32(8 * byte)) & 255)


@numba.njit(error_model="numpy")
def _scratch():
    """inverse, d and two more, float32 [RUN]; two halves, uint16 [RUN]; codes, int32 [32]."""
    floats = np.empty((4, RUN), np.float32)
    halves = np.empty((2, RUN), np.uint16)
    return floats[0], floats[1], floats[2], floats[3], halves[0], halves[1], np.empty(32, np.int32)


@numba.njit(error_model="numpy")
def _signed(x, bits, out, levels, nibbles, fifths):
    """Q4_0 (levels 8) and Q5_0 (16): the largest weight becomes code 0, which means -levels."""
    inverse, d, spare, largest, half, _, codes = _scratch()
    above, below = spare.view(np.int32), d.view(np.int32)
    for first in range(0, x.shape[0], RUN):
        n = min(RUN, x.shape[0] - first)
        _largest(bits[first : first + n], above, below, largest.view(np.int32))
        for i in range(n):
            d[i] = largest[i] / np.float32(-levels)
        _inverses(d[:n], inverse, half)
        for i in range(n):
            v, block, factor = x[first + i], out[first + i], inverse[i]
            write_half(block, 0, half[i])
            codes[:] = 0
            if factor == factor:
                for j in range(v.size):
                    code = np.int32(v[j] * factor + np.float32(levels + 0.5))
                    codes[j] = min(code, np.int32(2 * levels - 1))
            write_codes(codes, block, nibbles, fifths)


@numba.njit(error_model="numpy")
def _affine(x, bits, out, last, nibbles, fifths):
    """Q4_1 (last 15) and Q5_1 (31): the smallest weight becomes code 0, the largest the last."""
    inverse, d, low, high, half, half_low, codes = _scratch()
    for first in range(0, x.shape[0], RUN):
        n = min(RUN, x.shape[0] - first)
        _ends(bits[first : first + n], low.view(np.int32), high.view(np.int32))
        for i in range(n):
            d[i] = (high[i] - low[i]) / np.float32(last)
            half_low[i] = to_half(low[i])
        _inverses(d[:n], inverse, half)
        for i in range(n):
            v, block, factor, least = x[first + i], out[first + i], inverse[i], low[i]
            write_half(block, 0, half[i])
            write_half(block, 2, half_low[i])
            codes[:] = 0
            if factor == factor:
                for j in range(v.size):
                    code = np.int32((v[j] - least) * factor + np.float32(0.5))
                    codes[j] = min(code, np.int32(last))
            write_codes(codes, block, nibbles, fifths)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def q4_0(x, bits, out):
    _signed(x, bits, out, 8, 2, 0)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def q5_0(x, bits, out):
    _signed(x, bits, out, 16, 6, 2)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def q4_1(x, bits, out):
    _affine(x, bits, out, 15, 4, 0)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def q5_1(x, bits, out):
    _affine(x, bits, out, 31, 8, 4)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def q8_0(x, bits, out):
    """The largest magnitude becomes 127; halves are rounded away from zero."""
    inverse, d, _, largest, half, _, _ = _scratch()
    top = largest.view(np.int32)
    for first in range(0, x.shape[0], RUN):
        n = min(RUN, x.shape[0] - first)
        for i in range(n):
            block, found = bits[first + i], np.int32(0)
            for j in range(block.size):
                found = max(found, np.int32(block[j] & _MAGNITUDE))
            top[i] = found
        for i in range(n):
            d[i] = largest[i] / np.float32(127)
        _inverses(d[:n], inverse, half)
        for i in range(n):
            v, factor, qs = x[first + i], inverse[i], out[first + i, 2:34]
            write_half(out[first + i], 0, half[i])
            if factor != factor:
                qs[:] = 0
                continue
            for j in range(qs.size):
                # Just less than a half is added, so that 0.49999997 stays 0.
                scaled = v[j] * factor
                more = _ALMOST_HALF if scaled > 0 else -_ALMOST_HALF
                qs[j] = np.uint8(np.int32(scaled + more))
