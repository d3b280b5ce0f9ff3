"""A panel of sixteen int4 rows times int8 activations: one token, or four together.

    y[row] = scale_x * sum over groups of  scale * (sum of code * q  -  zero * sum of q)

A lane is a row. `byte_dot` multiplies four codes of each row with the same four q, and the sum of a
group begins at -zero * (sum of q), so that the zero-point costs one product a group. With several
tokens a register of codes is taken apart once. ``x``, ``codes`` and the like are addresses.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import next_codes_at, number_at, store_at, word_at
from labkit.kernels.cpu.int4_panel_groups import begin, scales_at, zeros_at
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import byte_dot, multiply_add
from labkit.quantize.lanes import splat, to_floats

_ZERO, _NONE, _LOW, _FOUR = np.float32(0), np.int32(0), np.int32(0x0F0F0F0F), np.int32(4)


@inlined
def _word(found, word, x, place):
    """A register of codes: slots place … place + 3, and sixteen slots on."""
    found = byte_dot(found, word & splat(_LOW), word_at(x + place))
    return byte_dot(found, (word >> splat(_FOUR)) & splat(_LOW), word_at(x + place + 16))


@inlined
def _both(some, more, low, high, x):
    """The same, in two sums."""
    return byte_dot(some, low, word_at(x)), byte_dot(more, high, word_at(x + 16))


@compiled
def one_token(codes, scales, half, zeros, groups, group_slots, x, sums, scale_x, out):
    """Sixteen rows with one token: two sums, so that products need not wait for each other."""
    result = splat(_ZERO)
    for group in range(groups):
        a = begin(zeros_at(zeros, group), sums, group)
        b = splat(_NONE)
        for place in range(group * group_slots, (group + 1) * group_slots, 32):
            words = codes + 8 * place
            a = _word(a, next_codes_at(words), x, place)
            b = _word(b, next_codes_at(words + 64), x, place + 4)
            a = _word(a, next_codes_at(words + 128), x, place + 8)
            b = _word(b, next_codes_at(words + 192), x, place + 12)
        result = multiply_add(to_floats(a + b), scales_at(scales, half, group), result)
    store_at(out, result * number_at(scale_x))


@compiled
def four_tokens(
    codes, scales, half, zeros, groups, group_slots, x, sums, scale_x, out, x_row, out_row
):
    """The same for four tokens, whose x lie ``x_row`` bytes apart, their results ``out_row``."""
    r0 = r1 = r2 = r3 = splat(_ZERO)
    x1, x2, x3 = x + x_row, x + 2 * x_row, x + 3 * x_row
    row = 4 * groups
    for group in range(groups):
        zero = zeros_at(zeros, group)
        a, b = begin(zero, sums, group), begin(zero, sums + row, group)
        c, d = begin(zero, sums + 2 * row, group), begin(zero, sums + 3 * row, group)
        e = f = g = h = splat(_NONE)
        for place in range(group * group_slots, (group + 1) * group_slots, 32):
            for k in range(4):
                word, at = next_codes_at(codes + 8 * place + 64 * k), place + 4 * k
                low, high = word & splat(_LOW), (word >> splat(_FOUR)) & splat(_LOW)
                a, e = _both(a, e, low, high, x + at)
                b, f = _both(b, f, low, high, x1 + at)
                c, g = _both(c, g, low, high, x2 + at)
                d, h = _both(d, h, low, high, x3 + at)
        scale = scales_at(scales, half, group)
        r0 = multiply_add(to_floats(a + e), scale, r0)
        r1 = multiply_add(to_floats(b + f), scale, r1)
        r2 = multiply_add(to_floats(c + g), scale, r2)
        r3 = multiply_add(to_floats(d + h), scale, r3)
    store_at(out, r0 * number_at(scale_x))
    store_at(out + out_row, r1 * number_at(scale_x + 4))
    store_at(out + 2 * out_row, r2 * number_at(scale_x + 8))
    store_at(out + 3 * out_row, r3 * number_at(scale_x + 12))
