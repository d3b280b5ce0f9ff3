"""An FP8 (E4M3) weight on a CPU, a row after the other, x in float32.

Sixty-four codes are read at once, and become floats in the order that their bytes' places give
(`labkit.kernels.cpu.fp8_lanes`): even columns, then odd ones. So x is laid down in that order.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.addresses import address_of, float32_at, next_words_at
from labkit.kernels.cpu.fp8_lanes import (
    VALUES,
    first_even,
    first_odd,
    larger_bytes,
    last_even,
    last_odd,
)
from labkit.kernels.cpu.operands import bytes_from, empty_result, float_operand, floats_from
from labkit.kernels.cpu.parallel import compiled, part_count, run, shared
from labkit.kernels.cpu.vectors import multiply_add, total, total_ints
from labkit.quantize.lanes import splat

_ZERO, _NONE, _SEVEN = np.float32(0), np.int32(0), np.int32(7)
_REST, _ONES = np.int32(0x7F7F7F7F), np.int32(0x01010101)
_UP, _NAN = np.float32(2.0**8), np.float32(np.nan)


def linear(x: Tensor, weight: Float8Tensor) -> Tensor:
    """x [tokens, in] @ (codes * scale).T, float32 [tokens, out]."""
    x, codes, scale = float_operand(x), weight.codes.contiguous(), weight.scale.float().reshape(-1)
    tokens, (rows, columns) = x.shape[0], weight.shape
    if tokens >= tiled.FEW:
        return tiled.linear(x, rows, lambda first, last: codes[first:last].float()) * scale
    y = empty_result(tokens, rows, torch.float32)
    count, scales = part_count(codes.nbytes, rows), (scale.data_ptr(), scale.shape[0])
    shape = tokens, rows, columns
    run(_multiply, count, codes.data_ptr(), *shape, x.data_ptr(), *scales, y.data_ptr())
    return y


@compiled
def _in_order(rows, out):
    """Of each sixty-four columns the even ones, then the odd ones; what is left stays."""
    columns = rows.shape[1]
    whole = columns - columns % 64
    for token in range(rows.shape[0]):
        for column in range(whole):
            chunk, place = column & ~63, column & 63
            out[token, chunk + 32 * (place & 1) + (place >> 1)] = rows[token, column]
        for column in range(whole, columns):
            out[token, column] = rows[token, column]


@compiled
def _dot(x, codes, columns):
    """The sum of ``columns`` products, a multiple of 64; NaN where a code is."""
    a = b = c = d = splat(_ZERO)
    largest = splat(_NONE)
    for place in range(0, columns, 64):
        word, at = next_words_at(codes + place), x + 4 * place
        a = multiply_add(first_even(word), float32_at(at), a)
        b = multiply_add(last_even(word), float32_at(at + 64), b)
        c = multiply_add(first_odd(word), float32_at(at + 128), c)
        d = multiply_add(last_odd(word), float32_at(at + 192), d)
        largest = larger_bytes(largest, word & splat(_REST))
    over = ((largest + splat(_ONES)) >> splat(_SEVEN)) & splat(_ONES)  # 0x7F + 1 has the eighth bit
    return _NAN if total_ints(over) != 0 else _UP * total((a + b) + (c + d))


@shared
def _multiply(codes, tokens, rows, columns, x_given, scales, scale_count, y, count):
    whole = columns - columns % 64
    x = np.empty((tokens, columns), np.float32)
    _in_order(floats_from(x_given, tokens, columns), x)
    for part in numba.prange(count):
        table, out = bytes_from(codes, rows, columns), floats_from(y, tokens, rows)
        scale = floats_from(scales, 1, scale_count)[0]
        for row in range(part * rows // count, (part + 1) * rows // count):
            for token in range(tokens):
                result = _dot(address_of(x) + 4 * token * columns, codes + row * columns, whole)
                for rest in range(whole, columns):
                    result += VALUES[table[row, rest]] * x[token, rest]
                out[token, row] = result * scale[row if scale_count > 1 else 0]
