"""Q3_K and Q6_K, compiled: the same bytes as `labkit.quantize.kquants_symmetric`, faster.

The 16 sub-blocks of a super-block are the lanes of the search
(`labkit.quantize.symmetric_search_numba`). A thread takes sixteen super-blocks: they are the lanes
of Q3_K's second search, over the 16 scales of each.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import run
from labkit.quantize.half_numba import from_half, to_half
from labkit.quantize.kquants_search import SMALLEST_SCALE
from labkit.quantize.lanes import LANES, load, splat, square_root, store
from labkit.quantize.symmetric_packing_numba import nearest_int, pack_q3_k, pack_q6_k, round_again
from labkit.quantize.symmetric_search_numba import TILE, TILES, compiled, descend, search_scales

_SUPER = 256
_NONE = np.zeros(0, np.float32)
_ZERO, _TWO = np.float32(0), np.float32(2)


def encode_q6_k(x: np.ndarray, importance: np.ndarray | None, threads: int = 1) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 210]."""
    return _encode(x, importance, threads, 210)


def encode_q3_k(x: np.ndarray, importance: np.ndarray | None, threads: int = 1) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 110]."""
    return _encode(x, importance, threads, 110)


def _encode(x, importance, threads, nbytes):
    out = np.empty((x.size // _SUPER, nbytes), np.uint8)
    weight = _NONE if importance is None else importance
    run(_serial, _parallel, x.size, threads, x.reshape(-1), weight, out)
    return out.reshape(len(x), -1)


ENCODE = {"Q3_K": encode_q3_k, "Q6_K": encode_q6_k}


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial(x, importance, out):
    for first in range(0, len(out), LANES):
        _encode_sixteen(first, x, importance, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel(x, importance, out):
    for sixteen in numba.prange((len(out) + LANES - 1) // LANES):
        _encode_sixteen(sixteen * LANES, x, importance, out)


@compiled
def _encode_sixteen(first, x, importance, out):
    """Encode the sixteen super-blocks from ``first`` on, or as many as there are."""
    if out.shape[1] == 210:
        _encode_q6_k(first, x, importance, out)
    else:
        _encode_q3_k(first, x, importance, out)


@compiled
def _encode_q6_k(first, x, importance, out):
    blocks = min(LANES, len(out) - first)
    columns, weight = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    q, scale = np.empty(LANES * TILE, np.float32), np.empty(LANES * 16, np.float32)
    for b in range(blocks):
        _turn(x, (first + b) * _SUPER, columns, 0)
        if importance.size:
            _turn(importance, (first + b) * _SUPER % importance.size, weight, 0)
        else:
            _square(columns, weight)
        found = search_scales(columns, weight, q[b * TILE : (b + 1) * TILE], 0, 32)
        store(scale, 16 * b, found)
    # A loop of its own: there is much to wait for, and super-blocks need not wait for each other.
    codes = np.empty(_SUPER, np.uint8)
    for b in range(blocks):
        largest, magnitude = _largest_of_sixteen(scale, 16 * b, 1)
        if magnitude < SMALLEST_SCALE:
            out[first + b, :] = 0
            continue
        inverse = np.float32(-128) / largest
        d = _write_half(np.float32(1) / inverse, first + b, 208, out)
        for j in range(16):
            # int8 as in ggml: where a scale is infinite, 2^22 falls off.
            stored = np.int8(min(nearest_int(inverse * scale[16 * b + j]), np.int32(127)))
            out[first + b, 192 + j] = np.uint8(stored)
            step = d * np.float32(stored)
            round_again(x, (first + b) * _SUPER, j, step, q, b * TILE, 32, codes)
        pack_q6_k(first + b, codes, out)


@compiled
def _encode_q3_k(first, x, importance, out):
    blocks = min(LANES, len(out) - first)
    columns, weight = np.zeros(TILES * TILE, np.float32), np.empty(TILE, np.float32)
    q, scale = np.empty(LANES * TILE, np.float32), np.empty(LANES * 16, np.float32)
    sums = np.empty((4, TILES * LANES), np.float32)
    # For the sub-scales' own search: number j of lane b is sub-block j of super-block b.
    scales, totals = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    stored, d = np.empty(TILE, np.float32), np.empty(LANES, np.float32)
    if importance.size:
        sigma2 = np.zeros(LANES, np.float32)
        _mean_squares(x, first, blocks, sigma2)
        for b in range(blocks):
            _turn(x, (first + b) * _SUPER, columns, 0)
            _turn(importance, (first + b) * _SUPER % importance.size, weight, 0)
            total = _weigh(columns, sigma2[b], weight)
            found = search_scales(columns, weight, q[b * TILE : (b + 1) * TILE], 0, 4)
            store(scale, 16 * b, found)
            store(sums[0], 0, total)
            for j in range(16):
                totals[j * LANES + b] = sums[0, j]
    else:
        for b in range(0, blocks, TILES):
            for t in range(min(TILES, blocks - b)):
                _turn(x, (first + b + t) * _SUPER, columns, t * TILE)
            lanes = q[b * TILE : (b + TILES) * TILE]
            descend(columns, lanes, 4, scale[b * 16 : (b + TILES) * 16], sums)
    for b in range(blocks):
        for j in range(16):
            scales[j * LANES + b] = scale[16 * b + j]
    if importance.size:
        store(d, 0, search_scales(scales, totals, stored, 0, 32))
    else:
        _round_sub_scales(scales, d, stored)
    codes = np.empty(_SUPER, np.uint8)
    for b in range(blocks):
        half = _write_half(d[b], first + b, 108, out)
        for j in range(16):
            step = half * stored[j * LANES + b]
            round_again(x, (first + b) * _SUPER, j, step, q, b * TILE, 4, codes)
        pack_q3_k(first + b, b, codes, stored, out)


@compiled
def _round_sub_scales(scales, d, stored):
    """Sub-scales, -32 … 31, and d for each lane: the largest scale becomes -32."""
    for b in range(LANES):
        largest, magnitude = _largest_of_sixteen(scales, b, LANES)
        inverse = np.float32(-32) / largest
        d[b] = np.float32(1) / inverse if magnitude > _ZERO else _ZERO
        for j in range(b, TILE, LANES):
            # int8 as in ggml: where inverse is infinite, 2^22 falls off.
            code = np.int32(np.int8(nearest_int(inverse * scales[j])))
            code = min(max(code, np.int32(-32)), np.int32(31))
            stored[j] = np.float32(code if magnitude > _ZERO else np.int32(-32))


@compiled
def _largest_of_sixteen(x, start, step):
    """The number of largest magnitude, the first of several, and its magnitude."""
    largest, magnitude = _ZERO, _ZERO
    for j in range(start, start + 16 * step, step):
        larger = abs(x[j]) > magnitude
        largest = x[j] if larger else largest
        magnitude = abs(x[j]) if larger else magnitude
    return largest, magnitude


@compiled
def _turn(x, start, columns, tile):
    """A super-block on its side: weight 16 j + i from ``start`` on to columns[tile + 16 i + j]."""
    for j in range(16):
        for i in range(16):
            columns[tile + i * LANES + j] = x[start + j * 16 + i]


@compiled
def _square(columns, weight):
    for i in range(TILE):
        weight[i] = columns[i] * columns[i]


@compiled
def _mean_squares(x, first, blocks, sigma2):
    """Twice the mean square of each super-block; sixteen sums side by side."""
    for i in range(_SUPER):
        for b in range(blocks):
            value = x[(first + b) * _SUPER + i]
            sigma2[b] += value * value
    for b in range(blocks):
        sigma2[b] = _TWO * sigma2[b] / np.float32(_SUPER)


@compiled
def _weigh(columns, sigma2, weight):
    """Importance times the root of x² and of sigma2; returns each sub-block's sum."""
    total = splat(_ZERO)
    for k in range(0, TILE, LANES):
        x = load(columns, k)
        weighed = load(weight, k) * square_root(splat(sigma2) + x * x)
        store(weight, k, weighed)
        total += weighed
    return total


@compiled
def _write_half(value, block, offset, out):
    """Write ``value`` as float16 and return what it has become."""
    half = to_half(value)
    out[block, offset] = half & 0xFF
    out[block, offset + 1] = half >> 8
    return from_half(out[block, offset], out[block, offset + 1])
