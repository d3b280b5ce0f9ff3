"""Q4_0, Q4_1, Q5_0 and Q5_1 with an importance, compiled: sixteen blocks at a time, one a lane.

The same steps as `labkit.quantize.legacy_blocks`, the same roundings in the same order. A tile is
flat: position k of sixteen blocks is at [16 k : 16 k + 16].
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.half_numba import to_half
from labkit.quantize.kquants_search import SMALLEST_SCALE
from labkit.quantize.kquants_search_numba import affine_search, code_of, compiled, nearest_int
from labkit.quantize.lanes import LANES, absolute, load, select, splat, store, to_floats
from labkit.quantize.legacy_rounding_numba import write_codes, write_half

_SIZE = 32
_ZERO = np.float32(0)


@numba.njit(error_model="numpy")
def _variances(x):
    """The mean square of each row, each summed in order; many rows side by side."""
    total = np.zeros(x.shape[0], np.float32)
    for first in range(0, x.shape[0], LANES):
        rows, sums = x[first : first + LANES], total[first : first + LANES]
        for j in range(x.shape[1]):
            for r in range(sums.size):
                sums[r] += rows[r, j] * rows[r, j]
    for r in range(total.size):
        total[r] /= np.float32(x.shape[1])
    return total


@numba.njit(error_model="numpy")
def _turn(x, importance, variance, first, count, tile, weight):
    """Lay ``count`` blocks from number ``first`` on side by side, with importance * sqrt(σ² + x²).

    Lanes that are left over keep what they had: nobody reads them.
    """
    blocks = x.shape[1] // _SIZE
    for lane in range(count):
        row, start = (first + lane) // blocks, (first + lane) % blocks * _SIZE
        values, important = x[row, start : start + _SIZE], importance[start : start + _SIZE]
        for k in range(_SIZE):
            value = values[k]
            tile[LANES * k + lane] = value
            weight[LANES * k + lane] = important[k] * np.sqrt(variance[row] + value * value)


@compiled
def _signed_code(x, bottom, top):
    code = nearest_int(x)
    code = select(code < top, code, top)
    return select(code > bottom, code, bottom)


@compiled
def symmetric_search(x, weight, codes, levels):
    """Choose a scale for each of sixteen blocks; `kquants_symmetric.search_scale` says how.

    Args:
        x, weight: float32 [512], tiles.
        codes: float32 [512]; written: codes + levels, 0 for a block of zeros.
        levels: int32; codes run from -levels to levels - 1.

    Returns:
        The scales, sixteen lanes.
    """
    zero = splat(_ZERO)
    bottom, top = splat(np.int32(-levels)), splat(np.int32(levels - np.int32(1)))
    largest = magnitude = zero
    for k in range(_SIZE):
        value = load(x, LANES * k)
        larger = absolute(value) > magnitude
        largest = select(larger, value, largest)
        magnitude = select(larger, absolute(value), magnitude)
    scale = best = kept = zero
    for candidate in range(19):
        # 0, -9 … -1, 1 … 9
        step = (candidate - 10 if candidate < 10 else candidate - 9) if candidate else 0
        spread = -(np.float32(levels) + np.float32(0.1) * np.float32(step))
        inverse = splat(np.float32(spread)) / largest
        product_sum = square_sum = zero
        for k in range(_SIZE):
            value, w = load(x, LANES * k), load(weight, LANES * k)
            code = to_floats(_signed_code(inverse * value, bottom, top))
            product_sum += w * value * code
            square_sum += w * code * code
        fitted = product_sum / square_sum
        if candidate == 0:
            # Taken as it is, NaN and all; only a sum of 0 gives no scale.
            scale = select(square_sum == zero, zero, fitted)
            best, kept = scale * product_sum, inverse
        else:
            better = (square_sum > zero) & (product_sum * product_sum > best * square_sum)
            scale = select(better, fitted, scale)
            best = select(better, fitted * product_sum, best)
            kept = select(better, inverse, kept)
    empty = magnitude < splat(SMALLEST_SCALE)
    for k in range(_SIZE):
        code = to_floats(_signed_code(kept * load(x, LANES * k), bottom, top))
        store(codes, LANES * k, select(empty, zero, code + splat(np.float32(levels))))
    return select(empty, zero, scale)


@numba.njit(error_model="numpy")
def _write_block(block, codes, lane, spare, nibbles, fifths):
    """Pack the codes of one lane into its block."""
    for k in range(_SIZE):
        spare[k] = np.int32(codes[LANES * k + lane])
    write_codes(spare, block, nibbles, fifths)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def signed(x, importance, out, levels, nibbles, fifths):
    """Q4_0 (levels 8) and Q5_0 (16): x [rows, columns] to ``out`` [blocks, bytes]."""
    tile, weight = np.zeros(_SIZE * LANES, np.float32), np.zeros(_SIZE * LANES, np.float32)
    codes, scale = np.empty(_SIZE * LANES, np.float32), np.empty(LANES, np.float32)
    spare = np.empty(_SIZE, np.int32)
    variance = _variances(x)
    for first in range(0, out.shape[0], LANES):
        count = min(LANES, out.shape[0] - first)
        _turn(x, importance, variance, first, count, tile, weight)
        store(scale, 0, symmetric_search(tile, weight, codes, np.int32(levels)))
        for lane in range(count):
            write_half(out[first + lane], 0, to_half(scale[lane]))
            _write_block(out[first + lane], codes, lane, spare, nibbles, fifths)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def affine(x, importance, spreads, out, last, nibbles, fifths):
    """Q4_1 (last 15) and Q5_1 (31): x [rows, columns] to ``out`` [blocks, bytes]."""
    tile, weight = np.zeros(_SIZE * LANES, np.float32), np.zeros(_SIZE * LANES, np.float32)
    codes, ends = np.empty(_SIZE * LANES, np.float32), np.empty(2 * LANES, np.float32)
    spare = np.empty(_SIZE, np.int32)
    variance, top = _variances(x), np.int32(last)
    for first in range(0, out.shape[0], LANES):
        count = min(LANES, out.shape[0] - first)
        _turn(x, importance, variance, first, count, tile, weight)
        scale, minimum, step, low = affine_search(
            tile, 0, weight, codes, _SIZE, top, spreads, False
        )
        store(ends, 0, scale)
        store(ends, LANES, minimum)
        for k in range(_SIZE):
            code = code_of(step * (load(tile, LANES * k) - low), splat(top))
            store(codes, LANES * k, to_floats(code))
        for lane in range(count):
            write_half(out[first + lane], 0, to_half(ends[lane]))
            write_half(out[first + lane], 2, to_half(-ends[LANES + lane]))
            _write_block(out[first + lane], codes, lane, spare, nibbles, fifths)
