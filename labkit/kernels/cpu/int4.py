"""W4A16 on a CPU: 4-bit codes become float32 weights inside a register, and meet float32 x there.

A weight is what `dequantize` says, (code - zero_point) * scale in float32, to the bit: the sixteen
weights that the codes of a group can stand for fit one register, and are looked up in it.

    table = (levels - zero) * scale            sixteen weights of this group
    word  = 64 bytes                           eight codes in each of sixteen lanes
    total = total + look_up(table, word) * x   eight times, the word shifted by 4 bits each time

Few tokens read x in the order of `Int4Weight.word_order`. From `tiled.FEW` tokens on the
same weights are written out for a run of rows at a time, and torch multiplies them.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.loads import load_words
from labkit.kernels.cpu.look_ups import eight
from labkit.kernels.cpu.parallel import (
    arrange,
    compiled,
    float_rows,
    fours,
    inlined,
    parts,
    scale_arrays,
    shared,
    widen,
)
from labkit.kernels.cpu.vectors import look_up, multiply_add, total
from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight
from labkit.quantize.lanes import load, load_bytes, splat, store

_NEAR = 24576  # numbers of x that are used again for the next row: 96 KB, they stay close
_ZERO, _FOUR = np.float32(0), np.int32(4)
_LEVELS = np.arange(16, dtype=np.float32)
_NO_ZEROS = np.empty((0, 0), np.uint8)


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [..., in] @ dequantized weight.T, float32 [tokens, out]."""
    rows = float_rows(x, weight.in_features)
    order = weight.word_order.numpy()
    placed = np.zeros((fours(len(rows)), len(order)), np.float32)
    arrange(rows, order, placed)
    codes = weight.codes.numpy()
    zeros = _NO_ZEROS if weight.zero_point is None else weight.zero_point.numpy()
    parts_of = (codes, *scale_arrays(weight.scale), zeros, weight.chunk, weight.group_slots)
    if len(rows) < tiled.FEW:
        out = np.empty((len(placed), len(codes)), np.float32)
        with parts(codes.nbytes, len(codes)) as count:
            _multiply(placed, *parts_of, count, out)
        return torch.from_numpy(out[: len(rows)])
    slots = len(order)
    tile = np.empty((min(tiled.rows_of_a_tile(slots), len(codes)), slots), np.float32)

    def decode(first: int, last: int) -> Tensor:
        with parts(tile.nbytes, last - first) as count:
            _write(first, last, *parts_of, count, tile)
        return torch.from_numpy(tile[: last - first])

    return tiled.linear(torch.from_numpy(placed[: len(rows)]), len(codes), decode)


@inlined
def _table(scale, zero):
    """The sixteen weights of a group."""
    return (load(_LEVELS, 0) - splat(zero)) * splat(scale)


@inlined
def _zero_of(zeros, row, group):
    return np.float32(zeros[row, group] if zeros.shape[0] > 0 else SYMMETRIC_ZERO)


@inlined
def _two(table, byte):
    """The weights of a chunk of 32."""
    return look_up(table, byte), look_up(table, byte >> splat(_FOUR))


@compiled
def _dot_128(x, code, scales, zeros, row, begin, end, per_group):
    """Groups begin … end of a row with one token: four sums, so that no product waits for one."""
    a = b = c = d = splat(_ZERO)
    slot = begin * per_group * 128
    for group in range(begin, end):
        table = _table(scales[group], _zero_of(zeros, row, group))
        for _ in range(per_group):
            w = eight(table, load_words(code, slot >> 1))
            a = multiply_add(w[0], load(x, slot), a)
            b = multiply_add(w[1], load(x, slot + 16), b)
            c = multiply_add(w[2], load(x, slot + 32), c)
            d = multiply_add(w[3], load(x, slot + 48), d)
            a = multiply_add(w[4], load(x, slot + 64), a)
            b = multiply_add(w[5], load(x, slot + 80), b)
            c = multiply_add(w[6], load(x, slot + 96), c)
            d = multiply_add(w[7], load(x, slot + 112), d)
            slot += 128
    return total((a + b) + (c + d))


@inlined
def _four(weights, x0, x1, x2, x3, place, sums):
    """Sixteen weights with four tokens."""
    return (
        multiply_add(weights, load(x0, place), sums[0]),
        multiply_add(weights, load(x1, place), sums[1]),
        multiply_add(weights, load(x2, place), sums[2]),
        multiply_add(weights, load(x3, place), sums[3]),
    )


