"""How a super-block of Q2_K, Q4_K or Q5_K is written, compiled; the layouts are in `kquants`."""

from __future__ import annotations

import numpy as np

from labkit.quantize.kquants_search_numba import code_of, compiled
from labkit.quantize.lanes import LANES, load, splat, store_bytes

_FOUR, _FIFTEEN = np.int32(4), np.int32(15)


@compiled
def write_scales(out, place, bits, d, dmin, scale_codes, minimum_codes, lane, known, subs):
    """Write d, dmin and the packed codes of one super-block; codes become what a reader sees.

    Args:
        out: uint8; the super-block begins at ``place``.
        bits: 2, 4 or 5.
        d, dmin: the bits of float16, uint16.
        scale_codes, minimum_codes: float32 [16 subs], bytes; those of the super-block at
            [16 sub + lane].
        known: whether there is an importance.
    """
    halves = place + 80 if bits == 2 else place
    out[halves], out[halves + 1] = d & 0xFF, d >> 8
    out[halves + 2], out[halves + 3] = dmin & 0xFF, dmin >> 8
    if bits == 2:
        for sub in range(subs):
            at = LANES * sub + lane
            packed = np.uint8(np.uint8(scale_codes[at]) | np.uint8(minimum_codes[at]) << 4)
            out[place + sub] = packed
            scale_codes[at], minimum_codes[at] = packed & 15, packed >> 4
        return
    place += 4
    for sub in range(4):
        at, above = LANES * sub + lane, LANES * (sub + 4) + lane
        s, more_s = np.int32(scale_codes[at]), np.int32(scale_codes[above])
        m, more_m = np.int32(minimum_codes[at]), np.int32(minimum_codes[above])
        if bits == 5:  # with an importance, Q4_K lets rounding errors overflow
            s, more_s, m, more_m = min(s, 63), min(more_s, 63), min(m, 63), min(more_m, 63)
        first, second = (s | more_s >> 4 << 6) & 0xFF, (m | more_m >> 4 << 6) & 0xFF
        rest = more_s & 15 | (more_m & 15) << 4
        out[place + sub], out[place + 4 + sub], out[place + 8 + sub] = first, second, rest
        scale_codes[at], minimum_codes[at] = first & 63, second & 63
        scale_codes[above] = rest & 15 | first >> 6 << 4
        minimum_codes[above] = rest >> 4 | second >> 6 << 4


@compiled
def write_codes(out, place, bits, x, begin, lane, scale, minimum, kept_step, kept_low):
    """Take the codes of x[begin : begin + 256] for the stored scales and write them at ``place``.

    Args:
        scale, minimum: float32 [16 subs], as a reader of the block will see them.
        kept_step, kept_low: float32 [16 subs], what the search's codes come from.
    """
    given = (scale, minimum, kept_step, kept_low)
    if bits == 2:
        for half in range(2):
            for part in range(2):
                packed = splat(np.int32(0))
                for quarter in range(4):
                    k = 128 * half + 32 * quarter + 16 * part
                    code = _codes(x, begin + k, k // 16 * LANES + lane, np.int32(3), given)
                    packed = packed | code << splat(np.int32(2 * quarter))
                store_bytes(out, place + 16 + 32 * half + 16 * part, packed)
        return
    top = np.int32((1 << bits) - 1)
    low_bits = place + (16 if bits == 4 else 48)
    for part in range(2):
        fifth = splat(np.int32(0))
        for pair in range(4):
            k = 64 * pair + 16 * part
            first = _codes(x, begin + k, 2 * pair * LANES + lane, top, given)
            second = _codes(x, begin + k + 32, (2 * pair + 1) * LANES + lane, top, given)
            fifth = fifth | (first >> splat(_FOUR)) << splat(np.int32(2 * pair))
            fifth = fifth | (second >> splat(_FOUR)) << splat(np.int32(2 * pair + 1))
            packed = first & splat(_FIFTEEN) | (second & splat(_FIFTEEN)) << splat(_FOUR)
            store_bytes(out, low_bits + 32 * pair + 16 * part, packed)
        if bits == 5:
            store_bytes(out, place + 16 + 16 * part, fifth)


@compiled
def _codes(x, start, at, top, given):
    """Sixteen neighbours of one sub-block, whose numbers are at ``at``."""
    scale, minimum, kept_step, kept_low = given
    values = load(x, start)
    if scale[at] == 0:  # every code means the same: those of the search stay
        return code_of(splat(kept_step[at]) * (values - splat(kept_low[at])), splat(top))
    return code_of((values + splat(minimum[at])) / splat(scale[at]), splat(top))
