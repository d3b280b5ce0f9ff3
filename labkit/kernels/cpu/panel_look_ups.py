"""Q4_0 and Q4_K with one token as it is: codes are looked up, a lane is a row.

A look-up takes two instructions where turning a code into a float takes three. The scale of a chunk
is applied to its sum. ``panel`` is an address; x and less are as `panel_products` has them.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import address_of, float16_at, next_words_at
from labkit.kernels.cpu.look_ups import add_eight
from labkit.kernels.cpu.panel_codes import field, pair_sums, six_bits
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import half_lanes, multiply_add
from labkit.quantize.lanes import load, splat, store

_ZERO = np.float32(0)
_SIGNED, _LEVELS = np.arange(-8, 8, dtype=np.float32), np.arange(16, dtype=np.float32)
_SIXTEEN = np.int32(16)


@compiled
def q4_0_floats(panel, chunks, x, token, out, place):
    """out[token, place : place + 16] = the panel's rows with a token."""
    result, row, table = splat(_ZERO), address_of(x[token]), load(_SIGNED, 0)
    for chunk in range(chunks):
        start = panel + 288 * chunk
        found = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
        for unit in range(4):
            word, at = next_words_at(start + 32 + 64 * unit), row + 128 * chunk + 16 * unit
            found = add_eight(table, word, at, at + 64, found)
        a, b, c, d = found
        result = multiply_add((a + b) + (c + d), float16_at(start), result)
    store(out[token], place, result)


@inlined
def _pair(words, pair, chunk, scales, mins, table, row, minus, inner, least):
    """Two neighbouring chunks of a block: what they add to (scaled sums, minimums)."""
    found = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
    for unit in range(8):
        word, at = next_words_at(words + 512 * pair + 64 * unit), row + 128 * chunk + 16 * unit
        found = add_eight(table, word, at, at + 128, found)
    a, b, c, d = found
    which = 2 * (pair & 1)
    inner = multiply_add(a + b, field(scales, which), inner)
    inner = multiply_add(c + d, field(scales, which + 1), inner)
    some, more = pair_sums(minus + 8 * chunk)
    least = multiply_add(field(mins, which), some, least)
    return inner, multiply_add(field(mins, which + 1), more, least)


@compiled
def q4_k_floats(panel, chunks, x, less, token, out, place):
    """The same for Q4_K: 6-bit scales and minimums, then a pair of chunks in 8 words."""
    result, table = splat(_ZERO), load(_LEVELS, 0)
    row, minus = address_of(x[token]), address_of(less[token])
    for block in range(chunks >> 3):
        start, chunk, inner = panel + 2304 * block, 8 * block, splat(_ZERO)
        head, a, b, c, d = six_bits(start)
        words, least = start + 256, splat(_ZERO)
        inner, least = _pair(words, 0, chunk, a, b, table, row, minus, inner, least)
        inner, least = _pair(words, 1, chunk + 2, a, b, table, row, minus, inner, least)
        inner, least = _pair(words, 2, chunk + 4, c, d, table, row, minus, inner, least)
        inner, least = _pair(words, 3, chunk + 6, c, d, table, row, minus, inner, least)
        result = multiply_add(half_lanes(head), inner, result)
        result = multiply_add(half_lanes(head >> splat(_SIXTEEN)), least, result)
    store(out[token], place, result)
