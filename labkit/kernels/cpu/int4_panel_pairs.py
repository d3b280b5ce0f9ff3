"""A panel of sixteen rows of 4-bit codes times bfloat16 x, where the processor multiplies pairs.

    y[row] = sum over groups of  scale * (sum of levels[code] * x  -  (zero - 8) * sum of x)

A register holds eight codes of each row. Shifted by 0, 4, 8 and 12 bits, the halves of its words
begin with two codes of each of the sixteen rows, which are looked up in a table of bfloat16 at
once; the pairs of x lie in the order of `nibble_panels.pair_order`. The table has the levels of the
codes 0..15 twice, since a look-up reads five bits. A product of two bfloat16 is exact in float32.
``x``, ``codes`` and the like are addresses.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import (
    next_words_at,
    store_at,
    store_words_at,
    word_at,
    words_at,
)
from labkit.kernels.cpu.int4_panel_groups import offset, scales_at
from labkit.kernels.cpu.loads import load_words
from labkit.kernels.cpu.pairs import look_up_pairs, pair_dot
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.kernels.nibble_panels import CHUNK, PAIR_ORDER
from labkit.quantize.lanes import splat

_ZERO, _ONES = np.float32(0), np.int32(0x3F803F80)  # 1.0 and 1.0
_STEPS = (np.int32(4), np.int32(8), np.int32(12))
_IN_PAIRS = PAIR_ORDER.astype(np.int16).view(np.uint8)  # a register


@inlined
def _weights(table, word):
    """Eight weights of each row, two by two."""
    return (
        look_up_pairs(table, word),
        look_up_pairs(table, word >> splat(_STEPS[0])),
        look_up_pairs(table, word >> splat(_STEPS[1])),
        look_up_pairs(table, word >> splat(_STEPS[2])),
    )


@compiled
def lay_down(x, columns, out):
    """A token's columns in pairs, where slot s has column s."""
    order = load_words(_IN_PAIRS, 0)
    for column in range(0, columns, CHUNK):
        store_words_at(out + 2 * column, look_up_pairs(words_at(x + 2 * column), order))


@compiled
def sum_groups(x, groups, group_slots, sums):
    """sums[g] = the sum of x over group g, float32."""
    for group in range(groups):
        found = splat(_ZERO)
        for slot in range(0, group_slots, 32):
            found = pair_dot(found, splat(_ONES), words_at(x + 2 * (group * group_slots + slot)))
        sums[group] = total(found)


@compiled
def one_token(table, codes, scales, half, zeros, groups, group_slots, x, sums, out):
    """Sixteen rows with one token: eight sums, so that products need not wait for each other."""
    result, levels = splat(_ZERO), words_at(table)
    for group in range(groups):
        a = b = c = d = splat(_ZERO)
        e = f = g = h = splat(_ZERO)
        for slot in range(group * group_slots, (group + 1) * group_slots, 16):
            w, at = _weights(levels, next_words_at(codes + 8 * slot)), x + 2 * slot
            a = pair_dot(a, w[0], word_at(at))
            b = pair_dot(b, w[1], word_at(at + 4))
            c = pair_dot(c, w[2], word_at(at + 8))
            d = pair_dot(d, w[3], word_at(at + 12))
            w = _weights(levels, next_words_at(codes + 8 * slot + 64))
            e = pair_dot(e, w[0], word_at(at + 16))
            f = pair_dot(f, w[1], word_at(at + 20))
            g = pair_dot(g, w[2], word_at(at + 24))
            h = pair_dot(h, w[3], word_at(at + 28))
        found = ((a + b) + (c + d)) + ((e + f) + (g + h)) + offset(zeros, group, sums)
        result = multiply_add(found, scales_at(scales, half, group), result)
    store_at(out, result)


@inlined
def _four(w, x, slot, found):
    """Eight weights of each row with one of four tokens."""
    at = x + 2 * slot
    found = pair_dot(found, w[0], word_at(at))
    found = pair_dot(found, w[1], word_at(at + 4))
    found = pair_dot(found, w[2], word_at(at + 8))
    return pair_dot(found, w[3], word_at(at + 12))


@compiled
def four_tokens(
    table, codes, scales, half, zeros, groups, group_slots, x, x_row, sums, out, out_row
):
    """The same for four tokens, whose x lie ``x_row`` bytes apart: codes are looked up once."""
    r0 = r1 = r2 = r3 = splat(_ZERO)
    x1, x2, x3, levels = x + x_row, x + 2 * x_row, x + 3 * x_row, words_at(table)
    row = 4 * groups
    for group in range(groups):
        a = b = c = d = splat(_ZERO)
        e = f = g = h = splat(_ZERO)
        for slot in range(group * group_slots, (group + 1) * group_slots, 16):
            w = _weights(levels, next_words_at(codes + 8 * slot))
            a, b = _four(w, x, slot, a), _four(w, x1, slot, b)
            c, d = _four(w, x2, slot, c), _four(w, x3, slot, d)
            w = _weights(levels, next_words_at(codes + 8 * slot + 64))
            e, f = _four(w, x, slot + 8, e), _four(w, x1, slot + 8, f)
            g, h = _four(w, x2, slot + 8, g), _four(w, x3, slot + 8, h)
        scale = scales_at(scales, half, group)
        r0 = multiply_add((a + e) + offset(zeros, group, sums), scale, r0)
        r1 = multiply_add((b + f) + offset(zeros, group, sums + row), scale, r1)
        r2 = multiply_add((c + g) + offset(zeros, group, sums + 2 * row), scale, r2)
        r3 = multiply_add((d + h) + offset(zeros, group, sums + 3 * row), scale, r3)
    store_at(out, r0)
    store_at(out + out_row, r1)
    store_at(out + 2 * out_row, r2)
    store_at(out + 3 * out_row, r3)
