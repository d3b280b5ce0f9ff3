"""NF4 and FP4 on a CPU: sixteen numbers fit a register, so a code is one look-up away from them.

64 bytes are 128 weights in a row, the first of a byte in its high bits: lane l holds the eight
weights from 8 l on, its k-th code from below is weight 8 l + (k ^ 1). The magnitudes of blocks are
multiplied in after those eight, lane by lane: two blocks of 64 share such a word. bfloat16 x has a
kernel of its own (`codebook_pairs`).
"""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.kernels.cpu import codebook_pairs, tiled
from labkit.kernels.cpu.addresses import address_of, float32_at, words_at
from labkit.kernels.cpu.codebook_scales import CHUNK, lane_scales, magnitudes, row_scales
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import arrange, compiled, float_rows, parts, shared
from labkit.kernels.cpu.vectors import look_up, multiply_add, total
from labkit.quantize import nf4_numba
from labkit.quantize.lanes import splat

_ZERO = np.float32(0)
_STEP = tuple(np.int32(4 * k) for k in range(8))


def linear(x: Tensor, weight: CodebookTensor) -> Tensor:
    """x [tokens, in] @ (levels[code] * absmax).T, float32 [tokens, out]."""
    rows_out, columns = weight.shape
    whole = columns % CHUNK == 0 and columns % weight.block_size == 0
    if x.dtype == torch.bfloat16 and HAS_PAIRS and whole and len(x) < tiled.FEW:
        return codebook_pairs.linear(x, weight)
    rows = float_rows(x, columns)
    levels = np.array(weight.book.values, np.float32)
    if not whole or len(rows) >= tiled.FEW:
        return _decoded(torch.from_numpy(rows), weight, torch.from_numpy(levels))
    placed = np.empty(rows.shape, np.float32)
    arrange(rows, _word_order(columns), placed)
    out = np.empty((len(rows), rows_out), np.float32)
    packed = weight.packed.numpy().reshape(rows_out, -1)
    with parts(packed.nbytes, rows_out) as count:
        held = magnitudes(weight, count)
        _multiply(placed, packed, levels, *held, weight.block_size, count, out)
    return torch.from_numpy(out)


def _decoded(x: Tensor, weight: CodebookTensor, levels: Tensor) -> Tensor:
    """By tiles; a row may begin within a block, and then all is decoded at once."""
    columns, size = x.shape[1], weight.block_size
    absmax, rows = weight.block_absmax(), weight.shape[0]
    if columns % size or columns % 2:
        count = weight.shape.numel()
        decoded = nf4_numba.decode(weight.packed, absmax, levels, size, count)
        return x @ decoded.reshape(weight.shape).T

    def decode(first: int, last: int) -> Tensor:
        packed = weight.packed[first * columns // 2 : last * columns // 2]
        part = absmax[first * columns // size : last * columns // size]
        values = nf4_numba.decode(packed, part, levels, size, (last - first) * columns)
        return values.reshape(-1, columns)

    return tiled.linear(x, rows, decode)


@lru_cache(maxsize=64)
def _word_order(columns: int) -> np.ndarray:
    """int32 [columns]: which column the k-th code of each lane belongs to, k by k."""
    codes = np.arange(columns, dtype=np.int32).reshape(-1, 16, 8)[:, :, [1, 0, 3, 2, 5, 4, 7, 6]]
    return np.ascontiguousarray(codes.transpose(0, 2, 1)).reshape(-1)


@compiled
def _dot(x, row, levels, columns, scales, size):
    """A row with one token; ``x``, ``row``, ``levels`` and ``scales`` are addresses."""
    table, result = float32_at(levels), splat(_ZERO)
    for slot in range(0, columns, CHUNK):
        word, at = words_at(row + (slot >> 1)), x + 4 * slot
        a = look_up(table, word) * float32_at(at)
        b = look_up(table, word >> splat(_STEP[1])) * float32_at(at + 64)
        a = multiply_add(look_up(table, word >> splat(_STEP[2])), float32_at(at + 128), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[3])), float32_at(at + 192), b)
        a = multiply_add(look_up(table, word >> splat(_STEP[4])), float32_at(at + 256), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[5])), float32_at(at + 320), b)
        a = multiply_add(look_up(table, word >> splat(_STEP[6])), float32_at(at + 384), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[7])), float32_at(at + 448), b)
        result = multiply_add(a + b, lane_scales(scales, slot, size), result)
    return total(result)


@shared
def _multiply(xs, packed, levels, absmax, codes, nested, offset, run, room, size, count, out):
    rows, tokens, columns = packed.shape[0], xs.shape[0], xs.shape[1]
    blocks = columns // size
    for part in numba.prange(count):
        for row in range(part * rows // count, (part + 1) * rows // count):
            first, place = row * blocks, address_of(packed) + row * (columns >> 1)
            scales = row_scales(absmax, codes, nested, offset, run, first, blocks, room[part])
            for token in range(tokens):
                x = address_of(xs) + token * columns * 4
                out[token, row] = _dot(x, place, address_of(levels), columns, scales, size)
