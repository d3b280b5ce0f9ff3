"""NF4 and FP4 times bfloat16 x, where the processor multiplies pairs: 32 levels a look-up.

Both sides are bfloat16 then, the sixteen levels as well: rounding them moves a weight by at most
2^-9 of itself, half of what rounding level * magnitude to bfloat16 may do, as is usual elsewhere.
Sums and magnitudes are float32.

64 bytes are 128 weights in a row, the first of a byte in its high bits. Shifted by 0, 4, 8 and 12
bits, the two halves of lane l begin with the codes of weights 8 l + k and 8 l + 4 + k, where k is
1, 0, 3 and 2; so a lane still sums the eight weights from 8 l on.
"""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.kernels.cpu.addresses import address_of, words_at
from labkit.kernels.cpu.codebook_scales import CHUNK, lane_scales, magnitudes, row_scales
from labkit.kernels.cpu.pairs import look_up_pairs, pair_dot
from labkit.kernels.cpu.parallel import arrange, compiled, parts, shared
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.quantize.lanes import splat

_ZERO = np.float32(0)
_STEPS = (np.int32(4), np.int32(8), np.int32(12))


def linear(x: Tensor, weight: CodebookTensor) -> Tensor:
    """x bfloat16 [tokens, in] @ (levels[code] * absmax).T, float32 [tokens, out]."""
    rows, columns = weight.shape
    bits = x.contiguous().view(torch.int16).numpy()
    placed = np.empty(bits.shape, np.int16)
    arrange(bits, _pair_order(columns), placed)
    levels = _levels(weight.book.values)
    packed = weight.packed.numpy().reshape(rows, -1)
    out = np.empty((len(bits), rows), np.float32)
    with parts(packed.nbytes, rows) as count:
        held = magnitudes(weight, count)
        _multiply(placed, packed, levels, *held, weight.block_size, count, out)
    return torch.from_numpy(out)


@lru_cache(maxsize=4)
def _levels(values: tuple[float, ...]) -> np.ndarray:
    """The bits of the sixteen levels in bfloat16, twice: a look-up reads five bits."""
    return torch.tensor(values).to(torch.bfloat16).repeat(2).view(torch.int16).numpy()


@lru_cache(maxsize=64)
def _pair_order(columns: int) -> np.ndarray:
    """int32 [columns]: the columns in the order in which the codes of a word are looked up."""
    # [chunk, half of a lane, k] -> [chunk, k, half of a lane]
    halves = np.arange(columns, dtype=np.int32).reshape(-1, 32, 4)[:, :, [1, 0, 3, 2]]
    return np.ascontiguousarray(halves.transpose(0, 2, 1)).reshape(-1)


@compiled
def _dot(x, row, levels, columns, scales, size):
    """A row with one token; ``x``, ``row``, ``levels`` and ``scales`` are addresses."""
    table, result = words_at(levels), splat(_ZERO)
    for slot in range(0, columns, CHUNK):
        word, at = words_at(row + (slot >> 1)), x + 2 * slot
        a = pair_dot(splat(_ZERO), look_up_pairs(table, word), words_at(at))
        b = look_up_pairs(table, word >> splat(_STEPS[0]))
        b = pair_dot(splat(_ZERO), b, words_at(at + 64))
        a = pair_dot(a, look_up_pairs(table, word >> splat(_STEPS[1])), words_at(at + 128))
        b = pair_dot(b, look_up_pairs(table, word >> splat(_STEPS[2])), words_at(at + 192))
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
                x = address_of(xs) + token * columns * 2
                out[token, row] = _dot(x, place, address_of(levels), columns, scales, size)
