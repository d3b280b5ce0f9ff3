"""IQ4_NL's and IQ4_XS's nearest level and search for a scale, compiled: sixteen blocks at a time.

Each lane has a block of 32 (`labkit.quantize.lanes`), and adds its terms in ggml's order.

The nearest of the 16 levels is found without branches. Between two levels lies a boundary, their
middle, which belongs to the upper. No two boundaries round to the same multiple of 8: so x / 8,
rounded, says which one boundary is still in question, and what the level is on either side of it.
Where the processor cannot look that up, all 15 boundaries are compared with, one after the other.

For any float32 that is ggml's answer (best_index_int8): near a boundary, the differences that it
compares are exact.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.iq4 import LEVELS
from labkit.quantize.kquants_search import SMALLEST_SCALE
from labkit.quantize.lanes import LANES, absolute, bits_of, load, negative, select, splat
from labkit.quantize.lookup16 import AVAILABLE
from labkit.quantize.lookup32 import look_up

BLOCK = 32
_BOUNDARIES = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
_ZERO, _ONE = np.float32(0), np.float32(1)
_FIRST_LEVEL = LEVELS[0]
_TRIES = 7
_ROUND = np.float32(1.5 * 2**23)
_EIGHTH = np.float32(1 / 8)
# As multiples of 8: beyond them lie no boundaries, and 32 numbers fit the table.
_LOWEST, _HIGHEST = np.float32(-16), np.float32(15)


def _tables() -> np.ndarray:
    """Three tables of 32, float32: the boundary near 8 k, the index below it, and that above.

    Place k % 32 is for k. Where there is no boundary, both indices are the same.
    """
    tables = np.zeros((3, 32), np.float32)
    nearest = np.rint(_BOUNDARIES / 8)
    for k in range(-16, 16):
        below, here = (nearest < k).sum(), (nearest == k).sum()
        boundary = _BOUNDARIES[below] if here else 0
        tables[:, k % 32] = boundary, below, below + here
    return tables


_NEAR = _tables()
_INDEX_TABLES = _NEAR.ravel()
_LEVEL_TABLES = np.concatenate([_NEAR[0], *LEVELS[_NEAR[1:].astype(int)]])
_ALL_INDICES = np.arange(16, dtype=np.float32)

compiled = numba.njit(error_model="numpy", boundscheck=False)


@compiled
def _staircase(x, tables, steps):
    """steps[index of the level nearest to x], sixteen times; NaN takes the last, as in ggml."""
    if AVAILABLE:
        k = x * splat(_EIGHTH)
        k = select(k < splat(_HIGHEST), k, splat(_HIGHEST))
        k = select(k > splat(_LOWEST), k, splat(_LOWEST))
        place = bits_of(k + splat(_ROUND))
        below, above = look_up(tables, BLOCK, place), look_up(tables, 2 * BLOCK, place)
        return select(x < look_up(tables, 0, place), below, above)
    found = splat(steps[0])
    for i in range(15):
        found = select(x < splat(_BOUNDARIES[i]), found, splat(steps[i + 1]))
    return found


@compiled
def nearest_level(x):
    """The level nearest to each lane of ``x``."""
    return _staircase(x, _LEVEL_TABLES, LEVELS)


@compiled
def nearest_index(x):
    """The index of that level, int32; of its bits the lowest 8 count."""
    return bits_of(_staircase(x, _INDEX_TABLES, _ALL_INDICES) + splat(_ROUND))


@compiled
def search_scale(x, w):
    """The scales of sixteen blocks; see `labkit.quantize.iq4`.

    Args:
        x, w: float32 [32 * 16], numbers and their weights; number k of the blocks at [16 k :].
    """
    zero, one = splat(_ZERO), splat(_ONE)
    largest = magnitude = zero
    for k in range(0, BLOCK * LANES, LANES):
        here = load(x, k)
        size = absolute(here)
        larger = size > magnitude
        largest = select(larger, here, largest)
        magnitude = select(larger, size, magnitude)

    wqx, wqq = _sums(x, w, one / (negative(largest) / splat(_FIRST_LEVEL)))
    scale = select(wqq > zero, wqx / wqq, zero)
    best = scale * wqx
    for step in range(-_TRIES, _TRIES + 1):
        wqx, wqq = _sums(x, w, splat(np.float32(step) + _FIRST_LEVEL) / largest)
        fitted = wqx / wqq
        better = (wqq > zero) & (wqx * wqx > best * wqq)
        scale = select(better, fitted, scale)
        best = select(better, fitted * wqx, best)
    return select(magnitude < splat(SMALLEST_SCALE), zero, scale)


@compiled
def _sums(x, w, inverse):
    """sum(w q x) and sum(w q²) of the levels q that x times ``inverse`` is nearest to."""
    wqx = wqq = splat(_ZERO)
    for k in range(0, BLOCK * LANES, LANES):
        value = load(x, k)
        q = nearest_level(inverse * value)
        wq = load(w, k) * q
        wqx += wq * value
        wqq += wq * q
    return wqx, wqq
