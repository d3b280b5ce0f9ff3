"""What a token's numbers go through between two products: RMSNorm, rounding to 8 bits, SiLU.

Rounded activations are int8 codes with a float32 scale for each 32 columns, as llama.cpp's Q8_0
(its K-quants take one for each 256). `less` is what the weights' offsets need: minus the sum over
each 16 columns of what is multiplied, in units of x.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.loads import load_signed_bytes
from labkit.kernels.cpu.parallel import compiled
from labkit.kernels.cpu.vectors import largest, multiply_add, total, total_ints
from labkit.nn.decoder.functions import exponential
from labkit.quantize.lanes import (
    LANES,
    absolute,
    bits_of,
    load,
    negative,
    select,
    splat,
    store,
    store_bytes,
)

BLOCK = 32
_ROUND = np.float32(1.5 * 2**23)
_ROUND_BITS = np.int32(_ROUND.view(np.int32))
_ZERO, _ONE, _REACH = np.float32(0), np.float32(1), np.float32(127)


@compiled
def normalize(row, columns, weight, epsilon, out):
    """out = row / sqrt(mean(row^2) + epsilon) * weight; columns are a multiple of 16."""
    squares = splat(_ZERO)
    for place in range(0, columns, LANES):
        x = load(row, place)
        squares = multiply_add(x, x, squares)
    mean = total(squares) / np.float32(columns)
    factor = np.float32(_ONE / np.sqrt(np.float32(mean + epsilon)))
    for place in range(0, columns, LANES):
        store(out, place, load(row, place) * splat(factor) * load(weight, place))


@compiled
def round_block(row, block, codes, scale, less):
    """32 columns to int8; ``codes`` is uint8 memory."""
    place = BLOCK * block
    a, b = load(row, place), load(row, place + LANES)
    x, y = absolute(a), absolute(b)
    most = largest(select(x > y, x, y))
    step = np.float32(most / _REACH)
    inverse = np.float32(_REACH / most) if most > _ZERO else _ZERO
    for half in range(2):
        x = a if half == 0 else b
        rounded = multiply_add(x, splat(inverse), splat(_ROUND))
        store_bytes(codes, place + LANES * half, bits_of(rounded) - splat(_ROUND_BITS))
        found = total_ints(load_signed_bytes(codes, place + LANES * half))
        less[2 * block + half] = -step * np.float32(found)
    scale[block] = step


@compiled
def sums_block(row, block, less):
    """``less`` of 32 columns that stay float32."""
    less[2 * block] = -total(load(row, BLOCK * block))
    less[2 * block + 1] = -total(load(row, BLOCK * block + LANES))


@compiled
def gate(gates, ups, first, last):
    """gates[first : last] *= sigmoid(gates) * ups: SiLU(gate) * up; multiples of 16."""
    for place in range(first, last, LANES):
        g = load(gates, place)
        silu = g / (splat(_ONE) + exponential(negative(g)))
        store(gates, place, silu * load(ups, place))
