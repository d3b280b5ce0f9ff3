"""An FP8 (E4M3) weight on a CPU: eight bits become a float32 by moving them into place.

    S EEEE MMM  ->  S 0000EEEE MMM00…, times 2^120

The product moves the exponent by the difference of the biases, 127 - 7, and makes normal numbers of
E4M3's subnormal ones. The one pattern that it gets wrong is NaN, S 1111 111.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.float8_tensor import Float8Tensor
from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.parallel import compiled, float_rows, inlined, parts, shared
from labkit.kernels.cpu.vectors import as_floats, multiply_add, total
from labkit.quantize.lanes import bits_of, load, load_bytes, select, splat

_ZERO = np.float32(0)
_REST, _SIGN = np.int32(0x7F), np.int32(0x80)
_UP, _TOP = np.int32(20), np.int32(24)
_BIAS, _NAN = np.float32(2.0**120), np.float32(np.nan)
VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


def linear(x: Tensor, weight: Float8Tensor) -> Tensor:
    """x [tokens, in] @ (codes * scale).T, float32 [tokens, out]."""
    rows = float_rows(x, weight.shape[1])
    codes = weight.codes.contiguous()
    if len(rows) >= tiled.FEW:
        y = tiled.linear(torch.from_numpy(rows), len(codes), lambda a, b: codes[a:b].float())
    else:
        table, out = codes.view(torch.uint8).numpy(), np.empty((len(rows), len(codes)), np.float32)
        with parts(table.nbytes, len(table)) as count:
            _multiply(rows, table, count, out)
        y = torch.from_numpy(out)
    return y * weight.scale.float().reshape(1, -1)


@inlined
def floats_of(codes, place):
    """codes[place : place + 16], uint8, as float32."""
    byte = load_bytes(codes, place)
    rest = (byte & splat(_REST)) << splat(_UP)
    value = as_floats(rest) * splat(_BIAS)
    value = select(byte & splat(_REST) == splat(_REST), splat(_NAN), value)
    return as_floats(bits_of(value) | ((byte & splat(_SIGN)) << splat(_TOP)))


@compiled
def _dot(x, row):
    a = b = splat(_ZERO)
    columns, place = x.shape[0], 0
    while place + 32 <= columns:
        a = multiply_add(floats_of(row, place), load(x, place), a)
        b = multiply_add(floats_of(row, place + 16), load(x, place + 16), b)
        place += 32
    result = total(a + b)
    for rest in range(place, columns):
        result += VALUES[row[rest]] * x[rest]
    return result


@shared
def _multiply(xs, table, count, out):
    rows, tokens = table.shape[0], xs.shape[0]
    for part in numba.prange(count):
        for row in range(part * rows // count, (part + 1) * rows // count):
            for token in range(tokens):
                out[token, row] = _dot(xs[token], table[row])
