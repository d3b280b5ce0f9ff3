"""Scales and codes of Q3_K's and Q6_K's sub-blocks, many at a time.

The lanes of a vector register are independent sub-blocks: a tile is 16 rows of LANES numbers, row i
holding position i of every lane. So each step of the search is one instruction for sixteen lanes,
and every lane adds its terms in ggml's order. Loops over lanes have no branches; what a lane does
not want, it does not keep.

Tiles are arrays of one axis: the compiler then knows how far apart their rows are, and tests once,
not row by row, that they do not overlap.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.kquants_symmetric import TINY

# Sub-blocks side by side; with fewer, the compiler unrolls loops over lanes instead of using lanes.
LANES = 64
TILE = 16 * LANES

_ROUND = np.float32(1.5 * 2**23)
_FRACTION = np.int32(0x7FFFFF)
_HALF_WAY = np.int32(0x400000)
_FINITE = np.float32(np.finfo(np.float32).max)
_TENTH = np.float32(0.1)
_ZERO, _ONE = np.float32(0), np.float32(1)
_PASSES = 5


@numba.njit(inline="always", error_model="numpy")
def nearest_int(x):
    """As `labkit.quantize.kquants_symmetric.nearest_int`, for one number, NaN and all."""
    bits = np.float32(x + _ROUND).view(np.int32)
    return np.int32((bits & _FRACTION) - _HALF_WAY)


@numba.njit(error_model="numpy", boundscheck=False)
def search_scales(x, w, wx, q, levels, scale, lanes):
    """`labkit.quantize.kquants_symmetric.search_scale` for LANES sub-blocks.

    Args:
        x, w: float32 [16 * LANES], numbers and their weights.
        wx: float32 [16 * LANES], scratch.
        q: float32 [16 * LANES]; written: codes from -levels to levels - 1; all -levels for a lane
            of zeros, which is how ggml leaves it.
        levels: float32.
        scale: float32 [LANES]; written.
        lanes: float32 [7, LANES], scratch.
    """
    largest, magnitude, best, inverse = lanes[0], lanes[1], lanes[2], lanes[3]
    wxq, wqq, chosen = lanes[4], lanes[5], lanes[6]
    _find_largest(x, w, wx, largest, magnitude)
    for candidate in range(19):
        # 0, -9 … -1, 1 … 9
        step = (candidate - 10 if candidate < 10 else candidate - 9) if candidate else 0
        target = -(levels + _TENTH * np.float32(step))
        for r in range(LANES):
            inverse[r] = target / largest[r]
        _sums(x, w, wx, inverse, -levels, levels - _ONE, wxq, wqq)
        _keep_better(candidate == 0, wxq, wqq, inverse, scale, best, chosen)
    _round_all(x, q, levels, chosen)
    _leave_empty(magnitude, levels, scale, q)


@numba.njit(error_model="numpy", boundscheck=False)
def _find_largest(x, w, wx, largest, magnitude):
    """Each lane's number of largest magnitude, the first of several; and wx = w * x.

    Numbers that are not finite become 0 in ``x`` afterwards: their code is 0, as in ggml, while
    ``wx`` still carries them into the sums. (Only scales can be so: weights are checked.)
    """
    for r in range(LANES):
        largest[r] = _ZERO
        magnitude[r] = _ZERO
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            here = x[row + r]
            size = abs(here)
            larger = size > magnitude[r]
            largest[r] = here if larger else largest[r]
            magnitude[r] = size if larger else magnitude[r]
    for i in range(TILE):
        wx[i] = w[i] * x[i]
        x[i] = x[i] if abs(x[i]) <= _FINITE else _ZERO


@numba.njit(inline="always", error_model="numpy")
def _term(inverse, x, w, wx, low, high, wxq, wqq):
    """Add a position to sum(w x q) and sum(w q²)."""
    q = (inverse * x + _ROUND) - _ROUND
    q = min(max(q, low), high)
    return wxq + wx * q, wqq + w * q * q


@numba.njit(error_model="numpy", boundscheck=False)
def _sums(x, w, wx, inverse, low, high, wxq, wqq):
    """sum(w x q) and sum(w q²) of each lane, for codes rounded with ``inverse``; [LANES] each.

    The sixteen positions are written out, so that the sums stay in registers.
    """
    for r in range(LANES):
        v, a, b = inverse[r], _ZERO, _ZERO
        i = r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 2 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 3 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 4 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 5 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 6 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 7 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 8 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 9 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 10 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 11 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 12 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 13 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 14 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        i = 15 * LANES + r
        a, b = _term(v, x[i], w[i], wx[i], low, high, a, b)
        wxq[r], wqq[r] = a, b


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
        # All is read before anything is written, or the compiler must fear that they overlap.
        a, b, v = wxq[r], wqq[r], inverse[r]
        old_scale, old_best, old_chosen = scale[r], best[r], chosen[r]
        better = (b > _ZERO) & (a * a > old_best * b)
        scale[r] = a / b if better else old_scale
        best[r] = a / b * a if better else old_best
        chosen[r] = v if better else old_chosen


@numba.njit(error_model="numpy", boundscheck=False)
def descend(x, w, wx, q, levels, scale, lanes):
    """Q3_K's codes without an importance, one position after the other (ggml, make_q3_quants).

    Arguments are those of `search_scales`, but ``w`` is scratch too: it becomes x².
    """
    largest, magnitude, inverse = lanes[0], lanes[1], lanes[2]
    wxq, wqq, new_wxq, new_wqq = lanes[3], lanes[4], lanes[5], lanes[6]
    moved = np.empty(LANES, np.int32)
    for i in range(TILE):
        w[i] = x[i] * x[i]
    _find_largest(x, w, wx, largest, magnitude)
    for r in range(LANES):
        inverse[r] = -levels / largest[r]
    _round_all(x, q, levels, inverse)
    for r in range(LANES):
        wxq[r] = _ZERO
        wqq[r] = _ZERO
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            wxq[r] += wx[row + r] * q[row + r]
            wqq[r] += w[row + r] * q[row + r] * q[row + r]
    for _ in range(_PASSES):
        for r in range(LANES):
            moved[r] = 0
        # Sums go to and fro between two places: it is slow to read what was just written in part.
        for row in range(0, TILE, 2 * LANES):
            _move_row(row, x, w, wx, q, levels, wxq, wqq, new_wxq, new_wqq, moved)
            _move_row(row + LANES, x, w, wx, q, levels, new_wxq, new_wqq, wxq, wqq, moved)
        if not moved.any():
            break
    for r in range(LANES):
        scale[r] = wxq[r] / wqq[r] if wqq[r] > _ZERO else _ZERO
    _leave_empty(magnitude, levels, scale, q)


@numba.njit(error_model="numpy", boundscheck=False)
def _move_row(row, x, w, wx, q, levels, wxq, wqq, new_wxq, new_wqq, moved):
    """Let one position of every lane look for a better code; note in ``moved`` who found one."""
    low, high = -levels, levels - _ONE
    for r in range(LANES):
        i = row + r
        old, a, b = q[i], wxq[r], wqq[r]
        others_a = a - wx[i] * old
        others_b = b - w[i] * old * old
        # The quotient may be anything, hence the rounding that minds it.
        code = np.float32(nearest_int(x[i] * others_b / others_a))
        code = min(max(code, low), high)
        new_a = others_a + wx[i] * code
        new_b = others_b + w[i] * code * code
        better = (others_a > _ZERO) & (code != old) & (new_b > _ZERO)
        better &= new_a * new_a * b > a * a * new_b
        q[i] = code if better else old
        new_wxq[r] = new_a if better else a
        new_wqq[r] = new_b if better else b
        moved[r] |= np.int32(better)


@numba.njit(error_model="numpy", boundscheck=False)
def _round_all(x, q, levels, inverse):
    """Codes of the whole tile, [16 * LANES]."""
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            code = (inverse[r] * x[row + r] + _ROUND) - _ROUND
            q[row + r] = min(max(code, -levels), levels - _ONE)


@numba.njit(error_model="numpy", boundscheck=False)
def _leave_empty(magnitude, levels, scale, q):
    """Lanes of zeros: a scale of 0, and codes that are stored as 0."""
    for r in range(LANES):
        scale[r] = _ZERO if magnitude[r] < TINY else scale[r]
    for row in range(0, TILE, LANES):
        for r in range(LANES):
            q[row + r] = -levels if magnitude[r] < TINY else q[row + r]
