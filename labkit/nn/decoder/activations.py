"""What a token's numbers go through between two products: RMSNorm, SiLU.

`labkit.kernels.cpu.runs` rounds them to 8 bits, or sums them.
"""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.parallel import compiled
from labkit.kernels.cpu.vectors import multiply_add, total
from labkit.nn.decoder.functions import exponential
from labkit.quantize.lanes import LANES, load, negative, splat, store

_ZERO, _ONE = np.float32(0), np.float32(1)


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
def gate(gates, ups, first, last):
    """gates[first : last] *= sigmoid(gates) * ups: SiLU(gate) * up; multiples of 16."""
    for place in range(first, last, LANES):
        g = load(gates, place)
        silu = g / (splat(_ONE) + exponential(negative(g)))
        store(gates, place, silu * load(ups, place))
