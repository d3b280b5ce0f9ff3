"""IQ4_NL and IQ4_XS, compiled: the same bytes as `labkit.quantize.iq4`, faster.

A tile takes 64 blocks of 32, or 8 super-blocks of 256: its lanes are the blocks of 32
(`labkit.quantize.iq4_search_numba`).
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize import gguf_threads
from labkit.quantize.half_numba import to_half
from labkit.quantize.iq4_search_numba import (
    LANES,
    POSITIONS,
    nearest_index,
    search_scales,
)
from labkit.quantize.symmetric_search_numba import nearest_int

_BLOCK = 32
_SUB_BLOCKS = 8
# Tiles that one thread takes at a time.
_RUN = 16
_NONE = np.zeros(0, np.float32)
_ZERO, _ONE = np.float32(0), np.float32(1)


def encode_iq4_nl(x, importance, threads):
    """float32 [rows, columns] -> uint8 [rows, columns / 32 * 18]."""
    return _encode(x, importance, threads, 1, 18)


def encode_iq4_xs(x, importance, threads):
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 136]."""
    return _encode(x, importance, threads, _SUB_BLOCKS, 136)


def _encode(x, importance, threads, group, nbytes):
    rows, columns = x.shape
    out = np.empty((rows, columns // (group * _BLOCK) * nbytes), np.uint8)
    weight = _NONE if importance is None else importance
    arguments = (x.reshape(-1, _BLOCK), weight, group, out.reshape(-1, nbytes))
    gguf_threads.run(_serial, _parallel, x.size, threads, *arguments)
    return out


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial(blocks, importance, group, out):
    for first in range(0, blocks.shape[0], _RUN * LANES):
        _run(first, blocks, importance, group, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel(blocks, importance, group, out):
    for run in numba.prange((blocks.shape[0] + _RUN * LANES - 1) // (_RUN * LANES)):
        _run(run * _RUN * LANES, blocks, importance, group, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _run(first, blocks, importance, group, out):
    """Encode the tiles from block ``first`` on; ``group`` blocks of 32 share a float16."""
    x = np.empty((POSITIONS, LANES), np.float32)
    w = np.empty((POSITIONS, LANES), np.float32)
    lanes = np.empty((6, LANES), np.float32)
    scale = np.empty(LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    for start in range(first, min(first + _RUN * LANES, blocks.shape[0]), LANES):
        here = min(LANES, blocks.shape[0] - start)
        _load(blocks, start, here, x)
        if importance.size:
            _weigh(importance, start, here, group, x, w)
        else:
            _square(x, w)
        search_scales(x, w, scale, lanes)
        if group == 1:
            _scales_nl(start, here, scale, inverse, out)
        else:
            _scales_xs(start, here, scale, inverse, out)
        _write_codes(blocks, start, here, group, inverse, out)


@numba.njit(error_model="numpy", boundscheck=False)
def _scales_nl(start, here, scale, inverse, out):
    """Bytes 0..1: the scale; codes are found with it in float32."""
    for b in range(here):
        half = to_half(scale[b])
        out[start + b, 0] = half & 0xFF
        out[start + b, 1] = half >> 8
        inverse[b] = _ONE / scale[b] if scale[b] != _ZERO else _ZERO


@numba.njit(error_model="numpy", boundscheck=False)
def _scales_xs(start, here, scale, inverse, out):
    """Bytes 0..1: d, 2..3: high 2 bits of the sub-scales, 4..7: their low 4 bits."""
    for lane in range(0, here, _SUB_BLOCKS):
        block = (start + lane) // _SUB_BLOCKS
        largest, magnitude = _ZERO, _ZERO
        for j in range(lane, lane + _SUB_BLOCKS):
            if abs(scale[j]) > magnitude:
                largest, magnitude = scale[j], abs(scale[j])
        d = -largest / np.float32(32)
        half = to_half(d)
        out[block, 0] = half & 0xFF
        out[block, 1] = half >> 8
        inverse_d = _ONE / d if d != _ZERO else _ZERO
        out[block, 2:8] = 0
        for j in range(_SUB_BLOCKS):
            code = min(max(nearest_int(inverse_d * scale[lane + j]), np.int32(-32)), np.int32(31))
            step = d * np.float32(code)
            inverse[lane + j] = _ONE / step if step != _ZERO else _ZERO
            stored = code + np.int32(32)
            out[block, 2 + j // 4] |= np.uint8((stored >> 4) << (2 * (j % 4)))
            out[block, 4 + j // 2] |= np.uint8((stored & 15) << (4 * (j % 2)))


@numba.njit(error_model="numpy", boundscheck=False)
def _write_codes(blocks, start, here, group, inverse, out):
    """16 bytes a block of 32, the last of the block's or super-block's bytes."""
    first = out.shape[1] - 16 * group
    codes = np.empty(_BLOCK, np.uint8)
    for b in range(here):
        for i in range(_BLOCK):
            codes[i] = nearest_index(inverse[b] * blocks[start + b, i])
        block, at = (start + b) // group, first + 16 * ((start + b) % group)
        for i in range(16):
            out[block, at + i] = codes[i] | (codes[16 + i] << 4)


@numba.njit(error_model="numpy", boundscheck=False)
def _load(blocks, start, here, x):
    """Turn ``here`` blocks on their side: weight i becomes [i, lane]."""
    for b in range(here):
        for i in range(POSITIONS):
            x[i, b] = blocks[start + b, i]
    for i in range(POSITIONS):
        x[i, here:] = _ZERO


@numba.njit(error_model="numpy", boundscheck=False)
def _square(x, w):
    for i in range(POSITIONS):
        for r in range(LANES):
            w[i, r] = x[i, r] * x[i, r]


@numba.njit(error_model="numpy", boundscheck=False)
def _weigh(importance, start, here, group, x, w):
    """Importance times the root of x² and of twice the block's or super-block's mean square."""
    sigma2 = np.zeros(LANES, np.float32)
    share = np.float32(2) / np.float32(group * _BLOCK)
    for first in range(0, LANES, group):
        # One sum for the group, block after block.
        squares = _ZERO
        for b in range(first, first + group):
            for i in range(POSITIONS):
                squares += x[i, b] * x[i, b]
        for b in range(first, first + group):
            sigma2[b] = squares * share
    for b in range(here):
        column = (start + b) * _BLOCK % importance.size
        for i in range(POSITIONS):
            w[i, b] = importance[column + i]
    for i in range(POSITIONS):
        w[i, here:] = _ZERO
        for r in range(LANES):
            w[i, r] *= np.sqrt(sigma2[r] + x[i, r] * x[i, r])


ENCODE = {"IQ4_NL": encode_iq4_nl, "IQ4_XS": encode_iq4_xs}
