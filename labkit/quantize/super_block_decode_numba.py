"""The decoders of `labkit.quantize.super_block_decode`, compiled: the same bits.

Loops over the 16 or 32 weights of a sub-block become vector instructions, but only where their
length is not a constant (`range(qs.size)`): a constant one is unrolled, and stays scalar. Each
writes several sub-blocks, which share its bytes.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.block_decode import IQ4_LEVELS
from labkit.quantize.block_decode_numba import shared_decoder
from labkit.quantize.half_numba import from_half

_LOW, _FOUR, _FIFTH = np.uint8(15), np.uint8(4), np.uint8(16)


@numba.njit(inline="always", error_model="numpy")
def _four_parts(values, half, side):
    """The four runs of 16 weights that share 16 bytes: they are 32 apart."""
    first = half * 128 + side * 16
    return (
        values[first : first + 16],
        values[first + 32 : first + 48],
        values[first + 64 : first + 80],
        values[first + 96 : first + 112],
    )


@numba.njit(inline="always", error_model="numpy")
def _every_second(scales, half, side):
    """The scales of these four runs."""
    first = half * 8 + side
    return scales[first], scales[first + 2], scales[first + 4], scales[first + 6]


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _q2_k(blocks, out):
    scales, mins = np.empty(16, np.float32), np.empty(16, np.float32)
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[80], block[81])
        dmin = from_half(block[82], block[83])
        both = block[0:16]
        for sub in range(both.size):
            scales[sub] = d * np.float32(np.int32(both[sub] & 15))
            mins[sub] = dmin * np.float32(np.int32(both[sub] >> 4))
        for half in range(2):
            for side in range(2):
                qs = block[16 + half * 32 + side * 16 : 32 + half * 32 + side * 16]
                part_0, part_1, part_2, part_3 = _four_parts(values, half, side)
                scale_0, scale_1, scale_2, scale_3 = _every_second(scales, half, side)
                min_0, min_1, min_2, min_3 = _every_second(mins, half, side)
                for j in range(qs.size):
                    byte = np.int32(qs[j])
                    part_0[j] = scale_0 * np.float32(np.int32(byte & 3)) - min_0
                    part_1[j] = scale_1 * np.float32(np.int32((byte >> 2) & 3)) - min_1
                    part_2[j] = scale_2 * np.float32(np.int32((byte >> 4) & 3)) - min_2
                    part_3[j] = scale_3 * np.float32(np.int32(byte >> 6)) - min_3


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _q3_k(blocks, out):
    scales = np.empty(16, np.float32)
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[108], block[109])
        for sub in range(16):
            low = np.int32(block[96 + (sub & 7)]) >> np.int32((sub >> 3) * 4)
            high = np.int32(block[104 + (sub & 3)]) >> np.int32((sub >> 2) * 2)
            scales[sub] = d * np.float32(np.int32(((low & 15) | ((high & 3) << 4)) - 32))
        for half in range(2):
            for side in range(2):
                qs = block[32 + half * 32 + side * 16 : 48 + half * 32 + side * 16]
                hmask = block[side * 16 : side * 16 + 16]
                part_0, part_1, part_2, part_3 = _four_parts(values, half, side)
                scale_0, scale_1, scale_2, scale_3 = _every_second(scales, half, side)
                shift = np.int32(4 * half)
                for j in range(qs.size):
                    byte, bits = np.int32(qs[j]), np.int32(hmask[j]) >> shift
                    code_0 = (byte & 3) | ((bits & 1) << 2)
                    code_1 = ((byte >> 2) & 3) | ((bits & 2) << 1)
                    code_2 = ((byte >> 4) & 3) | (bits & 4)
                    code_3 = (byte >> 6) | ((bits & 8) >> 1)
                    part_0[j] = scale_0 * np.float32(np.int32(code_0 - 4))
                    part_1[j] = scale_1 * np.float32(np.int32(code_1 - 4))
                    part_2[j] = scale_2 * np.float32(np.int32(code_2 - 4))
                    part_3[j] = scale_3 * np.float32(np.int32(code_3 - 4))


@numba.njit(inline="always", error_model="numpy")
def _scale_and_min(block, sub):
    """The 6-bit scale and min of sub-block ``sub`` of Q4_K or Q5_K, float32."""
    if sub < 4:
        scale, low = block[4 + sub] & 63, block[8 + sub] & 63
    else:
        rest = block[8 + sub]
        scale = (rest & 15) | ((block[sub] >> 6) << 4)
        low = (rest >> 4) | ((block[4 + sub] >> 6) << 4)
    return np.float32(np.int32(scale)), np.float32(np.int32(low))


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _q4_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        dmin = from_half(block[2], block[3])
        for pair in range(4):
            scale, low = _scale_and_min(block, 2 * pair)
            scale_0, min_0 = d * scale, dmin * low
            scale, low = _scale_and_min(block, 2 * pair + 1)
            scale_1, min_1 = d * scale, dmin * low
            qs = block[16 + pair * 32 : 48 + pair * 32]
            part = values[pair * 64 : pair * 64 + 64]
            for j in range(qs.size):
                byte = np.int32(qs[j])
                part[j] = scale_0 * np.float32(np.int32(byte & 15)) - min_0
                part[j + 32] = scale_1 * np.float32(np.int32(byte >> 4)) - min_1


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _q5_k(blocks, out):
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[0], block[1])
        dmin = from_half(block[2], block[3])
        qh = block[16:48]
        for pair in range(4):
            scale, low = _scale_and_min(block, 2 * pair)
            scale_0, min_0 = d * scale, dmin * low
            scale, low = _scale_and_min(block, 2 * pair + 1)
            scale_1, min_1 = d * scale, dmin * low
            qs = block[48 + pair * 32 : 80 + pair * 32]
            part_0 = values[pair * 64 : pair * 64 + 32]
            part_1 = values[pair * 64 + 32 : pair * 64 + 64]
            bit_0, bit_1 = np.uint8(1 << (2 * pair)), np.uint8(2 << (2 * pair))
            for j in range(qs.size):
                byte, bits = qs[j], qh[j]
                code_0, code_1 = np.uint8(byte & _LOW), np.uint8(byte >> _FOUR)
                code_0 = np.uint8(code_0 | _FIFTH) if bits & bit_0 else code_0
                code_1 = np.uint8(code_1 | _FIFTH) if bits & bit_1 else code_1
                part_0[j] = scale_0 * np.float32(np.int32(code_0)) - min_0
                part_1[j] = scale_1 * np.float32(np.int32(code_1)) - min_1


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _q6_k(blocks, out):
    scales = np.empty(16, np.float32)
    for i in range(blocks.shape[0]):
        block, values = blocks[i], out[i]
        d = from_half(block[208], block[209])
        for sub in range(16):
            scales[sub] = d * np.float32(np.int32(np.int8(block[192 + sub])))
        for half in range(2):
            for side in range(2):
                first = half * 64 + side * 16
                ql_0, ql_1 = block[first : first + 16], block[first + 32 : first + 48]
                qh = block[128 + half * 32 + side * 16 : 144 + half * 32 + side * 16]
                part_0, part_1, part_2, part_3 = _four_parts(values, half, side)
                scale_0, scale_1, scale_2, scale_3 = _every_second(scales, half, side)
                for j in range(qh.size):
                    low_0, low_1, high = np.int32(ql_0[j]), np.int32(ql_1[j]), np.int32(qh[j])
                    code_0 = (low_0 & 15) | ((high & 3) << 4)
                    code_1 = (low_1 & 15) | ((high & 12) << 2)
                    code_2 = (low_0 >> 4) | (high & 48)
                    code_3 = (low_1 >> 4) | ((high & 192) >> 2)
                    part_0[j] = scale_0 * np.float32(np.int32(code_0 - 32))
                    part_1[j] = scale_1 * np.float32(np.int32(code_1 - 32))
                    part_2[j] = scale_2 * np.float32(np.int32(code_2 - 32))
                    part_3[j] = scale_3 * np.float32(np.int32(code_3 - 32))


@numba.njit(cache=True, error_model="numpy", nogil=True)
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


DECODE = {
    name: shared_decoder(loop, name)
    for name, loop in {
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_XS": _iq4_xs,
    }.items()
}
