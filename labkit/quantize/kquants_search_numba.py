"""The two searches of the K-quants, compiled: sixteen sub-blocks at a time, one a lane.

The same steps as `labkit.quantize.kquants_search`, the same roundings in the same order. Arrays
are flat: number k of sixteen blocks is at [16 k : 16 k + 16].
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.kquants_search import SMALLEST_SCALE
from labkit.quantize.lanes import (
    LANES,
    absolute,
    any_lane,
    bits_of,
    load,
    negative,
    select,
    splat,
    store,
    to_floats,
)

_ROUND = np.float32(1.5 * 2**23)
_MANTISSA = np.int32(0x007FFFFF)
_HALF_WAY = np.int32(0x00400000)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_NONE = np.int32(0)
_BYTE = np.int32(0xFF)

compiled = numba.njit(error_model="numpy", boundscheck=False)


@compiled
def nearest_int(x):
    """Round to int32 as ggml does; see `kquants_search.nearest_int`."""
    return (bits_of(x + splat(_ROUND)) & splat(_MANTISSA)) - splat(_HALF_WAY)


@compiled
def code_of(x, top):
    """Round x and clamp to 0 … top, all int32."""
    code = nearest_int(x)
    code = select(code < top, code, top)
    return select(code > splat(_NONE), code, splat(_NONE))


@compiled
def affine_search(x, start, weight, codes, size, levels, spreads, magnitude):
    """Fit x ≈ scale * code - minimum for the sixteen sub-blocks at ``start`` of ``x``.

    Args:
        x: float32, flat; number k of the sub-blocks at [start + 16 k].
        weight: float32 [16 size].
        codes: float32 [16 size], scratch.
        levels: int32.
        spreads: float32 array, of `Search.spreads`.
        magnitude: whether the error is absolute, not squared.

    Returns:
        scale, minimum; and per_step, low: those that the codes of the search come from.
    """
    zero, one, top = splat(_ZERO), splat(_ONE), splat(levels)
    low = high = load(x, start)
    w = load(weight, 0)
    weight_sum, x_sum = w, w * low
    for k in range(1, size):
        value, w = load(x, start + LANES * k), load(weight, LANES * k)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        weight_sum += w
        x_sum += w * value
    low = select(low > zero, zero, low)
    flat = high == low

    per_step = splat(np.float32(levels)) / (high - low)
    scale = one / per_step
    error = zero
    for k in range(size):
        value = load(x, start + LANES * k)
        code = to_floats(code_of(per_step * (value - low), top))
        off = scale * code + low - value
        off = absolute(off) if magnitude else off * off
        error += load(weight, LANES * k) * off
    kept_step, kept_low = per_step, low
    for spread in spreads:
        per_step = splat(spread) / (high - low)
        code_sum = square_sum = product_sum = zero
        for k in range(size):
            value, w = load(x, start + LANES * k), load(weight, LANES * k)
            code = to_floats(code_of(per_step * (value - low), top))
            store(codes, LANES * k, code)
            w = w * code
            code_sum += w
            square_sum += w * code
            product_sum += w * value
        determinant = weight_sum * square_sum - code_sum * code_sum
        slope = (weight_sum * product_sum - x_sum * code_sum) / determinant
        begin = (square_sum * x_sum - code_sum * product_sum) / determinant
        above = begin > zero
        slope = select(above, product_sum / square_sum, slope)
        begin = select(above, zero, begin)
        its_error = zero
        for k in range(size):
            off = slope * load(codes, LANES * k) + begin - load(x, start + LANES * k)
            off = absolute(off) if magnitude else off * off
            its_error += load(weight, LANES * k) * off
        better = (determinant > zero) & (its_error < error)
        kept_step = select(better, per_step, kept_step)
        kept_low = select(better, low, kept_low)
        scale = select(better, slope, scale)
        low = select(better, begin, low)
        error = select(better, its_error, error)
    # All equal: scale 0, code 0. Such lanes found NaN or no better line, so low is as it was.
    scale = select(flat, zero, scale)
    kept_step = select(flat, zero, kept_step)
    return scale, negative(low), kept_step, kept_low


@compiled
def scale_search(values, weight, codes, size, levels):
    """The grid 0 … levels for ``values``; see `kquants_search.scale_search`.

    Args:
        values, weight: float32 [16 size].
        codes: float32 [16 size]; written, each a byte.
        levels: int32.

    Returns:
        The step of the grid, sixteen lanes.
    """
    zero, one, top = splat(_ZERO), splat(_ONE), splat(levels)
    high = zero
    for k in range(size):
        value = load(values, LANES * k)
        high = select(high > value, high, value)
    per_step = splat(np.float32(levels)) / high
    scale = one / per_step
    error = zero
    for k in range(size):
        value = load(values, LANES * k)
        code = to_floats(nearest_int(per_step * value) & splat(_BYTE))
        off = value - scale * code
        error += load(weight, LANES * k) * off * off
    for tried in range(-4, 5):
        if tried == 0:
            continue
        spread = np.float32(0.1) * np.float32(tried) + np.float32(levels)
        candidate = splat(spread) / high
        scale = one / candidate
        its_error = zero
        for k in range(size):
            value = load(values, LANES * k)
            code = nearest_int(candidate * value)
            code = select(code < top, code, top)
            off = value - scale * to_floats(code)
            its_error += load(weight, LANES * k) * off * off
        better = its_error < error
        per_step = select(better, candidate, per_step)
        error = select(better, its_error, error)

    product_sum = square_sum = zero
    for k in range(size):
        value, w = load(values, LANES * k), load(weight, LANES * k)
        code = nearest_int(per_step * value)
        code = select(code < top, code, top)
        store(codes, LANES * k, to_floats(code & splat(_BYTE)))
        number = to_floats(code)
        product_sum += w * value * number
        square_sum += w * number * number
    for _ in range(5):
        moved = zero > zero
        for k in range(size):
            value, w, code = (
                load(values, LANES * k),
                load(weight, LANES * k),
                load(codes, LANES * k),
            )
            product = product_sum - w * value * code
            square = square_sum - w * code * code
            new = nearest_int(value * square / product)
            new = select(new < top, new, top)
            number = to_floats(new)
            changed = (product > zero) & (square > zero)
            product = product + w * value * number
            square = square + w * number * number
            closer = product * product * square_sum > product_sum * product_sum * square
            different = (number < code) | (number > code)
            changed = changed & closer & different
            store(codes, LANES * k, select(changed, to_floats(new & splat(_BYTE)), code))
            product_sum = select(changed, product, product_sum)
            square_sum = select(changed, square, square_sum)
            moved = moved | changed
        if not any_lane(moved):
            break
    found = select(square_sum > zero, product_sum / square_sum, zero)
    empty = high < splat(SMALLEST_SCALE)
    for k in range(size):
        store(codes, LANES * k, select(empty, zero, load(codes, LANES * k)))
    return select(empty, zero, found)
