"""The decoders of `labkit.quantize.super_block_decode`, compiled: the same bits.

Sixteen bytes at a time become the codes of sixteen neighbouring weights, or of several such runs:
one `labkit.quantize.lanes` value each.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.block_decode import IQ4_LEVELS
from labkit.quantize.block_decode_numba import shared_decoders
from labkit.quantize.half_numba import from_half
from labkit.quantize.lanes import load_bytes, splat, store, to_floats

_ONE, _TWO, _THREE, _FOUR = np.int32(1), np.int32(2), np.int32(3), np.int32(4)
_FIFTEEN, _MIDDLE = np.int32(15), np.int32(32)

_inlined = numba.njit(error_model="numpy", boundscheck=False)
_compiled = numba.njit(cache=True, error_model="numpy", boundscheck=False, nogil=True)


@_inlined
def _bits(byte, shift, mask):
    """Sixteen times (byte >> shift) & mask."""
    return (byte >> splat(np.int32(shift))) & splat(mask)


@_inlined
def _put(values, place, scale, codes):
    """Sixteen weights: scale * code."""
    store(values, place, splat(scale) * to_floats(codes))


@_inlined
def _put_less(values, place, scale, codes, low):
    """Sixteen weights: scale * code - low."""
    store(values, place, splat(scale) * to_floats(codes) - splat(low))


@_compiled
def _q2_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[80], block[81])
        dmin = from_half(block[82], block[83])
        for half in range(2):
            for side in range(2):
                byte = load_bytes(block, 16 + half * 32 + side * 16)
                for part in range(4):
                    both = block[half * 8 + part * 2 + side]
                    scale = d * np.float32(np.int32(both & 15))
                    low = dmin * np.float32(np.int32(both >> 4))
                    codes = _bits(byte, 2 * part, _THREE)
                    _put_less(values, half * 128 + part * 32 + side * 16, scale, codes, low)


@_inlined
def _scale_q3(block, sub):
    """The 6-bit scale of sub-block ``sub`` of Q3_K, float32; it is stored as 32 more."""
    low = np.int32(block[96 + (sub & 7)]) >> np.int32((sub >> 3) * 4)
    high = np.int32(block[104 + (sub & 3)]) >> np.int32((sub >> 2) * 2)
    return np.float32(np.int32(((low & 15) | ((high & 3) << 4)) - 32))


@_compiled
def _q3_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[108], block[109])
        for half in range(2):
            for side in range(2):
                byte = load_bytes(block, 32 + half * 32 + side * 16)
                third = load_bytes(block, side * 16)
                for part in range(4):
                    scale = d * _scale_q3(block, half * 8 + part * 2 + side)
                    high = _bits(third, half * 4 + part, _ONE) << splat(_TWO)
                    codes = (_bits(byte, 2 * part, _THREE) | high) - splat(_FOUR)
                    _put(values, half * 128 + part * 32 + side * 16, scale, codes)


@_inlined
def _scale_and_min(block, sub):
    """The 6-bit scale and min of sub-block ``sub`` of Q4_K or Q5_K, float32."""
    if sub < 4:
        scale, low = block[4 + sub] & 63, block[8 + sub] & 63
    else:
        rest = block[8 + sub]
        scale = (rest & 15) | ((block[sub] >> 6) << 4)
        low = (rest >> 4) | ((block[4 + sub] >> 6) << 4)
    return np.float32(np.int32(scale)), np.float32(np.int32(low))


@_inlined
def _pair(block, pair, d, dmin):
    """Scale and min of the first sub-block of a pair of Q4_K or Q5_K, then of the second."""
    scale_0, min_0 = _scale_and_min(block, 2 * pair)
    scale_1, min_1 = _scale_and_min(block, 2 * pair + 1)
    return d * scale_0, dmin * min_0, d * scale_1, dmin * min_1


@_compiled
def _q4_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        dmin = from_half(block[2], block[3])
        for pair in range(4):
            scale_0, min_0, scale_1, min_1 = _pair(block, pair, d, dmin)
            for side in range(2):
                byte = load_bytes(block, 16 + pair * 32 + side * 16)
                place = pair * 64 + side * 16
                _put_less(values, place, scale_0, byte & splat(_FIFTEEN), min_0)
                _put_less(values, place + 32, scale_1, byte >> splat(_FOUR), min_1)


@_compiled
def _q5_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        dmin = from_half(block[2], block[3])
        for pair in range(4):
            scale_0, min_0, scale_1, min_1 = _pair(block, pair, d, dmin)
            for side in range(2):
                byte = load_bytes(block, 48 + pair * 32 + side * 16)
                fifth = load_bytes(block, 16 + side * 16)
                code_0 = _bits(byte, 0, _FIFTEEN) | (_bits(fifth, 2 * pair, _ONE) << splat(_FOUR))
                high = _bits(fifth, 2 * pair + 1, _ONE) << splat(_FOUR)
                code_1 = (byte >> splat(_FOUR)) | high
                place = pair * 64 + side * 16
                _put_less(values, place, scale_0, code_0, min_0)
                _put_less(values, place + 32, scale_1, code_1, min_1)


@_compiled
def _q6_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[208], block[209])
        for half in range(2):
            for side in range(2):
                first = load_bytes(block, half * 64 + side * 16)
                second = load_bytes(block, half * 64 + 32 + side * 16)
                top = load_bytes(block, 128 + half * 32 + side * 16)
                for part in range(4):
                    scale = d * np.float32(
                        np.int32(np.int8(block[192 + half * 8 + part * 2 + side]))
                    )
                    # Low bits of parts 0 and 1, then their high nibbles: parts 2 and 3.
                    low = _bits(second if part & 1 else first, (part >> 1) * 4, _FIFTEEN)
                    codes = low | (_bits(top, 2 * part, _THREE) << splat(_FOUR))
                    place = half * 128 + part * 32 + side * 16
                    _put(values, place, scale, codes - splat(_MIDDLE))


@_compiled
def _iq4_xs(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        for sub in range(8):
            high = np.int32(block[2 + (sub >> 2)]) >> np.int32((sub & 3) * 2)
            low = np.int32(block[4 + (sub >> 1)]) >> np.int32((sub & 1) * 4)
            scale = d * np.float32(np.int32(((low & 15) | ((high & 3) << 4)) - 32))
            qs = block[8 + sub * 16 : 24 + sub * 16]
            part = values[sub * 32 : sub * 32 + 32]
            for j in range(16):
                part[j] = scale * IQ4_LEVELS[qs[j] & 15]
                part[j + 16] = scale * IQ4_LEVELS[qs[j] >> 4]


DECODE = shared_decoders(
    {
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_XS": _iq4_xs,
    }
)
