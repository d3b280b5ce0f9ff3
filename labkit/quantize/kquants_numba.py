"""Q2_K, Q4_K and Q5_K, compiled: the bytes of `labkit.quantize.kquants`, faster.

Sixteen super-blocks at a time, one in each lane of a vector register (`labkit.quantize.lanes`).
They are turned on their side first: weight k of all sixteen lies at [16 k : 16 k + 16]. So one
search serves a sub-block of each, and the sums of a block keep their order. Only the last step, the
codes for the stored scales, has no sums: its lanes are neighbouring weights, as in memory.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import run
from labkit.quantize.gguf_types import BLOCK_TYPES
from labkit.quantize.half_numba import from_half, to_half
from labkit.quantize.kquants import FINE, KQUANTS, SUPER_BLOCK
from labkit.quantize.kquants_packing_numba import write_codes, write_scales
from labkit.quantize.kquants_search_numba import affine_search, compiled, nearest_int, scale_search
from labkit.quantize.lanes import (
    LANES,
    absolute,
    load,
    select,
    splat,
    square_root,
    store,
    to_floats,
)

_ZERO = np.float32(0)
_TWO = np.float32(2)
_WEIGHTS = np.float32(SUPER_BLOCK)
_SUB_BLOCK = np.float32(32)
_BYTE = np.int32(0xFF)


def _encoder(name: str):
    kind = KQUANTS[name]
    bits = {3: 2, 15: 4, 31: 5}[kind.levels]
    plain = np.array(kind.search.spreads(kind.levels), np.float32)
    fine = np.array(FINE.spreads(kind.levels), np.float32)
    nbytes = BLOCK_TYPES[name].nbytes

    def encode(x: np.ndarray, importance: np.ndarray | None, threads: int = 1) -> np.ndarray:
        out = np.empty(x.size // SUPER_BLOCK * nbytes, np.uint8)
        known = importance is not None
        weights = importance if known else np.ones(1, np.float32)
        spreads = fine if known else plain
        run(_serial, _parallel, x.size, threads, x.reshape(-1), weights, known, bits, spreads, out)
        return out.reshape(len(x), -1)

    encode.__doc__ = f"Encode float32 ``x`` [rows, columns] as {name}; see `kquants`."
    return encode


ENCODE = {name: _encoder(name) for name in KQUANTS}


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial(x, importance, known, bits, spreads, out):
    for first in range(0, x.size // SUPER_BLOCK, LANES):
        _encode_sixteen(first, x, importance, known, bits, spreads, out)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel(x, importance, known, bits, spreads, out):
    for run_of in numba.prange((x.size // SUPER_BLOCK + LANES - 1) // LANES):
        _encode_sixteen(run_of * LANES, x, importance, known, bits, spreads, out)


@compiled
def _encode_sixteen(first, x, importance, known, bits, spreads, out):
    """Encode the sixteen super-blocks from ``first`` on, or as many as there are."""
    size = 16 if bits == 2 else 32
    subs = SUPER_BLOCK // size
    count = min(LANES, x.size // SUPER_BLOCK - first)
    columns = np.zeros(SUPER_BLOCK * LANES, np.float32)
    _turn(x, first, count, columns)
    weight, codes = np.empty(size * LANES, np.float32), np.empty(size * LANES, np.float32)
    # One number for each sub-block of each super-block, [16 sub-block + lane].
    scale, minimum = np.empty(subs * LANES, np.float32), np.empty(subs * LANES, np.float32)
    kept_step, kept_low = np.empty(subs * LANES, np.float32), np.empty(subs * LANES, np.float32)
    weight_sums = np.empty(subs * LANES, np.float32)
    variance = splat(_ZERO)
    if known:
        important = np.zeros(SUPER_BLOCK * LANES, np.float32)
        _turn_importance(importance, first, count, important)
        variance = _variance(columns, bits)
    else:
        important = columns

    levels = np.int32((1 << bits) - 1)
    for sub in range(subs):
        start = sub * size * LANES
        if known:
            total = _important_weight(columns, important, start, variance, size, weight)
            store(weight_sums, sub * LANES, total)
        else:
            _weight(columns, start, size, bits, weight)
        found = affine_search(
            columns, start, weight, codes, size, levels, spreads, bits == 2 and not known
        )
        store(scale, sub * LANES, found[0])
        store(minimum, sub * LANES, found[1])
        store(kept_step, sub * LANES, found[2])
        store(kept_low, sub * LANES, found[3])

    scale_codes = np.empty(subs * LANES, np.float32)
    minimum_codes = np.empty(subs * LANES, np.float32)
    top = np.int32(15 if bits == 2 else 63)
    steps = np.empty(2 * LANES, np.float32)
    if known:
        store(steps, 0, scale_search(scale, weight_sums, scale_codes, subs, top))
        store(steps, LANES, scale_search(minimum, weight_sums, minimum_codes, subs, top))
    else:
        store(steps, 0, _round_scales(scale, scale_codes, subs, top))
        store(steps, LANES, _round_scales(minimum, minimum_codes, subs, top))

    nbytes = out.size // (x.size // SUPER_BLOCK)
    for lane in range(count):
        d, dmin = to_half(steps[lane]), to_half(steps[LANES + lane])
        place = (first + lane) * nbytes
        # From here on, the grids and the codes of this super-block alone.
        write_scales(out, place, bits, d, dmin, scale_codes, minimum_codes, lane, known, subs)
        wide_d = from_half(d & np.uint16(0xFF), d >> np.uint16(8))
        wide_dmin = from_half(dmin & np.uint16(0xFF), dmin >> np.uint16(8))
        for sub in range(subs):
            at = sub * LANES + lane
            scale[at] = wide_d * scale_codes[at]
            minimum[at] = wide_dmin * minimum_codes[at]
        write_codes(
            out,
            place,
            bits,
            x,
            (first + lane) * SUPER_BLOCK,
            lane,
            scale,
            minimum,
            kept_step,
            kept_low,
        )


@compiled
def _turn(x, first, count, columns):
    """columns[16 k + lane] = weight k of super-block first + lane."""
    for lane in range(count):
        start = (first + lane) * SUPER_BLOCK
        for k in range(SUPER_BLOCK):
            columns[LANES * k + lane] = x[start + k]


@compiled
def _turn_importance(importance, first, count, columns):
    """The same for the importance of the super-blocks' columns."""
    blocks = importance.size // SUPER_BLOCK
    for lane in range(count):
        start = (first + lane) % blocks * SUPER_BLOCK
        for k in range(SUPER_BLOCK):
            columns[LANES * k + lane] = importance[start + k]


