"""NF4 and FP4 on a CPU: sixteen numbers fit a register, so a code is one look-up away from them.

64 bytes are 128 weights in a row, the first of a byte in its high bits: lane l holds the eight
weights from 8 l on, its k-th code from below is weight 8 l + (k ^ 1). The magnitudes of blocks are
multiplied in after those eight, lane by lane: two blocks of 64 share such a word.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.loads import load_words
from labkit.kernels.cpu.parallel import arrange, compiled, float_rows, inlined, parts, shared
from labkit.kernels.cpu.vectors import halves, in_fours, look_up, multiply_add, total
from labkit.quantize import nf4_numba
from labkit.quantize.lanes import load, splat

_ZERO = np.float32(0)
_CHUNK = 128
_STEP = tuple(np.int32(4 * k) for k in range(8))


def linear(x: Tensor, weight: CodebookTensor) -> Tensor:
    """x [tokens, in] @ (levels[code] * absmax).T, float32 [tokens, out]."""
    rows_out, columns = weight.shape
    rows = float_rows(x, columns)
    levels = np.array(weight.book.values, np.float32)
    whole = columns % _CHUNK == 0 and columns % weight.block_size == 0
    if not whole or len(rows) >= tiled.FEW:
        return _decoded(torch.from_numpy(rows), weight, torch.from_numpy(levels))
    placed = np.empty(rows.shape, np.float32)
    arrange(rows, _word_order(columns), placed)
    out = np.empty((len(rows), rows_out), np.float32)
    packed = weight.packed.numpy().reshape(rows_out, -1)
    with parts(packed.nbytes, rows_out) as count:
        _multiply(placed, packed, levels, *_magnitudes(weight), weight.block_size, count, out)
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


def _word_order(columns: int) -> np.ndarray:
    """int32 [columns]: which column the k-th code of each lane belongs to, k by k."""
    codes = np.arange(columns, dtype=np.int32).reshape(-1, 16, 8)[:, :, [1, 0, 3, 2, 5, 4, 7, 6]]
    return np.ascontiguousarray(codes.transpose(0, 2, 1)).reshape(-1)


def _magnitudes(weight: CodebookTensor) -> tuple:
    """(absmax, codes, levels, offset, run): plain magnitudes, or what nested ones are made of."""
    scales = weight.absmax
    if isinstance(scales, NestedAbsmax):
        parts_of = (scales.absmax, scales.codes, scales.levels)
        arrays = tuple(part.contiguous().numpy() for part in parts_of)
        return (*arrays, np.float32(scales.offset), scales.block_size)
    nothing = np.empty(0, np.uint8), np.empty(0, np.float32)
    return (scales.contiguous().numpy(), *nothing, _ZERO, 1)


@inlined
def _block_scales(absmax, codes, levels, offset, run, first, out):
    """out = the magnitudes of the blocks from ``first`` on."""
    for block in range(out.shape[0]):
        if codes.shape[0] > 0:
            level = levels[codes[first + block]]
            out[block] = level * absmax[(first + block) // run] + offset
        else:
            out[block] = absmax[first + block]


@inlined
def _lane_scales(scales, slot, size):
    """The magnitude of each lane's eight weights."""
    if size >= _CHUNK:
        return splat(scales[slot // size])
    if size == 64:
        block = slot >> 6
        return halves(splat(scales[block]), splat(scales[block + 1]))
    block = slot >> 5
    below = in_fours(splat(scales[block]), splat(scales[block + 1]))
    above = in_fours(splat(scales[block + 2]), splat(scales[block + 3]))
    return halves(below, above)


@compiled
def _dot(x, row, levels, scales, size):
    table, result = load(levels, 0), splat(_ZERO)
    for slot in range(0, x.shape[0], _CHUNK):
        word = load_words(row, slot >> 1)
        a = look_up(table, word) * load(x, slot)
        b = look_up(table, word >> splat(_STEP[1])) * load(x, slot + 16)
        a = multiply_add(look_up(table, word >> splat(_STEP[2])), load(x, slot + 32), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[3])), load(x, slot + 48), b)
        a = multiply_add(look_up(table, word >> splat(_STEP[4])), load(x, slot + 64), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[5])), load(x, slot + 80), b)
        a = multiply_add(look_up(table, word >> splat(_STEP[6])), load(x, slot + 96), a)
        b = multiply_add(look_up(table, word >> splat(_STEP[7])), load(x, slot + 112), b)
        result = multiply_add(a + b, _lane_scales(scales, slot, size), result)
    return total(result)


@shared
def _multiply(xs, packed, levels, absmax, codes, nested, offset, run, size, count, out):
    rows, tokens, blocks = packed.shape[0], xs.shape[0], xs.shape[1] // size
    for part in numba.prange(count):
        scales = np.empty(blocks, np.float32)
        for row in range(part * rows // count, (part + 1) * rows // count):
            _block_scales(absmax, codes, nested, offset, run, row * blocks, scales)
            for token in range(tokens):
                out[token, row] = _dot(xs[token], packed[row], levels, scales, size)
