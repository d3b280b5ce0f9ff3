"""The last step of Q3_K and Q6_K: codes for the scales as they are stored, and their bytes."""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.lanes import LANES, load, splat, store_bytes
from labkit.quantize.symmetric_search_numba import compiled, round_to

_ROUND = np.float32(1.5 * 2**23)
_FRACTION = np.int32(0x7FFFFF)
_HALF_WAY = np.int32(0x400000)


@numba.njit(inline="always", error_model="numpy")
def nearest_int(x):
    """As `labkit.quantize.kquants_search.nearest_int`, for one number, NaN and all."""
    bits = np.float32(x + _ROUND).view(np.int32)
    return np.int32((bits & _FRACTION) - _HALF_WAY)


@compiled
def round_again(x, start, j, step, q, tile, levels, codes):
    """Codes + levels of sub-block ``j`` for its scale as it is stored, ``step``.

    Args:
        x: float32; the super-block is at ``start``.
        q: float32; at ``tile`` are the codes of the search, which stay where ``step`` is 0.
        codes: uint8 [256]; 16 of them are written.
    """
    if step != np.float32(0):
        code = round_to(load(x, start + 16 * j) / splat(step), levels)
        store_bytes(codes, 16 * j, code + splat(np.int32(levels)))
        return
    for i in range(16):
        codes[16 * j + i] = np.uint8(np.int32(q[tile + i * LANES + j]) + levels)


@compiled
def pack_q6_k(block, codes, out):
    """Low 4 bits to bytes 0..127, high 2 bits to 128..191; sub-scales and d are there already."""
    for half in range(2):
        q, ql, qh = 128 * half, 64 * half, 128 + 32 * half
        for i in range(32):
            c0, c1, c2, c3 = codes[q + i], codes[q + 32 + i], codes[q + 64 + i], codes[q + 96 + i]
            out[block, ql + i] = np.uint8((c0 & 15) | (c2 << 4))
            out[block, ql + 32 + i] = np.uint8((c1 & 15) | (c3 << 4))
            out[block, qh + i] = np.uint8(
                (c0 >> 4) | ((c1 >> 4) << 2) | ((c2 >> 4) << 4) | ((c3 >> 4) << 6)
            )


@compiled
def pack_q3_k(block, lane, codes, stored, out):
    """Third bits to bytes 0..31, low 2 bits to 32..95, the lane's sub-scales to 96..107."""
    for i in range(32):
        third = np.uint8(0)
        for b in range(8):
            third |= np.uint8((codes[32 * b + i] >> 2) << b)
        out[block, i] = third
    for half in range(2):
        q = 128 * half
        for i in range(32):
            c0, c1, c2, c3 = codes[q + i], codes[q + 32 + i], codes[q + 64 + i], codes[q + 96 + i]
            out[block, 32 + 32 * half + i] = np.uint8(
                (c0 & 3) | ((c1 & 3) << 2) | ((c2 & 3) << 4) | ((c3 & 3) << 6)
            )
    out[block, 104:108] = 0
    for j in range(8):
        low = np.int32(stored[j * LANES + lane]) + np.int32(32)
        high = np.int32(stored[(j + 8) * LANES + lane]) + np.int32(32)
        out[block, 96 + j] = np.uint8((low & 15) | ((high & 15) << 4))
        # Byte 104 + j % 4 holds the high 2 bits of sub-scales j, j + 4, j + 8, j + 12.
        shift = np.int32(j // 4 * 2)
        out[block, 104 + j % 4] |= np.uint8(((low >> 4) << shift) | ((high >> 4) << (shift + 4)))
