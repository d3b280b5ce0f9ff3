"""A panel of sixteen rows of 4-bit codes times float32 x.

    y[row] = sum over groups of  scale * (sum of levels[code] * x  -  (zero - 8) * sum of x)

A code is looked up in a register of sixteen floats, for int4 -8 … 7; its lane is its row. ``x``,
``codes`` and the like are addresses; a chunk of 32 slots of a row is four words, in each of them
byte b has slots 4 k + b (low bits) and 16 + 4 k + b (high bits).
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import float32_at, next_words_at, number_at, store_at
from labkit.kernels.cpu.int4_panel_groups import offset, scales_at
from labkit.kernels.cpu.look_ups import add_eight, eight
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.quantize.lanes import splat

_ZERO = np.float32(0)


@compiled
def sum_groups(x, groups, group_slots, sums):
    """sums[g] = the sum of x over group g."""
    for group in range(groups):
        found = splat(_ZERO)
        for slot in range(group * group_slots, (group + 1) * group_slots, 16):
            found = found + float32_at(x + 4 * slot)
        sums[group] = total(found)


@inlined
def _first(word):
    """The first slot of a word of codes, counted in words from the panel's begin."""
    return 32 * (word >> 2) + 4 * (word & 3)


@compiled
def one_token(levels, codes, scales, half, zeros, groups, group_slots, x, sums, out):
    """Sixteen rows with one token."""
    result, table, words = splat(_ZERO), float32_at(levels), group_slots >> 3
    for group in range(groups):
        found = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
        for word in range(group * words, (group + 1) * words):
            at = x + 4 * _first(word)
            found = add_eight(table, next_words_at(codes + 64 * word), at, at + 64, found)
        a, b, c, d = found
        value = (a + b) + (c + d) + offset(zeros, group, sums)
        result = multiply_add(value, scales_at(scales, half, group), result)
    store_at(out, result)


@inlined
def _one_of_four(w, at, some, more):
    """Eight weights of each row with one of four tokens, in two sums."""
    some = multiply_add(w[0], number_at(at), some)
    more = multiply_add(w[1], number_at(at + 64), more)
    some = multiply_add(w[2], number_at(at + 4), some)
    more = multiply_add(w[3], number_at(at + 68), more)
    some = multiply_add(w[4], number_at(at + 8), some)
    more = multiply_add(w[5], number_at(at + 72), more)
    some = multiply_add(w[6], number_at(at + 12), some)
    return some, multiply_add(w[7], number_at(at + 76), more)


@compiled
def four_tokens(
    levels, codes, scales, half, zeros, groups, group_slots, x, x_row, sums, out, out_row
):
    """The same for four tokens, whose x lie ``x_row`` bytes apart: codes are looked up once."""
    r0 = r1 = r2 = r3 = splat(_ZERO)
    table, words, row = float32_at(levels), group_slots >> 3, 4 * groups
    for group in range(groups):
        a = b = c = d = splat(_ZERO)
        e = f = g = h = splat(_ZERO)
        for word in range(group * words, (group + 1) * words):
            w, at = eight(table, next_words_at(codes + 64 * word)), x + 4 * _first(word)
            a, e = _one_of_four(w, at, a, e)
            b, f = _one_of_four(w, at + x_row, b, f)
            c, g = _one_of_four(w, at + 2 * x_row, c, g)
            d, h = _one_of_four(w, at + 3 * x_row, d, h)
        scale = scales_at(scales, half, group)
        r0 = multiply_add((a + e) + offset(zeros, group, sums), scale, r0)
        r1 = multiply_add((b + f) + offset(zeros, group, sums + row), scale, r1)
        r2 = multiply_add((c + g) + offset(zeros, group, sums + 2 * row), scale, r2)
        r3 = multiply_add((d + h) + offset(zeros, group, sums + 3 * row), scale, r3)
    store_at(out, r0)
    store_at(out + out_row, r1)
    store_at(out + 2 * out_row, r2)
    store_at(out + 3 * out_row, r3)
