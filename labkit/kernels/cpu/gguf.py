"""A GGUF weight on a CPU, straight from its blocks: Q4_0, Q8_0 and Q4_K; other types by tiles.

The codes of a block become float32 in registers. A 4-bit code is looked up among the sixteen
weights that it can stand for in its (sub-)block, scale and minimum applied, so a weight is what
`labkit.quantize.gguf.dequantize` gives, to within one rounding.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.loads import load_ints, load_signed_bytes, load_word
from labkit.kernels.cpu.parallel import compiled, float_rows, half_at, inlined, parts, shared
from labkit.kernels.cpu.vectors import halves, look_up, multiply_add, quarters, total
from labkit.quantize import gguf as blocks_of
from labkit.quantize.lanes import load, load_bytes, splat, store, to_floats

_ZERO, _FOUR = np.float32(0), np.int32(4)
_LEVELS = np.arange(16, dtype=np.float32)
_SIGNED = _LEVELS - np.float32(8)
_BYTES = np.tile(np.arange(0, 32, 8, dtype=np.int32), 4)
_BYTE, _SIX, _NIBBLES, _PAIR = np.int32(255), 0x3F3F3F3F, 0x0F0F0F0F, 0x30303030
_KINDS = {"Q4_0": 0, "Q8_0": 1, "Q4_K": 2}


def linear(x: Tensor, blocks: Tensor, type_name: str) -> Tensor:
    """x [tokens, in] @ weight.T, float32 [tokens, out]; blocks uint8 [out, bytes of a row]."""
    rows = float_rows(x, x.shape[-1])
    table = blocks.numpy()
    if type_name not in _KINDS or len(rows) >= tiled.FEW:

        def decode(first: int, last: int) -> Tensor:
            threads = torch.get_num_threads()
            part = blocks_of.dequantize(table[first:last], type_name, threads=threads)
            return torch.from_numpy(part)

        return tiled.linear(torch.from_numpy(rows), len(table), decode)
    out = np.empty((len(rows), len(table)), np.float32)
    with parts(table.nbytes, len(table)) as count:
        _multiply(rows, table, _KINDS[type_name], count, out)
    return torch.from_numpy(out)


@compiled
def _dot_q4_0(x, row):
    """18 bytes hold 32 weights: byte j of the last 16 weight j below and j + 16 above."""
    a = b = splat(_ZERO)
    levels = load(_SIGNED, 0)
    for block in range(x.shape[0] >> 5):
        start, place = 18 * block, 32 * block
        table = levels * splat(half_at(row, start))
        byte = load_bytes(row, start + 2)
        a = multiply_add(look_up(table, byte), load(x, place), a)
        b = multiply_add(look_up(table, byte >> splat(_FOUR)), load(x, place + 16), b)
    return total(a + b)


@compiled
def _dot_q8_0(x, row):
    """34 bytes hold 32 weights, int8 after the scale."""
    a = b = splat(_ZERO)
    for block in range(x.shape[0] >> 5):
        start, place = 34 * block, 32 * block
        d = splat(half_at(row, start))
        a = multiply_add(to_floats(load_signed_bytes(row, start + 2)) * d, load(x, place), a)
        b = multiply_add(to_floats(load_signed_bytes(row, start + 18)) * d, load(x, place + 16), b)
    return total(a + b)


@inlined
def _scales_and_mins(row, start, out):
    """The 8 scales and the 8 mins of the block that begins at ``start``, float32, to ``out`` [16].

    They have 6 bits, four of them in the bytes of a word; the last four of both have their high 2
    bits on top of the first four's bytes.
    """
    scale, least = splat(half_at(row, start)), splat(half_at(row, start + 2))
    first, second = np.int64(load_word(row, start + 4)), np.int64(load_word(row, start + 8))
    rest = np.int64(load_word(row, start + 12))
    words = quarters(
        np.int32(first & _SIX),
        np.int32((rest & _NIBBLES) | ((first >> 2) & _PAIR)),
        np.int32(second & _SIX),
        np.int32(((rest >> 4) & _NIBBLES) | ((second >> 2) & _PAIR)),
    )
    codes = (words >> load_ints(_BYTES, 0)) & splat(_BYTE)
    store(out, 0, to_floats(codes) * halves(scale, least))


@compiled
def _dot_q4_k(x, row, near):
    """144 bytes hold 256 weights: 32 bytes the next 64, the first 32 of them in the low bits."""
    a = b = c = d = splat(_ZERO)
    levels = load(_LEVELS, 0)
    for block in range(x.shape[0] >> 8):
        start = 144 * block
        _scales_and_mins(row, start, near)
        for pair in range(4):
            low = levels * splat(near[2 * pair]) - splat(near[2 * pair + 8])
            high = levels * splat(near[2 * pair + 1]) - splat(near[2 * pair + 9])
            code, place = start + 16 + 32 * pair, 256 * block + 64 * pair
            first, second = load_bytes(row, code), load_bytes(row, code + 16)
            a = multiply_add(look_up(low, first), load(x, place), a)
            b = multiply_add(look_up(low, second), load(x, place + 16), b)
            c = multiply_add(look_up(high, first >> splat(_FOUR)), load(x, place + 32), c)
            d = multiply_add(look_up(high, second >> splat(_FOUR)), load(x, place + 48), d)
    return total((a + b) + (c + d))


@shared
def _multiply(xs, table, kind, count, out):
    rows, tokens = table.shape[0], xs.shape[0]
    for part in numba.prange(count):
        near = np.empty(16, np.float32)
        for row in range(part * rows // count, (part + 1) * rows // count):
            for token in range(tokens):
                if kind == 0:
                    out[token, row] = _dot_q4_0(xs[token], table[row])
                elif kind == 1:
                    out[token, row] = _dot_q8_0(xs[token], table[row])
                else:
                    out[token, row] = _dot_q4_k(xs[token], table[row], near)
