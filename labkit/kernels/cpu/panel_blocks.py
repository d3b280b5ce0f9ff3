"""One token, a loop for each type: a block's scales are taken apart once.

`panel_products` unpacks 32 columns at a time, which suits every type and four tokens; with a single
token the unpacking is the work. Bits that stand high in a byte stay there where they can: the sum
comes out 16 times too large, or another power of two, and the scale is made smaller instead.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import address_of, float16_at, next_codes_at, number_at
from labkit.kernels.cpu.loads import splat_word
from labkit.kernels.cpu.panel_codes import (
    HALF_OF_4,
    HALF_OF_6,
    HALF_OF_8,
    field,
    pair_sums,
    signed_field,
    six_bits,
)
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import byte_dot, half_lanes, multiply_add
from labkit.quantize.lanes import splat, store, to_floats

_ZERO, _NONE = np.float32(0), np.int32(0)
_LOW, _HIGH = np.int32(0x0F0F0F0F), np.int32(-0x0F0F0F10)  # 0xF0F0F0F0
_PAIRS = np.int32(0x30303030)
_ONES, _SIGNS = np.int32(0x01010101), np.int32(-0x7F7F7F80)  # 0x80808080
_TWO, _FOUR, _SIXTEEN = np.int32(2), np.int32(4), np.int32(16)
_ONE, _QUARTER, _SIXTEENTH = np.float32(1), np.float32(1 / 4), np.float32(1 / 16)


@inlined
def _shifted(found, dx, half, chunk, less):
    """dx * found - half * (sum of x) over 32 columns: codes that stand ``half`` too high."""
    minus = number_at(less + 8 * chunk) + number_at(less + 8 * chunk + 4)
    return multiply_add(to_floats(found), dx, splat(half) * minus)


@compiled
def q4_0_one(panel, blocks, x, scale, less, token, out, place):
    """out[token, place : place + 16] = the panel's rows with a token's 8-bit activations."""
    found, q, dx, minus = splat(_ZERO), x[token], address_of(scale[token]), address_of(less[token])
    for chunk in range(blocks):
        start = panel + 288 * chunk
        low = high = splat(_NONE)
        for unit in range(4):
            word, column = next_codes_at(start + 32 + 64 * unit), 32 * chunk + 4 * unit
            low = byte_dot(low, word & splat(_LOW), splat_word(q, column))
            high = byte_dot(high, word & splat(_HIGH), splat_word(q, column + 16))
        both, less_dx = (low << splat(_FOUR)) + high, number_at(dx + 4 * chunk) * splat(_SIXTEENTH)
        value = _shifted(both, less_dx, HALF_OF_4, chunk, minus)
        found = multiply_add(float16_at(start), value, found)
    store(out[token], place, found)


@compiled
def q8_0_one(panel, blocks, x, scale, less, token, out, place):
    """The same for Q8_0, whose codes become unsigned when the sign bit is turned."""
    found, q, dx, minus = splat(_ZERO), x[token], address_of(scale[token]), address_of(less[token])
    for chunk in range(blocks):
        start = panel + 544 * chunk
        some = more = splat(_NONE)
        for unit in range(4):  # and then the rest: memory is read in its order
            word, column = next_codes_at(start + 32 + 64 * unit), 32 * chunk + 4 * unit
            some = byte_dot(some, word ^ splat(_SIGNS), splat_word(q, column))
        for unit in range(4, 8):
            word, column = next_codes_at(start + 32 + 64 * unit), 32 * chunk + 4 * unit
            more = byte_dot(more, word ^ splat(_SIGNS), splat_word(q, column))
        value = _shifted(some + more, number_at(dx + 4 * chunk), HALF_OF_8, chunk, minus)
        found = multiply_add(float16_at(start), value, found)
    store(out[token], place, found)


@inlined
def _fifth(tops, k):
    """The bits ``k`` of bytes."""
    return tops & splat(np.int32(_ONES << k))


@inlined
def _pair(five, start, pair, chunk, scales, mins, x, scale, less, inner, least):
    """Two neighbouring chunks of a block: what they add to (scaled sums, minimums)."""
    low = high = low_top = high_top = splat(_NONE)
    words = start + (768 if five else 256) + 512 * pair
    for unit in range(8):
        word, column = next_codes_at(words + 64 * unit), 32 * chunk + 4 * unit
        near, far = splat_word(x, column), splat_word(x, column + 32)
        low = byte_dot(low, word & splat(_LOW), near)
        high = byte_dot(high, word & splat(_HIGH), far)
        if five:
            tops = next_codes_at(start + 256 + 64 * unit)
            low_top = byte_dot(low_top, _fifth(tops, 2 * pair), near)
            high_top = byte_dot(high_top, _fifth(tops, 2 * pair + 1), far)
    low_unit = _ONE
    if five:
        # A fifth bit counts 16 times the others; it stands 2^k high, and 16 times the low ones.
        if pair == 3:
            low, low_unit = low << splat(_TWO), _QUARTER
        else:
            low_top = low_top << splat(np.int32(4 - 2 * pair))
        low = low + low_top
        high = high + (high_top << splat(np.int32(7 - 2 * pair)))
    which = 2 * (pair & 1)
    some, more = field(scales, which), field(scales, which + 1)
    one, two = number_at(scale + 4 * chunk), number_at(scale + 4 * chunk + 4)
    inner = multiply_add(to_floats(low) * some, one * splat(low_unit), inner)
    inner = multiply_add(to_floats(high) * more, two * splat(_SIXTEENTH), inner)
    some, more = pair_sums(less + 8 * chunk)
    least = multiply_add(field(mins, which), some, least)
    return inner, multiply_add(field(mins, which + 1), more, least)


@inlined
def _four_or_five(five, panel, blocks, x, scale, less, token, out, place):
    found, q, dx, minus = splat(_ZERO), x[token], address_of(scale[token]), address_of(less[token])
    for block in range(blocks):
        start, chunk = panel + (2816 if five else 2304) * block, 8 * block
        head, a, b, c, d = six_bits(start)
        inner = least = splat(_ZERO)
        inner, least = _pair(five, start, 0, chunk, a, b, q, dx, minus, inner, least)
        inner, least = _pair(five, start, 1, chunk + 2, a, b, q, dx, minus, inner, least)
        inner, least = _pair(five, start, 2, chunk + 4, c, d, q, dx, minus, inner, least)
        inner, least = _pair(five, start, 3, chunk + 6, c, d, q, dx, minus, inner, least)
        found = multiply_add(half_lanes(head), inner, found)
        found = multiply_add(half_lanes(head >> splat(_SIXTEEN)), least, found)
    store(out[token], place, found)


@compiled
def q4_k_one(panel, blocks, x, scale, less, token, out, place):
    """The same for Q4_K: 6-bit scales and minimums, then a pair of chunks in 8 words."""
    _four_or_five(False, panel, blocks, x, scale, less, token, out, place)


@compiled
def q5_k_one(panel, blocks, x, scale, less, token, out, place):
    """The same for Q5_K: as Q4_K, and before its codes the fifth bits of them all."""
    _four_or_five(True, panel, blocks, x, scale, less, token, out, place)


@inlined
def _scaled(found, scales, which, chunk, part, scale, less, inner):
    """inner + a sub-block's scale times the sum of (code - 32) x over its sixteen columns."""
    minus = number_at(less + 8 * chunk + 4 * part) * splat(HALF_OF_6)
    value = multiply_add(to_floats(found), number_at(scale + 4 * chunk), minus)
    return multiply_add(value, signed_field(scales, which), inner)


