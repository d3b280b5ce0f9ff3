"""GGUF weights in panels times int8 activations on a CPU: a lane is a row, so nothing is folded.

    sums = byte_dot(sums, codes of sixteen rows, four bytes of x)     64 products, one instruction

The unsigned side of `byte_dot` are the stored codes. What a type subtracts from them (8 in Q4_0,
128 in Q8_0 once its sign bits are turned, 32 in Q6_K) is where the sums begin: minus that number
times the sum of x, which all rows share. Q4_K's minimum is a product of its own.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.loads import load_halves, load_words, splat_word
from labkit.kernels.cpu.parallel import compiled, float_rows, inlined, parts, shared
from labkit.kernels.cpu.runs import quantize_runs
from labkit.kernels.cpu.vectors import byte_dot, half_lanes, multiply_add
from labkit.kernels.gguf_panels import ROWS, GgufPanels
from labkit.quantize.lanes import splat, store, to_floats

_ZERO, _NONE = np.float32(0), np.int32(0)
_LOW, _SIX, _PAIR = np.int32(0x0F0F0F0F), np.int32(0x3F3F3F3F), np.int32(0x30303030)
_SIGNS = np.int32(-0x7F7F7F80)  # 0x80808080
_BYTE, _TOP = np.int32(255), np.int32(128)
_TWO, _FOUR, _SIXTEEN = np.int32(2), np.int32(4), np.int32(16)
_EIGHTS = tuple(np.int32(8 * k) for k in range(4))
_KINDS = {"Q4_0": 0, "Q8_0": 1, "Q4_K": 2, "Q6_K": 3}


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """x [tokens, in], in runs of int8, @ weight.T: float32 [tokens, out]."""
    codes, scale, sums = quantize_runs(float_rows(x, weight.shape[1]))
    return torch.from_numpy(product(codes, scale, sums, weight))


def product(codes, scale, sums, weight: GgufPanels) -> np.ndarray:
    """What `quantize_runs` gave, @ weight.T: float32 [tokens, out]."""
    data = weight.data.numpy()
    panels = data.reshape(len(data), -1)
    out = np.empty((len(codes), len(panels) * ROWS), np.float32)
    with parts(panels.nbytes * max(1, len(codes) // 2), max(1, len(panels))) as count:
        _multiply(codes, scale, sums, panels, _KINDS[weight.type_name], count, out)
    return out[:, : weight.shape[0]]


@compiled
def _q4_0(x, scale, sums, panel):
    """288 bytes: sixteen scales, four words; a word's low codes are columns 4 w, its high 16 on."""
    result = splat(_ZERO)
    for block in range(scale.shape[0]):
        start, column = 288 * block, 32 * block
        low = splat(np.int32(-8 * (sums[2 * block] + sums[2 * block + 1])))
        high = splat(_NONE)
        for word in range(4):
            codes = load_words(panel, start + 32 + 64 * word)
            low = byte_dot(low, codes & splat(_LOW), splat_word(x, column + 4 * word))
            codes = (codes >> splat(_FOUR)) & splat(_LOW)
            high = byte_dot(high, codes, splat_word(x, column + 16 + 4 * word))
        d = half_lanes(load_halves(panel, start)) * splat(scale[block])
        result = multiply_add(to_floats(low + high), d, result)
    return result


@compiled
def _q8_0(x, scale, sums, panel):
    """544 bytes: sixteen scales, eight words of signed codes."""
    result = splat(_ZERO)
    for block in range(scale.shape[0]):
        start, column = 544 * block, 32 * block
        even = splat(np.int32(-128 * (sums[2 * block] + sums[2 * block + 1])))
        odd = splat(_NONE)
        for word in range(0, 8, 2):
            codes = load_words(panel, start + 32 + 64 * word) ^ splat(_SIGNS)
            even = byte_dot(even, codes, splat_word(x, column + 4 * word))
            codes = load_words(panel, start + 96 + 64 * word) ^ splat(_SIGNS)
            odd = byte_dot(odd, codes, splat_word(x, column + 4 * word + 4))
        d = half_lanes(load_halves(panel, start)) * splat(scale[block])
        result = multiply_add(to_floats(even + odd), d, result)
    return result


@inlined
def _field(words, which):
    """Byte ``which`` of each word, as float32."""
    return to_floats((words >> splat(_EIGHTS[which])) & splat(_BYTE))


@inlined
def _pair_of_subs(x, scale, sums, panel, first, column, run, scales, mins, which, so_far):
    """64 columns of a Q4_K block, two sub-blocks: what they add to (scaled sums, minimums)."""
    low = high = splat(_NONE)
    for word in range(8):
        codes = load_words(panel, first + 64 * word)
        low = byte_dot(low, codes & splat(_LOW), splat_word(x, column + 4 * word))
        codes = (codes >> splat(_FOUR)) & splat(_LOW)
        high = byte_dot(high, codes, splat_word(x, column + 32 + 4 * word))
    sum_low = np.float32(sums[2 * run] + sums[2 * run + 1])
    sum_high = np.float32(sums[2 * run + 2] + sums[2 * run + 3])
    step, next_step = scale[run], scale[run + 1]
    inner, least = so_far
    inner = multiply_add(to_floats(low) * _field(scales, which), splat(step), inner)
    inner = multiply_add(to_floats(high) * _field(scales, which + 1), splat(next_step), inner)
    least = multiply_add(_field(mins, which), splat(step * sum_low), least)
    least = multiply_add(_field(mins, which + 1), splat(next_step * sum_high), least)
    return inner, least


