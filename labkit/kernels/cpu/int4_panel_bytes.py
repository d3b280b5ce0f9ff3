"""A panel of sixteen int4 rows times int8 activations: one token, or four or eight together.

    y[row] = scale_x * sum over groups of  scale * (sum of code * q  -  zero * sum of q)

A lane is a row. `byte_dot` multiplies four codes of each row with the same four q, and the sum of a
group begins at -zero * (sum of q), so that the zero-point costs one product a group. With several
tokens a register of codes is taken apart once. ``x``, ``codes`` and the like are addresses.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import next_codes_at, number_at, store_at, word_at, words_at
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
        a = begin(zero, sums, group)
        b = begin(zero, sums + row, group)
        c = begin(zero, sums + 2 * row, group)
        d = begin(zero, sums + 3 * row, group)
        for place in range(group * group_slots, (group + 1) * group_slots, 32):
            for k in range(4):
                word = words_at(codes + 8 * place + 64 * k)
                a = _word(a, word, x, place + 4 * k)
                b = _word(b, word, x1, place + 4 * k)
                c = _word(c, word, x2, place + 4 * k)
                d = _word(d, word, x3, place + 4 * k)
        scale = scales_at(scales, half, group)
        r0 = multiply_add(to_floats(a), scale, r0)
        r1 = multiply_add(to_floats(b), scale, r1)
        r2 = multiply_add(to_floats(c), scale, r2)
        r3 = multiply_add(to_floats(d), scale, r3)
    store_at(out, r0 * number_at(scale_x))
    store_at(out + out_row, r1 * number_at(scale_x + 4))
    store_at(out + 2 * out_row, r2 * number_at(scale_x + 8))
    store_at(out + 3 * out_row, r3 * number_at(scale_x + 12))


@compiled
def eight_tokens(
    codes, scales, half, zeros, groups, group_slots, x, sums, scale_x, out, x_row, out_row
):
    """The same for eight tokens."""
    r0 = r1 = r2 = r3 = r4 = r5 = r6 = r7 = splat(_ZERO)
    x1, x2, x3, x4 = x + x_row, x + 2 * x_row, x + 3 * x_row, x + 4 * x_row
    x5, x6, x7 = x + 5 * x_row, x + 6 * x_row, x + 7 * x_row
    row = 4 * groups
    for group in range(groups):
        zero = zeros_at(zeros, group)
        a, b = begin(zero, sums, group), begin(zero, sums + row, group)
        c, d = begin(zero, sums + 2 * row, group), begin(zero, sums + 3 * row, group)
        e, f = begin(zero, sums + 4 * row, group), begin(zero, sums + 5 * row, group)
        g, h = begin(zero, sums + 6 * row, group), begin(zero, sums + 7 * row, group)
        for place in range(group * group_slots, (group + 1) * group_slots, 32):
            for k in range(4):
                word, at = words_at(codes + 8 * place + 64 * k), place + 4 * k
                a, b = _word(a, word, x, at), _word(b, word, x1, at)
                c, d = _word(c, word, x2, at), _word(d, word, x3, at)
                e, f = _word(e, word, x4, at), _word(f, word, x5, at)
                g, h = _word(g, word, x6, at), _word(h, word, x7, at)
        scale = scales_at(scales, half, group)
        r0, r1 = multiply_add(to_floats(a), scale, r0), multiply_add(to_floats(b), scale, r1)
        r2, r3 = multiply_add(to_floats(c), scale, r2), multiply_add(to_floats(d), scale, r3)
        r4, r5 = multiply_add(to_floats(e), scale, r4), multiply_add(to_floats(f), scale, r5)
        r6, r7 = multiply_add(to_floats(g), scale, r6), multiply_add(to_floats(h), scale, r7)
    store_at(out, r0 * number_at(scale_x))
    store_at(out + out_row, r1 * number_at(scale_x + 4))
    store_at(out + 2 * out_row, r2 * number_at(scale_x + 8))
    store_at(out + 3 * out_row, r3 * number_at(scale_x + 12))
    store_at(out + 4 * out_row, r4 * number_at(scale_x + 16))
    store_at(out + 5 * out_row, r5 * number_at(scale_x + 20))
    store_at(out + 6 * out_row, r6 * number_at(scale_x + 24))
    store_at(out + 7 * out_row, r7 * number_at(scale_x + 28))
