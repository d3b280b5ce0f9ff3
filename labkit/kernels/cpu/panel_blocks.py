"""One token with whole blocks of 256 columns: a block's scales are taken apart once.

`panel_products` unpacks 32 columns at a time, which suits every type and four tokens; with a single
token the unpacking is the work, and Q4_K and Q6_K, which llama.cpp's usual files are made of, have
a loop of their own.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import float16_at, words_at
from labkit.kernels.cpu.loads import splat_word
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import byte_dot, half_lanes, multiply_add
from labkit.quantize.lanes import splat, store, to_floats

_ZERO, _NONE, _BYTE, _TOP = np.float32(0), np.int32(0), np.int32(255), np.int32(128)
_LOW, _SIX, _PAIRS = np.int32(0x0F0F0F0F), np.int32(0x3F3F3F3F), np.int32(0x30303030)
_TWO, _FOUR, _SIXTEEN, _HALF = np.int32(2), np.int32(4), np.int32(16), np.float32(32)


@inlined
def _field(words, which):
    """Byte ``which`` of each word, as float32."""
    return to_floats((words >> splat(np.int32(8 * which))) & splat(_BYTE))


@inlined
def _pair(panel, chunk, scales, mins, which, x, scale, less, inner, least):
    """Two neighbouring chunks of a Q4_K block: what they add to (scaled sums, minimums)."""
    low = high = splat(_NONE)
    for unit in range(8):
        word, place = words_at(panel + 64 * unit), 32 * chunk + 4 * unit
        low = byte_dot(low, word & splat(_LOW), splat_word(x, place))
        high = byte_dot(high, (word >> splat(_FOUR)) & splat(_LOW), splat_word(x, place + 32))
    some, more = _field(scales, which), _field(scales, which + 1)
    inner = multiply_add(to_floats(low) * some, splat(scale[chunk]), inner)
    inner = multiply_add(to_floats(high) * more, splat(scale[chunk + 1]), inner)
    some, more = less[2 * chunk] + less[2 * chunk + 1], less[2 * chunk + 2] + less[2 * chunk + 3]
    least = multiply_add(_field(mins, which), splat(some), least)
    return inner, multiply_add(_field(mins, which + 1), splat(more), least)


@compiled
def q4_k_one(panel, blocks, x, scale, less, token, out, place):
    """out[token, place : place + 16] = the panel's rows with a token's 8-bit activations."""
    found, q, dx, minus = splat(_ZERO), x[token], scale[token], less[token]
    for block in range(blocks):
        start, chunk = panel + 2304 * block, 8 * block
        head = words_at(start)
        first, second, rest = words_at(start + 64), words_at(start + 128), words_at(start + 192)
        a, b = first & splat(_SIX), second & splat(_SIX)
        inner = least = splat(_ZERO)
        inner, least = _pair(start + 256, chunk, a, b, 0, q, dx, minus, inner, least)
        inner, least = _pair(start + 768, chunk + 2, a, b, 2, q, dx, minus, inner, least)
        a = (rest & splat(_LOW)) | ((first >> splat(_TWO)) & splat(_PAIRS))
        b = ((rest >> splat(_FOUR)) & splat(_LOW)) | ((second >> splat(_TWO)) & splat(_PAIRS))
        inner, least = _pair(start + 1280, chunk + 4, a, b, 0, q, dx, minus, inner, least)
        inner, least = _pair(start + 1792, chunk + 6, a, b, 2, q, dx, minus, inner, least)
        found = multiply_add(half_lanes(head), inner, found)
        found = multiply_add(half_lanes(head >> splat(_SIXTEEN)), least, found)
    store(out[token], place, found)


@inlined
def _signed_field(words, which):
    """Byte ``which`` of each word, int8, as float32."""
    byte = (words >> splat(np.int32(8 * which))) & splat(_BYTE)
    return to_floats((byte ^ splat(_TOP)) - splat(_TOP))


@inlined
def _scaled(found, scales, which, chunk, part, scale, less, inner):
    """inner + a sub-block's scale times the sum of (code - 32) x over its sixteen columns."""
    minus = splat(less[2 * chunk + part] * _HALF)
    value = multiply_add(to_floats(found), splat(scale[chunk]), minus)
    return multiply_add(value, _signed_field(scales, which), inner)


@inlined
def _sixteens(panel, half, part, chunk, x, scale, less, inner):
    """Four sub-blocks of sixteen columns of a Q6_K block, 32 columns apart."""
    a = b = c = d = splat(_NONE)
    for k in range(4):
        unit, place = 4 * part + k, 32 * chunk + 16 * part + 4 * k
        one = words_at(panel + 64 * (16 * half + unit))
        two = words_at(panel + 64 * (16 * half + 8 + unit))
        top = words_at(panel + 64 * (32 + 8 * half + unit))
        codes = (one & splat(_LOW)) | ((top << splat(_FOUR)) & splat(_PAIRS))
        a = byte_dot(a, codes, splat_word(x, place))
        codes = (two & splat(_LOW)) | ((top << splat(_TWO)) & splat(_PAIRS))
        b = byte_dot(b, codes, splat_word(x, place + 32))
        codes = ((one >> splat(_FOUR)) & splat(_LOW)) | (top & splat(_PAIRS))
        c = byte_dot(c, codes, splat_word(x, place + 64))
        codes = ((two >> splat(_FOUR)) & splat(_LOW)) | ((top >> splat(_TWO)) & splat(_PAIRS))
        d = byte_dot(d, codes, splat_word(x, place + 96))
    # Scale 8 half + 2 q + part of sixteen signed bytes, q the sub-block of these four.
    near, far = words_at(panel + 64 * (48 + 2 * half)), words_at(panel + 64 * (49 + 2 * half))
    inner = _scaled(a, near, part, chunk, part, scale, less, inner)
    inner = _scaled(b, near, part + 2, chunk + 1, part, scale, less, inner)
    inner = _scaled(c, far, part, chunk + 2, part, scale, less, inner)
    return _scaled(d, far, part + 2, chunk + 3, part, scale, less, inner)


@compiled
def q6_k_one(panel, blocks, x, scale, less, token, out, place):
    """The same for Q6_K: 32 words of low codes, 16 of high ones, 4 of scales, and sixteen d."""
    found, q, dx, minus = splat(_ZERO), x[token], scale[token], less[token]
    for block in range(blocks):
        start, inner = panel + 3360 * block, splat(_ZERO)
        for half in range(2):
            chunk = 8 * block + 4 * half
            inner = _sixteens(start, half, 0, chunk, q, dx, minus, inner)
            inner = _sixteens(start, half, 1, chunk, q, dx, minus, inner)
        found = multiply_add(float16_at(start + 3328), inner, found)
    store(out[token], place, found)
