"""Scales of IQ4_NL's and IQ4_XS's blocks, and the nearest level, many at a time.

The lanes of a vector register are independent blocks of 32: a tile is [32 positions, LANES], and
every lane adds its terms in ggml's order. The nearest of 16 levels is found without branches, by
counting how many of the 15 boundaries between them lie at or below a number.

A boundary is the midpoint of its neighbours, and counts as above it; halfway the differences to
both are exact in float32, so this is ggml's rule (best_index_int8) for every float32.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.iq4 import LEVELS
from labkit.quantize.kquants_symmetric import TINY

LANES = 64
POSITIONS = 32
_FIRST_LEVEL = LEVELS[0]
_L = tuple(LEVELS)
_B = tuple((LEVELS[:-1] + LEVELS[1:]) / np.float32(2))
_ZERO = np.float32(0)
_TRIES = 7


@numba.njit(inline="always", error_model="numpy")
def nearest_level(x):
    """The level nearest to ``x``, float32: a staircase of 15 steps. NaN: the last, as in ggml."""
    level = _L[0]
    level = level if x < _B[0] else _L[1]
    level = level if x < _B[1] else _L[2]
    level = level if x < _B[2] else _L[3]
    level = level if x < _B[3] else _L[4]
    level = level if x < _B[4] else _L[5]
    level = level if x < _B[5] else _L[6]
    level = level if x < _B[6] else _L[7]
    level = level if x < _B[7] else _L[8]
    level = level if x < _B[8] else _L[9]
    level = level if x < _B[9] else _L[10]
    level = level if x < _B[10] else _L[11]
    level = level if x < _B[11] else _L[12]
    level = level if x < _B[12] else _L[13]
    level = level if x < _B[13] else _L[14]
    return level if x < _B[14] else _L[15]


@numba.njit(inline="always", error_model="numpy")
def nearest_index(x):
    """The index of that level, uint8."""
    above = np.int32(15)
    above -= np.int32(x < _B[0]) + np.int32(x < _B[1]) + np.int32(x < _B[2])
    above -= np.int32(x < _B[3]) + np.int32(x < _B[4]) + np.int32(x < _B[5])
    above -= np.int32(x < _B[6]) + np.int32(x < _B[7]) + np.int32(x < _B[8])
    above -= np.int32(x < _B[9]) + np.int32(x < _B[10]) + np.int32(x < _B[11])
    above -= np.int32(x < _B[12]) + np.int32(x < _B[13]) + np.int32(x < _B[14])
    return np.uint8(above)


@numba.njit(error_model="numpy", boundscheck=False)
def search_scales(x, w, scale, lanes):
    """The scale of each lane's block.

    Args:
        x, w: float32 [32, LANES], numbers and their weights.
        scale: float32 [LANES]; written.
        lanes: float32 [6, LANES], scratch.
    """
    largest, magnitude, best, inverse = lanes[0], lanes[1], lanes[2], lanes[3]
    wqx, wqq = lanes[4], lanes[5]
    _find_largest(x, largest, magnitude)
    for candidate in range(2 * _TRIES + 2):
        for r in range(LANES):
            if candidate == 0:
                inverse[r] = np.float32(1) / (-largest[r] / _FIRST_LEVEL)
            else:
                step = np.float32(candidate - 1 - _TRIES)
                inverse[r] = (step + _FIRST_LEVEL) / largest[r]
        _sums(x, w, inverse, wqx, wqq)
        for r in range(LANES):
            fitted = wqx[r] / wqq[r]
            if candidate == 0:
                scale[r] = fitted if wqq[r] > _ZERO else _ZERO
                best[r] = scale[r] * wqx[r]
            else:
                better = (wqq[r] > _ZERO) & (wqx[r] * wqx[r] > best[r] * wqq[r])
                scale[r] = fitted if better else scale[r]
                best[r] = fitted * wqx[r] if better else best[r]
    for r in range(LANES):
        scale[r] = _ZERO if magnitude[r] < TINY else scale[r]


@numba.njit(error_model="numpy", boundscheck=False)
def _find_largest(x, largest, magnitude):
    """Each lane's number of largest magnitude, the first of several, and its magnitude."""
    for r in range(LANES):
        largest[r] = _ZERO
        magnitude[r] = _ZERO
    for i in range(POSITIONS):
        for r in range(LANES):
            here = x[i, r]
            size = abs(here)
            larger = size > magnitude[r]
            largest[r] = here if larger else largest[r]
            magnitude[r] = size if larger else magnitude[r]


@numba.njit(error_model="numpy", boundscheck=False)
def _sums(x, w, inverse, wqx, wqq):
    """sum(w q x) and sum(w q²) of each lane, for levels found with ``inverse``; [LANES] each."""
    for r in range(LANES):
        wqx[r] = _ZERO
        wqq[r] = _ZERO
    for i in range(POSITIONS):
        for r in range(LANES):
            q = nearest_level(inverse[r] * x[i, r])
            wq = w[i, r] * q
            wqx[r] += wq * x[i, r]
            wqq[r] += wq * q
