"""A panel of sixteen rows of 16- or 32-bit floats, with one token or with four."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import (
    address_of,
    ask_ahead,
    bfloat16_at,
    float16_at,
    float32_at,
    number_at,
)
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import multiply_add
from labkit.quantize.lanes import splat, store

F32, F16 = NUMBERS["F32"], NUMBERS["F16"]
LAST_FLOAT = NUMBERS["BF16"]  # the numbers up to it are of floats
_ZERO = np.float32(0)


@inlined
def four_rows(x, token):
    """Where what four tokens have begins: an index that may be negative costs at each number."""
    return (
        address_of(x[token]),
        address_of(x[token + 1]),
        address_of(x[token + 2]),
        address_of(x[token + 3]),
    )


@inlined
def _float_lanes(kind, panel, column):
    if kind == F32:
        return float32_at(panel + 64 * column)
    if kind == F16:
        return float16_at(panel + 32 * column)
    return bfloat16_at(panel + 32 * column)


@compiled
def floats_one(kind, panel, columns, x, token, out, place):
    """Weights of 16 or 32 bits with one token."""
    row = address_of(x[token])
    a = b = c = d = splat(_ZERO)
    for four in range(columns >> 2):
        column, at = 4 * four, row + 16 * four
        for line in range(4 if kind == F32 else 2):
            ask_ahead(panel + (256 if kind == F32 else 128) * four + 64 * line)
        a = multiply_add(_float_lanes(kind, panel, column), number_at(at), a)
        b = multiply_add(_float_lanes(kind, panel, column + 1), number_at(at + 4), b)
        c = multiply_add(_float_lanes(kind, panel, column + 2), number_at(at + 8), c)
        d = multiply_add(_float_lanes(kind, panel, column + 3), number_at(at + 12), d)
    for rest in range(columns & -4, columns):
        a = multiply_add(_float_lanes(kind, panel, rest), number_at(row + 4 * rest), a)
    store(out[token], place, (a + b) + (c + d))


@inlined
def _two(v, w, x, some, more):
    """Two columns with a token's x, in two sums."""
    return multiply_add(v, number_at(x), some), multiply_add(w, number_at(x + 4), more)


@compiled
def floats_four(kind, panel, columns, x, token, out, place):
    """The same for four tokens from ``token`` on."""
    x0, x1, x2, x3 = four_rows(x, token)
    a = b = c = d = splat(_ZERO)
    e = f = g = h = splat(_ZERO)  # so that products need not wait for each other
    for pair in range(columns >> 1):
        for line in range((2 if kind == F32 else 1) if token == 0 else 0):
            ask_ahead(panel + (128 if kind == F32 else 64) * pair + 64 * line)
        v, at = _float_lanes(kind, panel, 2 * pair), 8 * pair
        w = _float_lanes(kind, panel, 2 * pair + 1)
        a, e = _two(v, w, x0 + at, a, e)
        b, f = _two(v, w, x1 + at, b, f)
        c, g = _two(v, w, x2 + at, c, g)
        d, h = _two(v, w, x3 + at, d, h)
    if columns & 1:
        w, at = _float_lanes(kind, panel, columns - 1), 4 * (columns - 1)
        a, b = multiply_add(w, number_at(x0 + at), a), multiply_add(w, number_at(x1 + at), b)
        c, d = multiply_add(w, number_at(x2 + at), c), multiply_add(w, number_at(x3 + at), d)
    store(out[token], place, a + e)
    store(out[token + 1], place, b + f)
    store(out[token + 2], place, c + g)
    store(out[token + 3], place, d + h)
