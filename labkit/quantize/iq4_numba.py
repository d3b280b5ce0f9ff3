"""IQ4_NL and IQ4_XS, compiled: the same bytes as `labkit.quantize.iq4`, faster.

Sixteen blocks of 32 are searched at a time (`labkit.quantize.iq4_search_numba`). A thread takes
sixteen groups, where a group is what shares a float16: a block, or 8 blocks, a super-block.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import run
from labkit.quantize.half_numba import to_half
from labkit.quantize.iq4_search_numba import BLOCK, nearest_index, search_scale
from labkit.quantize.lanes import LANES, load, splat, square_root, store, store_bytes
from labkit.quantize.symmetric_packing_numba import nearest_int

_SUPER_BLOCK = 8  # blocks
_NONE = np.zeros(0, np.float32)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


def encode_iq4_nl(x: np.ndarray, importance: np.ndarray | None, threads: int = 1) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 32 * 18]."""
    return _encode(x, importance, threads, 1, 18)


def encode_iq4_xs(x: np.ndarray, importance: np.ndarray | None, threads: int = 1) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 136]."""
    return _encode(x, importance, threads, _SUPER_BLOCK, 136)


def _encode(x, importance, threads, group, nbytes):
    out = np.empty((x.size // (group * BLOCK), nbytes), np.uint8)
    weight = _NONE if importance is None else importance
    run(_serial, _parallel, x.size, threads, x.reshape(-1), weight, group, out)
    return out.reshape(len(x), -1)


ENCODE = {"IQ4_NL": encode_iq4_nl, "IQ4_XS": encode_iq4_xs}


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial(x, importance, group, out):
    for first in range(0, len(out), LANES):
        _encode_groups(first, x, importance, group, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel(x, importance, group, out):
    for sixteen in numba.prange((len(out) + LANES - 1) // LANES):
        _encode_groups(sixteen * LANES, x, importance, group, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _encode_groups(first, x, importance, group, out):
    """Encode the sixteen groups from ``first`` on, or as many as there are."""
    groups = min(LANES, len(out) - first)
    block, blocks = first * group, groups * group
    columns, weight = np.zeros(BLOCK * LANES, np.float32), np.empty(BLOCK * LANES, np.float32)
    scale = np.empty(LANES * group, np.float32)
    inverse = np.empty(LANES * group, np.float32)
    sigma2 = np.empty(LANES * group, np.float32)
    if importance.size:
        _mean_squares(x, first, groups, group, sigma2)
    for lane in range(0, blocks, LANES):
        _turn(x, (block + lane) * BLOCK, min(LANES, blocks - lane), columns)
        if importance.size:
            _turn_importance(importance, block + lane, min(LANES, blocks - lane), weight)
            _weigh(columns, load(sigma2, lane), weight)
        else:
            _square(columns, weight)
        store(scale, lane, search_scale(columns, weight))
    for g in range(groups):
        if group == 1:
            inverse[g] = _write_scale(scale[g], first + g, out)
        else:
            _write_scales(g * group, scale, inverse, first + g, out)
    codes = np.empty(BLOCK, np.uint8)
    for b in range(blocks):
        at = out.shape[1] - 16 * group + 16 * (b % group)
        _write_codes(x, (block + b) * BLOCK, inverse[b], first + b // group, at, codes, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _write_scale(scale, block, out):
    """Bytes 0..1: the scale. Returns what it is divided by: not the float16, as in ggml."""
    half = to_half(scale)
    out[block, 0] = half & 0xFF
    out[block, 1] = half >> 8
    return _ONE / scale if scale != _ZERO else _ZERO


@numba.njit(error_model="numpy", boundscheck=False)
def _write_scales(lane, scale, inverse, block, out):
    """Bytes 0..1: d, 2..3: high 2 bits of the 8 sub-scales, 4..7: their low 4 bits."""
    largest, magnitude = _ZERO, _ZERO
    for j in range(lane, lane + _SUPER_BLOCK):
        if abs(scale[j]) > magnitude:
            largest, magnitude = scale[j], abs(scale[j])
    d = -largest / np.float32(32)
    inverse_d = _write_scale(d, block, out)
    out[block, 2:8] = 0
    for j in range(_SUPER_BLOCK):
        code = min(max(nearest_int(inverse_d * scale[lane + j]), np.int32(-32)), np.int32(31))
        step = d * np.float32(code)
        inverse[lane + j] = _ONE / step if step != _ZERO else _ZERO
        stored = code + np.int32(32)
        out[block, 2 + j // 4] |= np.uint8((stored >> 4) << (2 * (j % 4)))
        out[block, 4 + j // 2] |= np.uint8((stored & 15) << (4 * (j % 2)))


@numba.njit(error_model="numpy", boundscheck=False)
def _write_codes(x, start, inverse, block, at, codes, out):
    """A block's 16 bytes from ``at`` on: byte i holds codes i and, in its high bits, i + 16."""
    for half in range(0, BLOCK, LANES):
        store_bytes(codes, half, nearest_index(splat(inverse) * load(x, start + half)))
    for i in range(16):
        out[block, at + i] = codes[i] | (codes[16 + i] << 4)


@numba.njit(error_model="numpy", boundscheck=False)
def _turn(x, start, count, columns):
    """Number k of block b, from ``start`` on, to columns[16 k + b]; lanes beyond ``count``: 0."""
    if count < LANES:
        columns[:] = _ZERO
    for b in range(count):
        for k in range(BLOCK):
            columns[k * LANES + b] = x[start + b * BLOCK + k]


@numba.njit(error_model="numpy", boundscheck=False)
def _turn_importance(importance, block, count, weight):
    """The importance of the same columns of a row, on its side as well."""
    weight[:] = _ZERO
    for b in range(count):
        _turn_one(importance, (block + b) * BLOCK % importance.size, b, weight)


@numba.njit(error_model="numpy", boundscheck=False)
def _turn_one(importance, column, lane, weight):
    for k in range(BLOCK):
        weight[k * LANES + lane] = importance[column + k]


@numba.njit(error_model="numpy", boundscheck=False)
def _mean_squares(x, first, groups, group, sigma2):
    """Twice the mean square of each group, for each of its blocks; sixteen sums side by side."""
    size = group * BLOCK
    squares = np.zeros(LANES, np.float32)
    for i in range(size):
        for g in range(groups):
            value = x[(first + g) * size + i]
            squares[g] += value * value
    for b in range(groups * group):
        sigma2[b] = squares[b // group] * (_TWO / np.float32(size))


@numba.njit(error_model="numpy", boundscheck=False)
def _weigh(columns, sigma2, weight):
    """Importance times the root of x² and of twice the mean square."""
    for k in range(0, BLOCK * LANES, LANES):
        x = load(columns, k)
        store(weight, k, load(weight, k) * square_root(sigma2 + x * x))


@numba.njit(error_model="numpy", boundscheck=False)
def _square(columns, weight):
    for i in range(BLOCK * LANES):
        weight[i] = columns[i] * columns[i]