@inlined
def _sixteens(start, near, far, part, chunk, x, scale, less, inner):
    """Four sub-blocks of sixteen columns of a Q6_K block, 32 columns apart."""
    a = b = c = d = splat(_NONE)
    for k in range(4):
        column, words = 32 * chunk + 16 * part + 4 * k, start + 192 * (4 * part + k)
        one, two, top = next_codes_at(words), next_codes_at(words + 64), next_codes_at(words + 128)
        codes = (one & splat(_LOW)) | ((top << splat(_FOUR)) & splat(_PAIRS))
        a = byte_dot(a, codes, splat_word(x, column))
        codes = (two & splat(_LOW)) | ((top << splat(_TWO)) & splat(_PAIRS))
        b = byte_dot(b, codes, splat_word(x, column + 32))
        codes = ((one >> splat(_FOUR)) & splat(_LOW)) | (top & splat(_PAIRS))
        c = byte_dot(c, codes, splat_word(x, column + 64))
        codes = ((two >> splat(_FOUR)) & splat(_LOW)) | ((top >> splat(_TWO)) & splat(_PAIRS))
        d = byte_dot(d, codes, splat_word(x, column + 96))
    inner = _scaled(a, near, part, chunk, part, scale, less, inner)
    inner = _scaled(b, near, part + 2, chunk + 1, part, scale, less, inner)
    inner = _scaled(c, far, part, chunk + 2, part, scale, less, inner)
    return _scaled(d, far, part + 2, chunk + 3, part, scale, less, inner)


@compiled
def q6_k_one(panel, blocks, x, scale, less, token, out, place):
    """The same for Q6_K: 4 words of scales, 48 of codes in the order of `gguf_panels`, 16 d."""
    found, q, dx, minus = splat(_ZERO), x[token], address_of(scale[token]), address_of(less[token])
    for block in range(blocks):
        start, inner = panel + 3360 * block, splat(_ZERO)
        for half in range(2):
            # Of 8 sub-blocks: scale 2 q + part belongs to chunk q of four.
            near, far = next_codes_at(start + 128 * half), next_codes_at(start + 128 * half + 64)
            words, chunk = start + 256 + 1536 * half, 8 * block + 4 * half
            inner = _sixteens(words, near, far, 0, chunk, q, dx, minus, inner)
            inner = _sixteens(words, near, far, 1, chunk, q, dx, minus, inner)
        found = multiply_add(float16_at(start + 3328), inner, found)
    store(out[token], place, found)
