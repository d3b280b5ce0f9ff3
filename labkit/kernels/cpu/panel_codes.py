"""Thirty-two columns of a panel: eight registers of unsigned codes, and what they are worth.

A register holds four neighbouring columns of sixteen rows, a byte each. The weight that a code c
of a row stands for is s * c - m; the first sixteen columns have one s and m, the others another.
``panel`` is the address of a panel's first byte.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import float16_at, next_codes_at, number_at, words_at
from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import half_lanes
from labkit.quantize.lanes import splat, to_floats

# By these numbers compiled code knows the types; those up to BF16 hold floats.
NUMBERS = {"F32": 0, "F16": 1, "BF16": 2, "Q4_0": 3, "Q8_0": 4, "Q4_K": 5, "Q5_K": 6, "Q6_K": 7}
Q4_0, Q8_0, Q4_K, Q5_K, Q6_K = (NUMBERS[name] for name in list(NUMBERS)[3:])
_SIGNS = np.int32(-0x7F7F7F80)  # 0x80808080
_SIXTEEN, _BYTE, _TOP = np.int32(16), np.int32(255), np.int32(128)
_LOW, _TWO_BITS = np.int32(0x0F0F0F0F), np.int32(0x03030303)
_ONES = np.int32(0x01010101)
_FOUR = np.int32(4)
_SIX, _FIFTEEN, _THREE = np.int32(63), np.int32(15), np.int32(3)
_SIXES, _PAIRS, _TWO = np.int32(0x3F3F3F3F), np.int32(0x30303030), np.int32(2)
HALF_OF_4, HALF_OF_8, HALF_OF_6 = np.float32(8), np.float32(128), np.float32(32)


@inlined
def unpack(kind, panel, chunk):
    """(eight registers, s of columns 0-15, s of 16-31, m of 0-15, m of 16-31) of a chunk of 32."""
    if kind == Q4_0:
        return _q4_0(panel, chunk)
    if kind == Q8_0:
        return _q8_0(panel, chunk)
    if kind == Q4_K:
        return _q4_k(panel, chunk)
    if kind == Q5_K:
        return _q5_k(panel, chunk)
    return _q6_k(panel, chunk)


@inlined
def _low(word):
    return word & splat(_LOW)


@inlined
def _high(word):
    return (word >> splat(_FOUR)) & splat(_LOW)


@inlined
def _q4_0(panel, chunk):
    """16 scales, then bytes whose low bits are columns 0-15, their high bits columns 16-31."""
    start = panel + 288 * chunk
    s = float16_at(start)
    m = s * splat(HALF_OF_4)
    a, b = words_at(start + 32), words_at(start + 96)
    c, d = words_at(start + 160), words_at(start + 224)
    codes = (_low(a), _low(b), _low(c), _low(d), _high(a), _high(b), _high(c), _high(d))
    return codes, s, s, m, m


@inlined
def _eight(start):
    return (
        words_at(start),
        words_at(start + 64),
        words_at(start + 128),
        words_at(start + 192),
        words_at(start + 256),
        words_at(start + 320),
        words_at(start + 384),
        words_at(start + 448),
    )


@inlined
def _q8_0(panel, chunk):
    """16 scales, then the codes; with the sign bit turned they are 128 more, and unsigned."""
    start = panel + 544 * chunk
    s = float16_at(start)
    m = s * splat(HALF_OF_8)
    a, b, c, d, e, f, g, h = _eight(start + 32)
    by = splat(_SIGNS)
    return (a ^ by, b ^ by, c ^ by, d ^ by, e ^ by, f ^ by, g ^ by, h ^ by), s, s, m, m


@inlined
def _nibbles(words, shift):
    """Four bits of every byte, from bit ``shift`` on."""
    a, b, c, d, e, f, g, h = words
    by = splat(shift)
    return (
        _low(a >> by),
        _low(b >> by),
        _low(c >> by),
        _low(d >> by),
        _low(e >> by),
        _low(f >> by),
        _low(g >> by),
        _low(h >> by),
    )


@inlined
def _scale_and_min(start, sub):
    """Of sub-block ``sub`` of a Q4_K or Q5_K block: 6-bit integers times two float16.

    The 6 bits of sub-blocks 4-7 are in two pieces (`labkit.quantize.gguf_types`).
    """
    head = words_at(start)
    d, least = half_lanes(head), half_lanes(head >> splat(_SIXTEEN))
    first, second = words_at(start + 64), words_at(start + 128)
    by = np.int32(8 * (sub & 3))
    if sub < 4:
        s, m = (first >> splat(by)) & splat(_SIX), (second >> splat(by)) & splat(_SIX)
    else:
        rest, top = words_at(start + 192), np.int32(by + 6)
        s = (rest >> splat(by)) & splat(_FIFTEEN)
        s = s | (((first >> splat(top)) & splat(_THREE)) << splat(_FOUR))
        m = (rest >> splat(np.int32(by + 4))) & splat(_FIFTEEN)
        m = m | (((second >> splat(top)) & splat(_THREE)) << splat(_FOUR))
    return d * to_floats(s), least * to_floats(m)


@inlined
def six_bits(start):
    """All of a block: (d and the factor of minimums, float16 in a word's halves; then in its bytes
    scales of sub-blocks 0-3, minimums of 0-3, scales of 4-7, minimums of 4-7)."""
    head, first = next_codes_at(start), next_codes_at(start + 64)
    second, rest = next_codes_at(start + 128), next_codes_at(start + 192)
    scales = _low(rest) | ((first >> splat(_TWO)) & splat(_PAIRS))
    least = _high(rest) | ((second >> splat(_TWO)) & splat(_PAIRS))
    return head, first & splat(_SIXES), second & splat(_SIXES), scales, least


@inlined
def _q4_k(panel, chunk):
    """Two neighbouring chunks share bytes; the first has their low bits."""
    start, sub = panel + 2304 * (chunk >> 3), chunk & 7
    scale, offset = _scale_and_min(start, sub)
    words = _eight(start + 256 + 512 * (sub >> 1))
    return _nibbles(words, np.int32(4 * (sub & 1))), scale, scale, offset, offset


@inlined
def _q5_k(panel, chunk):
    """As Q4_K, and 32 bytes whose bit k is the fifth bit of the codes of chunk k."""
    start, sub = panel + 2816 * (chunk >> 3), chunk & 7
    scale, offset = _scale_and_min(start, sub)
    low = _nibbles(_eight(start + 768 + 512 * (sub >> 1)), np.int32(4 * (sub & 1)))
    high, by = _eight(start + 256), np.int32(sub)
    codes = (
        low[0] | _top(high[0], by, _ONES),
        low[1] | _top(high[1], by, _ONES),
        low[2] | _top(high[2], by, _ONES),
        low[3] | _top(high[3], by, _ONES),
        low[4] | _top(high[4], by, _ONES),
        low[5] | _top(high[5], by, _ONES),
        low[6] | _top(high[6], by, _ONES),
        low[7] | _top(high[7], by, _ONES),
    )
    return codes, scale, scale, offset, offset


@inlined
def _thirds(start):
    return (
        words_at(start),
        words_at(start + 192),
        words_at(start + 384),
        words_at(start + 576),
        words_at(start + 768),
        words_at(start + 960),
        words_at(start + 1152),
        words_at(start + 1344),
    )


@inlined
def _q6_k(panel, chunk):
    """An int8 scale for each 16, then codes less 32: by turns two words of low bits, one of high.

    The two words are of neighbouring chunks, in low bits and in high ones; the third is of four.
    """
    start, half, part = panel + 3360 * (chunk >> 3), (chunk >> 2) & 1, chunk & 3
    words = start + 256 + 1536 * half
    low = _nibbles(_thirds(words + 64 * (part & 1)), np.int32(4 * (part >> 1)))
    high = _thirds(words + 128)
    by = np.int32(2 * part)
    codes = (
        low[0] | _top(high[0], by, _TWO_BITS),
        low[1] | _top(high[1], by, _TWO_BITS),
        low[2] | _top(high[2], by, _TWO_BITS),
        low[3] | _top(high[3], by, _TWO_BITS),
        low[4] | _top(high[4], by, _TWO_BITS),
        low[5] | _top(high[5], by, _TWO_BITS),
        low[6] | _top(high[6], by, _TWO_BITS),
        low[7] | _top(high[7], by, _TWO_BITS),
    )
    d, scales = float16_at(start + 3328), words_at(start + 64 * (2 * half + (part >> 1)))
    s0, s1 = d * signed_field(scales, 2 * (part & 1)), d * signed_field(scales, 2 * (part & 1) + 1)
    return codes, s0, s1, s0 * splat(HALF_OF_6), s1 * splat(HALF_OF_6)


@inlined
def pair_sums(less):
    """Of two neighbouring chunks: minus their sums of x, which lie from the address ``less`` on."""
    some = number_at(less) + number_at(less + 4)
    return some, number_at(less + 8) + number_at(less + 12)


@inlined
def field(words, which):
    """Byte ``which`` of each word, uint8, as float32."""
    return to_floats((words >> splat(np.int32(8 * which))) & splat(_BYTE))


@inlined
def signed_field(words, which):
    """Byte ``which`` of each word, int8, as float32."""
    byte = (words >> splat(np.int32(8 * which))) & splat(_BYTE)
    return to_floats((byte ^ splat(_TOP)) - splat(_TOP))


@inlined
def _top(word, by, mask):
    """The masked bits from bit ``by`` on, put above four others."""
    return ((word >> splat(by)) & splat(mask)) << splat(_FOUR)
