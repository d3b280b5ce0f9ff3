"""Scales and codes of Q3_K's and Q6_K's sub-blocks, many at a time.

The lanes of a vector register are independent sub-blocks: a tile is [16 positions, LANES], so each
step of the search is one instruction for sixteen of them, and every lane adds its terms in ggml's
order. Loops over lanes have no branches; what a lane does not want, it does not keep.
"""

from __future__ import annotations

import numba
import numpy as np

# Sub-blocks side by side: the registers that one loop keeps busy, and a tile still fits the cache.
LANES = 64
POSITIONS = 16
TINY = np.float32(1e-15)

_ROUND = np.float32(1.5 * 2**23)
_FRACTION = np.int32(0x7FFFFF)
_HALF_WAY = np.int32(0x400000)
_LARGEST = np.float32(np.finfo(np.float32).max)
_TENTH = np.float32(0.1)
_ZERO = np.float32(0)
_PASSES = 5


@numba.njit(inline="always", error_model="numpy")
def nearest_int(x):
    """As `labkit.quantize.kquants_symmetric.nearest_int`, for one number, NaN and all."""
    bits = np.float32(x + _ROUND).view(np.int32)
    return np.int32((bits & _FRACTION) - _HALF_WAY)


@numba.njit(inline="always", error_model="numpy")
def _term(inverse, x, w, wx, low, high, wxq, wqq):
    """Add a position to sum(w x q) and sum(w q²)."""
    q = (inverse * x + _ROUND) - _ROUND
    q = min(max(q, low), high)
    return wxq + wx * q, wqq + w * q * q


@numba.njit(error_model="numpy", boundscheck=False)
def _sums(x, w, wx, inverse, low, high, wxq, wqq):
    """sum(w x q) and sum(w q²) of each lane, for codes rounded with ``inverse``; [LANES] each.

    The sixteen positions are written out in two halves, so that sums stay in registers.
    """
    for r in range(LANES):
        v, a, b = inverse[r], _ZERO, _ZERO
        a, b = _term(v, x[0, r], w[0, r], wx[0, r], low, high, a, b)
        a, b = _term(v, x[1, r], w[1, r], wx[1, r], low, high, a, b)
        a, b = _term(v, x[2, r], w[2, r], wx[2, r], low, high, a, b)
        a, b = _term(v, x[3, r], w[3, r], wx[3, r], low, high, a, b)
        a, b = _term(v, x[4, r], w[4, r], wx[4, r], low, high, a, b)
        a, b = _term(v, x[5, r], w[5, r], wx[5, r], low, high, a, b)
        a, b = _term(v, x[6, r], w[6, r], wx[6, r], low, high, a, b)
        a, b = _term(v, x[7, r], w[7, r], wx[7, r], low, high, a, b)
        wxq[r], wqq[r] = a, b
    for r in range(LANES):
        v, a, b = inverse[r], wxq[r], wqq[r]
        a, b = _term(v, x[8, r], w[8, r], wx[8, r], low, high, a, b)
        a, b = _term(v, x[9, r], w[9, r], wx[9, r], low, high, a, b)
        a, b = _term(v, x[10, r], w[10, r], wx[10, r], low, high, a, b)
        a, b = _term(v, x[11, r], w[11, r], wx[11, r], low, high, a, b)
        a, b = _term(v, x[12, r], w[12, r], wx[12, r], low, high, a, b)
        a, b = _term(v, x[13, r], w[13, r], wx[13, r], low, high, a, b)
        a, b = _term(v, x[14, r], w[14, r], wx[14, r], low, high, a, b)
        a, b = _term(v, x[15, r], w[15, r], wx[15, r], low, high, a, b)
        wxq[r], wqq[r] = a, b


@numba.njit(error_model="numpy", boundscheck=False)
def _find_largest(x, w, wx, largest, magnitude):
    """Each lane's number of largest magnitude, the first of several; and wx = w * x.

    Numbers that are not finite become 0 in ``x`` afterwards: their code is 0, as in ggml, while
    ``wx`` still carries them into the sums. (Only scales can be so: weights are checked.)
    """
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
            wx[i, r] = w[i, r] * here
            x[i, r] = here if size <= _LARGEST else _ZERO


