"""W4A8 on a CPU: 4-bit codes times int8 activations, summed exactly, group by group.

    y[t, o] = scale_x[t] * sum over groups of scale[o, g] * (sum code * q - zero[o, g] * sum q)

`byte_dot` sums 64 products in one instruction; the unsigned side are the codes as they are stored,
so the zero-point is taken off afterwards: sum q of a group is the same for all rows. Only what is
outside of a group is float32.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.loads import load_ints, load_signed_bytes, load_words, store_ints
from labkit.kernels.cpu.parallel import (
    compiled,
    float_rows,
    fours,
    inlined,
    parts,
    scale_arrays,
    shared,
    widen,
)
from labkit.kernels.cpu.tokens import quantize_rows
from labkit.kernels.cpu.vectors import byte_dot, multiply_add, multiply_ints, total
from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight
from labkit.quantize.lanes import load_bytes, splat, to_floats

_ZERO, _NONE = np.float32(0), np.int32(0)
_LOW, _ONES = np.int32(0x0F0F0F0F), np.int32(0x01010101)
_FOUR, _FIFTEEN = np.int32(4), np.int32(15)
_NO_ZEROS = np.empty((0, 0), np.uint8)
_BLOCK = 32  # tokens whose codes stay in the cache while the rows pass by


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [..., in], quantized per token, @ weight.T: float32 [tokens, out]."""
    taken, scale_x = quantize_rows(float_rows(x, weight.in_features))
    order, groups = weight.columns.numpy(), weight.scale.shape[1]
    tokens = fours(len(taken))
    placed = np.zeros((tokens, len(order)), np.int8)
    sums = np.zeros((tokens, groups * 16), np.int32)
    _place(taken, order, weight.chunk, weight.group_slots, placed, sums)
    codes = weight.codes.numpy()
    zeros = _NO_ZEROS if weight.zero_point is None else weight.zero_point.numpy()
    scales = scale_arrays(weight.scale)
    out = np.empty((tokens, len(codes)), np.float32)
    scale_x = np.append(scale_x, np.zeros(tokens - len(taken), np.float32))
    with parts(codes.nbytes * max(1, tokens), len(codes)) as count:
        _multiply(
            placed,
            sums,
            scale_x,
            codes,
            *scales,
            zeros,
            weight.chunk,
            weight.group_slots,
            count,
            out,
        )
    return torch.from_numpy(out[: len(taken)])