@compiled
def _dot4_128(xs, token, code, scales, zeros, row, begin, end, per_group, out):
    """The same with four tokens, added to ``out``: the weights are looked up once."""
    x0, x1, x2, x3 = xs[token], xs[token + 1], xs[token + 2], xs[token + 3]
    sums = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
    slot = begin * per_group * 128
    for group in range(begin, end):
        table = _table(scales[group], _zero_of(zeros, row, group))
        for _ in range(per_group):
            w = eight(table, load_words(code, slot >> 1))
            sums = _four(w[0], x0, x1, x2, x3, slot, sums)
            sums = _four(w[1], x0, x1, x2, x3, slot + 16, sums)
            sums = _four(w[2], x0, x1, x2, x3, slot + 32, sums)
            sums = _four(w[3], x0, x1, x2, x3, slot + 48, sums)
            sums = _four(w[4], x0, x1, x2, x3, slot + 64, sums)
            sums = _four(w[5], x0, x1, x2, x3, slot + 80, sums)
            sums = _four(w[6], x0, x1, x2, x3, slot + 96, sums)
            sums = _four(w[7], x0, x1, x2, x3, slot + 112, sums)
            slot += 128
    out[token, row] += total(sums[0])
    out[token + 1, row] += total(sums[1])
    out[token + 2, row] += total(sums[2])
    out[token + 3, row] += total(sums[3])


@compiled
def _dot_32(x, code, scales, zeros, row, begin, end, per_group):
    a = b = splat(_ZERO)
    slot = begin * per_group * 32
    for group in range(begin, end):
        table = _table(scales[group], _zero_of(zeros, row, group))
        for _ in range(per_group):
            w = _two(table, load_bytes(code, slot >> 1))
            a = multiply_add(w[0], load(x, slot), a)
            b = multiply_add(w[1], load(x, slot + 16), b)
            slot += 32
    return total(a + b)


@compiled
def _rows(first, last, xs, codes, scale16, scale32, zeros, chunk, group_slots, out):
    """Rows first … last of the product, for every token: so many groups at a time as x is near."""
    groups = codes.shape[1] * 2 // group_slots
    scales = np.empty(groups, np.float32)
    per_group, tokens = group_slots // chunk, xs.shape[0]
    span = max(1, _NEAR // (tokens * group_slots))  # there is a token: see checks.product
    for token in range(tokens):
        for row in range(first, last):
            out[token, row] = _ZERO
    for begin in range(0, groups, span):
        end = min(groups, begin + span)
        for row in range(first, last):
            widen(scale16, scale32, row, scales)
            code = codes[row]
            if chunk == 128 and tokens > 1:
                for token in range(0, tokens, 4):
                    _dot4_128(xs, token, code, scales, zeros, row, begin, end, per_group, out)
            elif chunk == 128:
                y = _dot_128(xs[0], code, scales, zeros, row, begin, end, per_group)
                out[0, row] += y
            else:
                for token in range(tokens):
                    y = _dot_32(xs[token], code, scales, zeros, row, begin, end, per_group)
                    out[token, row] += y


@shared
def _multiply(xs, codes, scale16, scale32, zeros, chunk, group_slots, count, out):
    rows = codes.shape[0]
    for part in numba.prange(count):
        first, last = part * rows // count, (part + 1) * rows // count
        _rows(first, last, xs, codes, scale16, scale32, zeros, chunk, group_slots, out)


@compiled
def _write_row(row, codes, scales, zeros, chunk, per_group, out):
    """The weights of a row in word order."""
    code, slot = codes[row], 0
    for group in range(scales.shape[0]):
        table = _table(scales[group], _zero_of(zeros, row, group))
        for _ in range(per_group):
            if chunk == 128:
                w = eight(table, load_words(code, slot >> 1))
                store(out, slot, w[0])
                store(out, slot + 16, w[1])
                store(out, slot + 32, w[2])
                store(out, slot + 48, w[3])
                store(out, slot + 64, w[4])
                store(out, slot + 80, w[5])
                store(out, slot + 96, w[6])
                store(out, slot + 112, w[7])
            else:
                pair = _two(table, load_bytes(code, slot >> 1))
                store(out, slot, pair[0])
                store(out, slot + 16, pair[1])
            slot += chunk


@shared
def _write(begin, end, codes, scale16, scale32, zeros, chunk, group_slots, count, tile):
    """Rows begin … end, dequantized, to ``tile``."""
    rows = end - begin
    for part in numba.prange(count):
        scales = np.empty(codes.shape[1] * 2 // group_slots, np.float32)
        for row in range(part * rows // count, (part + 1) * rows // count):
            widen(scale16, scale32, begin + row, scales)
            where = tile[row]
            _write_row(begin + row, codes, scales, zeros, chunk, group_slots // chunk, where)
