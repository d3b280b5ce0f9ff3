"""Q3_K and Q6_K, compiled: the same bytes as `labkit.quantize.kquants_symmetric`, faster.

A run of RUN super-blocks is worked on at a time. Four super-blocks fill a tile, whose lanes are
their 64 sub-blocks (`labkit.quantize.symmetric_search_numba`). Q3_K's second search, over the 16
scales of a super-block, has the run's super-blocks for lanes.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize import gguf_threads
from labkit.quantize.half_numba import from_half, to_half
from labkit.quantize.kquants_symmetric import TINY
from labkit.quantize.symmetric_packing_numba import pack_q3_k, pack_q6_k, round_again
from labkit.quantize.symmetric_search_numba import (
    LANES,
    TILE,
    descend,
    nearest_int,
    search_scales,
)

RUN = LANES
_SHARE = LANES // 16
_SUPER = 256
_NONE = np.zeros(0, np.float32)
_ZERO = np.float32(0)


def _encoder(serial, parallel, nbytes):
    def encode(x, importance, threads):
        """float32 [rows, columns] -> uint8 [rows, bytes of a row]."""
        rows, columns = x.shape
        out = np.empty((rows, columns // _SUPER * nbytes), np.uint8)
        weight = _NONE if importance is None else importance
        blocks, bytes_out = x.reshape(-1, _SUPER), out.reshape(-1, nbytes)
        gguf_threads.run(serial, parallel, x.size, threads, blocks, weight, bytes_out)
        return out

    return encode


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial_q6_k(blocks, importance, out):
    for first in range(0, blocks.shape[0], RUN):
        _run_q6_k(first, blocks, importance, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel_q6_k(blocks, importance, out):
    for run in numba.prange((blocks.shape[0] + RUN - 1) // RUN):
        _run_q6_k(run * RUN, blocks, importance, out)


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial_q3_k(blocks, importance, out):
    for first in range(0, blocks.shape[0], RUN):
        _run_q3_k(first, blocks, importance, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel_q3_k(blocks, importance, out):
    for run in numba.prange((blocks.shape[0] + RUN - 1) // RUN):
        _run_q3_k(run * RUN, blocks, importance, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _run_q6_k(first, blocks, importance, out):
    """Encode super-blocks first … first + RUN, or as many as there are."""
    x, w = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    wx = np.empty(TILE, np.float32)
    q = np.empty(TILE, np.float32)
    lanes = np.empty((7, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    steps, codes = np.empty(_SUPER, np.float32), np.empty(_SUPER, np.uint8)
    stop = min(first + RUN, blocks.shape[0])
    for start in range(first, stop, _SHARE):
        here = min(_SHARE, stop - start)
        _load(blocks, start, here, x)
        if importance.size:
            _load_importance(importance, start, here, w)
        else:
            _square(x, w)
        search_scales(x, w, wx, q, np.float32(32), scale, lanes)
        for b in range(here):
            _finish_q6_k(start + b, b * 16, blocks, scale, q, steps, codes, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _finish_q6_k(block, lane, blocks, scale, q, steps, codes, out):
    """The bytes of one super-block, whose sub-blocks are the 16 lanes from ``lane`` on."""
    largest, magnitude = _ZERO, _ZERO
    for j in range(lane, lane + 16):
        if abs(scale[j]) > magnitude:
            largest, magnitude = scale[j], abs(scale[j])
    if magnitude < TINY:
        out[block, :] = 0
        return
    inverse = np.float32(-128) / largest
    d = _write_half(np.float32(1) / inverse, block, 208, out)
    for j in range(16):
        # int8 as in ggml: where a scale is infinite, 2^22 falls off.
        stored = np.int8(min(nearest_int(inverse * scale[lane + j]), np.int32(127)))
        out[block, 192 + j] = np.uint8(stored)
        steps[16 * j : 16 * j + 16] = d * np.float32(stored)
    round_again(block, lane, blocks, steps, q, np.int32(32), codes)
    pack_q6_k(block, codes, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _run_q3_k(first, blocks, importance, out):
    """Encode super-blocks first … first + RUN, or as many as there are."""
    x, w = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    wx = np.empty(TILE, np.float32)
    q = np.empty((RUN // _SHARE, TILE), np.float32)
    lanes = np.empty((7, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    # For the sub-scales' own search: a lane is a super-block, a position one of its 16 scales.
    scales, weights = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    stored = np.empty(TILE, np.float32)
    d = np.empty(RUN, np.float32)
    stop = min(first + RUN, blocks.shape[0])
    for start in range(first, stop, _SHARE):
        here = min(_SHARE, stop - start)
        tile = (start - first) // _SHARE
        _load(blocks, start, here, x)
        if importance.size:
            _load_importance(importance, start, here, w)
            _weigh(blocks, start, here, x, w)
            search_scales(x, w, wx, q[tile], np.float32(4), scale, lanes)
            _add_weights(w, start - first, here, weights)
        else:
            descend(x, w, wx, q[tile], np.float32(4), scale, lanes)
        for lane in range(here * 16):
            scales[lane % 16 * LANES + start - first + lane // 16] = scale[lane]
    if importance.size:
        search_scales(scales, weights, wx, stored, np.float32(32), d, lanes)
    else:
        _round_sub_scales(scales, d, stored)
    steps, codes = np.empty(_SUPER, np.float32), np.empty(_SUPER, np.uint8)
    for b in range(stop - first):
        half = _write_half(d[b], first + b, 108, out)
        for j in range(16):
            steps[16 * j : 16 * j + 16] = half * stored[j * LANES + b]
        lane = b % _SHARE * 16
        round_again(first + b, lane, blocks, steps, q[b // _SHARE], np.int32(4), codes)
        pack_q3_k(first + b, b, codes, stored, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _round_sub_scales(scales, d, stored):
    """Sub-scales, -32 … 31, and d for each lane: the largest scale becomes -32."""
    for b in range(RUN):
        largest, magnitude = _ZERO, _ZERO
        for j in range(16):
            if abs(scales[j * LANES + b]) > magnitude:
                largest, magnitude = scales[j * LANES + b], abs(scales[j * LANES + b])
        inverse = np.float32(-32) / largest
        d[b] = np.float32(1) / inverse if magnitude > _ZERO else _ZERO
        for j in range(16):
            # int8 as in ggml: where inverse is infinite, 2^22 falls off.
            code = np.int32(np.int8(nearest_int(inverse * scales[j * LANES + b])))
            code = min(max(code, np.int32(-32)), np.int32(31))
            stored[j * LANES + b] = np.float32(code if magnitude > _ZERO else np.int32(-32))


@numba.njit(error_model="numpy", boundscheck=False)
def _load(blocks, start, here, x):
    """Turn ``here`` super-blocks on their side: weight 16 j + i goes to row i, lane j."""
    for b in range(here):
        for j in range(16):
            for i in range(16):
                x[i * LANES + b * 16 + j] = blocks[start + b, j * 16 + i]
    _clear_lanes_from(here * 16, x)


@numba.njit(error_model="numpy", boundscheck=False)
def _load_importance(importance, start, here, w):
    """The importance of the same columns, on its side as well."""
    for b in range(here):
        column = (start + b) * _SUPER % importance.size
        for j in range(16):
            for i in range(16):
                w[i * LANES + b * 16 + j] = importance[column + j * 16 + i]
    _clear_lanes_from(here * 16, w)


@numba.njit(error_model="numpy", boundscheck=False)
def _clear_lanes_from(lane, tile):
    for row in range(0, TILE, LANES):
        for r in range(lane, LANES):
            tile[row + r] = _ZERO


@numba.njit(error_model="numpy", boundscheck=False)
def _square(x, w):
    for i in range(TILE):
        w[i] = x[i] * x[i]


@numba.njit(error_model="numpy", boundscheck=False)
def _weigh(blocks, start, here, x, w):
    """Importance times the root of x² and of twice the super-block's mean square."""
    sigma2 = np.zeros(LANES, np.float32)
    squares = np.zeros(_SHARE, np.float32)
    for i in range(_SUPER):
        for b in range(here):
            squares[b] += blocks[start + b, i] * blocks[start + b, i]
    for r in range(LANES):
        sigma2[r] = np.float32(2) * squares[r // 16] / np.float32(_SUPER)
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            w[row + r] *= np.sqrt(sigma2[r] + x[row + r] * x[row + r])


@numba.njit(error_model="numpy", boundscheck=False)
def _add_weights(w, first, here, weights):
    """The sum of each sub-block's weights, as [sub-block, super-block]."""
    sums = np.zeros(LANES, np.float32)
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            sums[r] += w[row + r]
    for lane in range(here * 16):
        weights[lane % 16 * LANES + first + lane // 16] = sums[lane]


@numba.njit(error_model="numpy", boundscheck=False)
def _write_half(value, block, offset, out):
    """Write ``value`` as float16 and return what it has become."""
    half = to_half(value)
    out[block, offset] = half & 0xFF
    out[block, offset + 1] = half >> 8
    return from_half(out[block, offset], out[block, offset + 1])


_Q6_K = (_serial_q6_k, _parallel_q6_k, 210)
_Q3_K = (_serial_q3_k, _parallel_q3_k, 110)
ENCODE = {"Q3_K": _encoder(*_Q3_K), "Q6_K": _encoder(*_Q6_K)}