@compiled
def _variance(columns, bits):
    """The mean square of each super-block; twice that but for Q2_K."""
    total = splat(_ZERO)
    for k in range(SUPER_BLOCK):
        x = load(columns, LANES * k)
        total += x * x
    if bits != 2:
        total = splat(_TWO) * total
    return total / splat(_WEIGHTS)


@compiled
def _important_weight(columns, important, start, variance, size, weight):
    """weight = importance * sqrt(variance + x²); returns its sum over the sub-block."""
    total = splat(_ZERO)
    for k in range(size):
        x = load(columns, start + LANES * k)
        w = load(important, start + LANES * k) * square_root(variance + x * x)
        total += w
        store(weight, LANES * k, w)
    return total


@compiled
def _weight(columns, start, size, bits, weight):
    """weight = |x|, and rms + |x| but for Q2_K."""
    rms = splat(_ZERO)
    if bits != 2:
        for k in range(size):
            x = load(columns, start + LANES * k)
            rms += x * x
        rms = square_root(rms / splat(_SUB_BLOCK))
    for k in range(size):
        store(weight, LANES * k, rms + absolute(load(columns, start + LANES * k)))


@compiled
def _round_scales(values, codes, subs, top):
    """The step of a grid whose last step is the largest value; codes are bytes, as float32."""
    zero, levels = splat(_ZERO), splat(np.float32(top))
    high = zero
    for k in range(subs):
        value = load(values, LANES * k)
        high = select(value > high, value, high)
    per_step = select(high > zero, levels / high, zero)
    for k in range(subs):
        code = nearest_int(per_step * load(values, LANES * k)) & splat(_BYTE)
        if top == 63:
            code = select(code < splat(top), code, splat(top))
        store(codes, LANES * k, to_floats(code))
    return high / levels