@compiled
def _place(taken, order, chunk, group_slots, placed, sums):
    """The codes of x in slots, and their sums over each group: sixteen partial ones."""
    for token in range(taken.shape[0]):
        row = placed[token]
        for slot in range(order.shape[0]):
            column = order[slot]
            row[slot] = taken[token, column] if column >= 0 else np.int8(0)
        slot = 0
        for group in range(order.shape[0] // group_slots):
            found = splat(_NONE)
            for _ in range(group_slots // chunk):
                if chunk == 128:
                    found = byte_dot(found, splat(_ONES), load_words(row, slot))
                    found = byte_dot(found, splat(_ONES), load_words(row, slot + 64))
                else:
                    found = found + load_signed_bytes(row, slot) + load_signed_bytes(row, slot + 16)
                slot += chunk
            store_ints(sums[token], group * 16, found)


@inlined
def _zero_of(zeros, row, group):
    return np.int32(zeros[row, group] if zeros.shape[0] > 0 else SYMMETRIC_ZERO)


@inlined
def _scaled(found, zero, sums, group, scale, so_far):
    """so_far + scale * (found - zero * sum of x)."""
    less = multiply_ints(splat(zero), load_ints(sums, group * 16))
    return multiply_add(to_floats(found - less), splat(scale), so_far)


@inlined
def _chunk(found, low, high, x, slot):
    return byte_dot(byte_dot(found, low, load_words(x, slot)), high, load_words(x, slot + 64))


@compiled
def _dot_128(x, sums, code, scales, zeros, row, per_group):
    result, slot = splat(_ZERO), 0
    for group in range(scales.shape[0]):
        found = splat(_NONE)
        for _ in range(per_group):
            word = load_words(code, slot >> 1)
            low, high = word & splat(_LOW), (word >> splat(_FOUR)) & splat(_LOW)
            found = _chunk(found, low, high, x, slot)
            slot += 128
        zero = _zero_of(zeros, row, group)
        result = _scaled(found, zero, sums, group, scales[group], result)
    return total(result)


@compiled
def _dot4_128(xs, sums, scale_x, token, code, scales, zeros, row, per_group, out):
    """One row with four tokens: the codes are taken apart once."""
    x0, x1, x2, x3 = xs[token], xs[token + 1], xs[token + 2], xs[token + 3]
    s0, s1, s2, s3 = sums[token], sums[token + 1], sums[token + 2], sums[token + 3]
    a = b = c = d = splat(_ZERO)
    slot = 0
    for group in range(scales.shape[0]):
        f0 = f1 = f2 = f3 = splat(_NONE)
        for _ in range(per_group):
            word = load_words(code, slot >> 1)
            low, high = word & splat(_LOW), (word >> splat(_FOUR)) & splat(_LOW)
            f0 = _chunk(f0, low, high, x0, slot)
            f1 = _chunk(f1, low, high, x1, slot)
            f2 = _chunk(f2, low, high, x2, slot)
            f3 = _chunk(f3, low, high, x3, slot)
            slot += 128
        zero, scale = _zero_of(zeros, row, group), scales[group]
        a = _scaled(f0, zero, s0, group, scale, a)
        b = _scaled(f1, zero, s1, group, scale, b)
        c = _scaled(f2, zero, s2, group, scale, c)
        d = _scaled(f3, zero, s3, group, scale, d)
    out[token, row] = total(a) * scale_x[token]
    out[token + 1, row] = total(b) * scale_x[token + 1]
    out[token + 2, row] = total(c) * scale_x[token + 2]
    out[token + 3, row] = total(d) * scale_x[token + 3]


@compiled
def _dot_32(x, sums, code, scales, zeros, row, per_group):
    result, slot = splat(_ZERO), 0
    for group in range(scales.shape[0]):
        found = splat(_NONE)
        for _ in range(per_group):
            byte = load_bytes(code, slot >> 1)
            low = multiply_ints(byte & splat(_FIFTEEN), load_signed_bytes(x, slot))
            high = multiply_ints(byte >> splat(_FOUR), load_signed_bytes(x, slot + 16))
            found = found + low + high
            slot += 32
        zero = _zero_of(zeros, row, group)
        result = _scaled(found, zero, sums, group, scales[group], result)
    return total(result)


@compiled
def _rows(first, last, xs, sums, scale_x, codes, scale16, scale32, zeros, chunk, slots, out):
    scales = np.empty(codes.shape[1] * 2 // slots, np.float32)
    per_group, tokens = slots // chunk, xs.shape[0]
    for begin in range(0, tokens, _BLOCK):
        end = min(tokens, begin + _BLOCK)
        for row in range(first, last):
            widen(scale16, scale32, row, scales)
            code = codes[row]
            if chunk == 128 and tokens > 1:
                for token in range(begin, end, 4):
                    _dot4_128(xs, sums, scale_x, token, code, scales, zeros, row, per_group, out)
                continue
            for token in range(begin, end):
                x, sum_x = xs[token], sums[token]
                if chunk == 128:
                    y = _dot_128(x, sum_x, code, scales, zeros, row, per_group)
                else:
                    y = _dot_32(x, sum_x, code, scales, zeros, row, per_group)
                out[token, row] = y * scale_x[token]


@shared
def _multiply(xs, sums, scale_x, codes, scale16, scale32, zeros, chunk, slots, count, out):
    rows = codes.shape[0]
    for part in numba.prange(count):
        first, last = part * rows // count, (part + 1) * rows // count
        _rows(first, last, xs, sums, scale_x, codes, scale16, scale32, zeros, chunk, slots, out)
