"""The two searches of Q3_K and Q6_K, compiled: sixteen sub-blocks at a time, one a lane.

The same steps as `labkit.quantize.kquants_symmetric`, the same roundings in the same order; what a
lane does not want, it does not keep. A tile is 16 sub-blocks of 16, flat: number k of all of them
at [16 k : 16 k + 16] (`labkit.quantize.lanes`).
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.kquants_search import SMALLEST_SCALE
from labkit.quantize.kquants_search_numba import nearest_int
from labkit.quantize.lanes import LANES, absolute, any_lane, load, select, splat, store, to_floats

TILE = 16 * LANES
# Tiles that `descend` works on at a time.
TILES = 4

_TENTH = np.float32(0.1)
_ZERO, _ONE = np.float32(0), np.float32(1)
_PASSES = 5

compiled = numba.njit(error_model="numpy", boundscheck=False)


@compiled
def round_to(x, levels):
    """The nearest of -levels … levels - 1, int32; NaN gives 0."""
    low, high = splat(np.int32(-levels)), splat(np.int32(levels - 1))
    code = nearest_int(x)
    code = select(code > low, code, low)
    return select(code < high, code, high)


@compiled
def _code(x, levels):
    return to_floats(round_to(x, levels))


@compiled
def _largest(x, start):
    """Each lane's number of largest magnitude, the first of several, and its magnitude."""
    largest = magnitude = splat(_ZERO)
    for k in range(start, start + TILE, LANES):
        here = load(x, k)
        size = absolute(here)
        larger = size > magnitude
        largest = select(larger, here, largest)
        magnitude = select(larger, size, magnitude)
    return largest, magnitude


@compiled
def search_scales(x, w, q, start, levels):
    """`labkit.quantize.kquants_symmetric.search_scale` for the tile at ``start`` of x and q.

    Args:
        x: float32; the numbers.
        w: float32 [TILE], their weights.
        q: float32; written: codes from -levels to levels - 1; all -levels for a lane of zeros,
            which is how ggml leaves it.
        levels: an int.

    Returns:
        The scales, sixteen lanes.
    """
    zero = splat(_ZERO)
    largest, magnitude = _largest(x, start)
    chosen = splat(np.float32(-levels)) / largest
    wxq, wqq = _sums(x, w, start, chosen, levels)
    scale = select(wqq == zero, zero, wxq / wqq)
    best = scale * wxq
    for step in range(-9, 10):
        if step == 0:
            continue
        inverse = splat(-(np.float32(levels) + _TENTH * np.float32(step))) / largest
        wxq, wqq = _sums(x, w, start, inverse, levels)
        better = (wqq > zero) & (wxq * wxq > best * wqq)
        fitted = wxq / wqq
        scale = select(better, fitted, scale)
        best = select(better, fitted * wxq, best)
        chosen = select(better, inverse, chosen)
    empty = magnitude < splat(SMALLEST_SCALE)
    for k in range(start, start + TILE, LANES):
        code = _code(chosen * load(x, k), levels)
        store(q, k, select(empty, splat(np.float32(-levels)), code))
    return select(empty, zero, scale)


@compiled
def _sums(x, w, start, inverse, levels):
    """sum(w x q) and sum(w q²) of each lane, for codes rounded with ``inverse``."""
    wxq = wqq = splat(_ZERO)
    for k in range(0, TILE, LANES):
        value, weight = load(x, start + k), load(w, k)
        q = _code(inverse * value, levels)
        wxq += weight * value * q
        wqq += weight * q * q
    return wxq, wqq


@compiled
def descend(x, q, levels, scale, sums):
    """Q3_K's codes without an importance, one position after the other (ggml, make_q3_quants).

    Four tiles at once: each step waits for the last of its own tile alone.

    Args:
        x: float32 [TILES * TILE], the numbers.
        q: float32 [TILES * TILE]; written, as in `search_scales`.
        levels: an int.
        scale: float32 [TILES * LANES]; written.
        sums: float32 [4, TILES * LANES], scratch.
    """
    # The sums go to and fro between two places: to read what was just written in part is slow.
    wxq, wqq, other_wxq, other_wqq = sums[0], sums[1], sums[2], sums[3]
    zero = splat(_ZERO)
    for t in range(TILES):
        start = t * TILE
        largest, _ = _largest(x, start)
        inverse = splat(np.float32(-levels)) / largest
        a = b = zero
        for k in range(start, start + TILE, LANES):
            value = load(x, k)
            code = _code(inverse * value, levels)
            store(q, k, code)
            a += value * value * value * code
            b += value * value * code * code
        store(wxq, t * LANES, a)
        store(wqq, t * LANES, b)
    for _ in range(_PASSES):
        moved = zero
        for k in range(0, TILE, 2 * LANES):
            moved += _move(k, x, q, levels, wxq, wqq, other_wxq, other_wqq)
            moved += _move(k + LANES, x, q, levels, other_wxq, other_wqq, wxq, wqq)
        if not any_lane(moved > zero):
            break
    for t in range(TILES):
        a, b = load(wxq, t * LANES), load(wqq, t * LANES)
        _, magnitude = _largest(x, t * TILE)
        empty = magnitude < splat(SMALLEST_SCALE)
        store(scale, t * LANES, select(b > zero, select(empty, zero, a / b), zero))
        for k in range(t * TILE, (t + 1) * TILE, LANES):
            store(q, k, select(empty, splat(np.float32(-levels)), load(q, k)))


@compiled
def _move(k, x, q, levels, wxq, wqq, new_wxq, new_wqq):
    """Let one position of every tile look for a better code; returns in how many tiles it did."""
    zero, moved = splat(_ZERO), splat(_ZERO)
    for t in range(TILES):
        at, lane = t * TILE + k, t * LANES
        value, old = load(x, at), load(q, at)
        weight = value * value
        a, b = load(wxq, lane), load(wqq, lane)
        others_a = a - weight * value * old
        others_b = b - weight * old * old
        # The quotient may be anything; nearest_int does with it what ggml's does.
        code = _code(value * others_b / others_a, levels)
        new_a = others_a + weight * value * code
        new_b = others_b + weight * code * code
        better = (others_a > zero) & (new_b > zero) & (new_a * new_a * b > a * a * new_b)
        # Another code than the old: both are integers.
        better = better & (absolute(code - old) > zero)
        store(q, at, select(better, code, old))
        store(new_wxq, lane, select(better, new_a, a))
        store(new_wqq, lane, select(better, new_b, b))
        moved += select(better, splat(_ONE), zero)
    return moved