@compiled
def _q4_k(x, scale, sums, panel):
    """2304 bytes: a word of d and dmin, three of 6-bit scales and minimums, 32 of codes."""
    result = splat(_ZERO)
    for block in range(scale.shape[0] >> 3):
        start, column, run = 2304 * block, 256 * block, 8 * block
        first, second = load_words(panel, start + 64), load_words(panel, start + 128)
        rest = load_words(panel, start + 192)
        some, more = first & splat(_SIX), second & splat(_SIX)
        both = splat(_ZERO), splat(_ZERO)
        both = _pair_of_subs(x, scale, sums, panel, start + 256, column, run, some, more, 0, both)
        both = _pair_of_subs(
            x, scale, sums, panel, start + 768, column + 64, run + 2, some, more, 2, both
        )
        some = (rest & splat(_LOW)) | ((first >> splat(_TWO)) & splat(_PAIR))
        more = ((rest >> splat(_FOUR)) & splat(_LOW)) | ((second >> splat(_TWO)) & splat(_PAIR))
        both = _pair_of_subs(
            x, scale, sums, panel, start + 1280, column + 128, run + 4, some, more, 0, both
        )
        both = _pair_of_subs(
            x, scale, sums, panel, start + 1792, column + 192, run + 6, some, more, 2, both
        )
        head = load_words(panel, start)
        result = multiply_add(half_lanes(head), both[0], result)
        result = result - half_lanes(head >> splat(_SIXTEEN)) * both[1]
    return result


@inlined
def _start(sums, run, j):
    """Minus 32 times the sum of x of sub-block ``j`` (0 or 1) of a run."""
    return splat(np.int32(-32 * sums[2 * run + j]))


@inlined
def _signed_field(words, which):
    """Byte ``which`` of each word, int8, as float32."""
    byte = (words >> splat(_EIGHTS[which])) & splat(_BYTE)
    return to_floats((byte ^ splat(_TOP)) - splat(_TOP))


@inlined
def _sixteens(x, scale, sums, panel, start, column, run, half, j, inner):
    """Four sub-blocks of 16 columns of a Q6_K block, 32 columns apart."""
    a, b = _start(sums, run, j), _start(sums, run + 1, j)
    c, d = _start(sums, run + 2, j), _start(sums, run + 3, j)
    for k in range(4):
        word, at = 4 * j + k, column + 16 * j + 4 * k
        one = load_words(panel, start + 64 * (16 * half + word))
        two = load_words(panel, start + 64 * (16 * half + 8 + word))
        top = load_words(panel, start + 64 * (32 + 8 * half + word))
        codes = (one & splat(_LOW)) | ((top << splat(_FOUR)) & splat(_PAIR))
        a = byte_dot(a, codes, splat_word(x, at))
        codes = (two & splat(_LOW)) | ((top << splat(_TWO)) & splat(_PAIR))
        b = byte_dot(b, codes, splat_word(x, at + 32))
        codes = ((one >> splat(_FOUR)) & splat(_LOW)) | (top & splat(_PAIR))
        c = byte_dot(c, codes, splat_word(x, at + 64))
        codes = ((two >> splat(_FOUR)) & splat(_LOW)) | ((top >> splat(_TWO)) & splat(_PAIR))
        d = byte_dot(d, codes, splat_word(x, at + 96))
    # Scale 8 half + 2 q + j of sixteen signed bytes.
    near = load_words(panel, start + 64 * (48 + 2 * half))
    far = load_words(panel, start + 64 * (49 + 2 * half))
    inner = multiply_add(to_floats(a) * _signed_field(near, j), splat(scale[run]), inner)
    inner = multiply_add(to_floats(b) * _signed_field(near, j + 2), splat(scale[run + 1]), inner)
    inner = multiply_add(to_floats(c) * _signed_field(far, j), splat(scale[run + 2]), inner)
    return multiply_add(to_floats(d) * _signed_field(far, j + 2), splat(scale[run + 3]), inner)


@compiled
def _q6_k(x, scale, sums, panel):
    """3360 bytes: 32 words of low codes, 16 of high ones, 4 of scales, and sixteen d."""
    result = splat(_ZERO)
    for block in range(scale.shape[0] >> 3):
        start, inner = 3360 * block, splat(_ZERO)
        for half in range(2):
            column, run = 256 * block + 128 * half, 8 * block + 4 * half
            inner = _sixteens(x, scale, sums, panel, start, column, run, half, 0, inner)
            inner = _sixteens(x, scale, sums, panel, start, column, run, half, 1, inner)
        result = multiply_add(half_lanes(load_halves(panel, start + 3328)), inner, result)
    return result


@shared
def _multiply(codes, scale, sums, panels, kind, count, out):
    tokens = codes.shape[0]
    for part in numba.prange(count):
        first, last = part * panels.shape[0] // count, (part + 1) * panels.shape[0] // count
        for panel in range(first, last):
            for token in range(tokens):
                x, step, sixteens = codes[token], scale[token], sums[token]
                if kind == 0:
                    y = _q4_0(x, step, sixteens, panels[panel])
                elif kind == 1:
                    y = _q8_0(x, step, sixteens, panels[panel])
                elif kind == 2:
                    y = _q4_k(x, step, sixteens, panels[panel])
                else:
                    y = _q6_k(x, step, sixteens, panels[panel])
                store(out[token], ROWS * panel, y)