@numba.njit(error_model="numpy", boundscheck=False)
def search_scales(x, w, wx, q, levels, scale, lanes):
    """`labkit.quantize.kquants_symmetric.search_scale` for LANES sub-blocks.

    Args:
        x, w: float32 [16, LANES], numbers and their weights.
        wx: float32 [16, LANES], scratch.
        q: float32 [16, LANES]; written: codes from -levels to levels - 1; all -levels for a lane
            of zeros, which is how ggml leaves it.
        levels: float32.
        scale: float32 [LANES]; written.
        lanes: float32 [7, LANES], scratch.
    """
    largest, magnitude, best, inverse = lanes[0], lanes[1], lanes[2], lanes[3]
    wxq, wqq, chosen = lanes[4], lanes[5], lanes[6]
    low, high = -levels, levels - np.float32(1)
    _find_largest(x, w, wx, largest, magnitude)
    for candidate in range(19):
        # 0, -9 … -1, 1 … 9
        step = (candidate - 10 if candidate < 10 else candidate - 9) if candidate else 0
        target = -(levels + _TENTH * np.float32(step))
        for r in range(LANES):
            inverse[r] = target / largest[r]
        _sums(x, w, wx, inverse, low, high, wxq, wqq)
        _keep_better(candidate == 0, wxq, wqq, inverse, scale, best, chosen)
    _round_all(x, q, levels, chosen)
    _leave_empty(magnitude, levels, scale, q)


@numba.njit(error_model="numpy", boundscheck=False)
def _keep_better(first, wxq, wqq, inverse, scale, best, chosen):
    """Take the candidate in the lanes where its error is smaller; the first is taken anyway."""
    if first:
        for r in range(LANES):
            scale[r] = wxq[r] / wqq[r] if wqq[r] != _ZERO else _ZERO
            best[r] = scale[r] * wxq[r]
            chosen[r] = inverse[r]
        return
    for r in range(LANES):
        fitted = wxq[r] / wqq[r]
        better = (wqq[r] > _ZERO) & (wxq[r] * wxq[r] > best[r] * wqq[r])
        scale[r] = fitted if better else scale[r]
        best[r] = fitted * wxq[r] if better else best[r]
        chosen[r] = inverse[r] if better else chosen[r]


@numba.njit(error_model="numpy", boundscheck=False)
def descend(x, w, wx, q, levels, scale, lanes):
    """Q3_K's codes without an importance, one position after the other (ggml, make_q3_quants).

    Arguments are those of `search_scales`, but ``w`` is scratch too: it becomes x².
    """
    largest, magnitude, inverse = lanes[0], lanes[1], lanes[2]
    wxq, wqq = lanes[3], lanes[4]
    for i in range(POSITIONS):
        for r in range(LANES):
            w[i, r] = x[i, r] * x[i, r]
    _find_largest(x, w, wx, largest, magnitude)
    for r in range(LANES):
        inverse[r] = -levels / largest[r]
        wxq[r] = _ZERO
        wqq[r] = _ZERO
    _round_all(x, q, levels, inverse)
    for i in range(POSITIONS):
        for r in range(LANES):
            wxq[r] += wx[i, r] * q[i, r]
            wqq[r] += w[i, r] * q[i, r] * q[i, r]
    for _ in range(_PASSES):
        moved = 0
        for i in range(POSITIONS):
            moved += _move_position(i, x, w, wx, q, wxq, wqq, levels)
        if moved == 0:
            break
    for r in range(LANES):
        scale[r] = wxq[r] / wqq[r] if wqq[r] > _ZERO else _ZERO
    _leave_empty(magnitude, levels, scale, q)


@numba.njit(error_model="numpy", boundscheck=False)
def _move_position(i, x, w, wx, q, wxq, wqq, levels):
    """Let position ``i`` of every lane look for a better code; returns how many found one."""
    low, high = np.int32(-levels), np.int32(levels) - np.int32(1)
    moved = np.int32(0)
    for r in range(LANES):
        old = q[i, r]
        others_wxq = wxq[r] - wx[i, r] * old
        others_wqq = wqq[r] - w[i, r] * old * old
        # The quotient may be anything, hence the rounding that minds it.
        rounded = nearest_int(x[i, r] * others_wqq / others_wxq)
        new = np.float32(min(max(rounded, low), high))
        new_wxq = others_wxq + wx[i, r] * new
        new_wqq = others_wqq + w[i, r] * new * new
        better = (others_wxq > _ZERO) & (new != old) & (new_wqq > _ZERO)
        better &= new_wxq * new_wxq * wqq[r] > wxq[r] * wxq[r] * new_wqq
        q[i, r] = new if better else old
        wxq[r] = new_wxq if better else wxq[r]
        wqq[r] = new_wqq if better else wqq[r]
        moved += np.int32(better)
    return moved


@numba.njit(error_model="numpy", boundscheck=False)
def _round_all(x, q, levels, inverse):
    low, high = -levels, levels - np.float32(1)
    for i in range(POSITIONS):
        for r in range(LANES):
            q[i, r] = min(max((inverse[r] * x[i, r] + _ROUND) - _ROUND, low), high)


@numba.njit(error_model="numpy", boundscheck=False)
def _leave_empty(magnitude, levels, scale, q):
    for r in range(LANES):
        scale[r] = _ZERO if magnitude[r] < TINY else scale[r]
    for i in range(POSITIONS):
        for r in range(LANES):
            q[i, r] = -levels if magnitude[r] < TINY else q[i, r]
