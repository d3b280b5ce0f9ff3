"""How x comes into a product with panels and y out of it: by address, y in the dtype wanted.

Between two weights nothing of Python stays in the cache, so a step of torch or NumPy takes several
times as long as by itself, and with one token such steps are a part of the product that shows. So
there are as few of them as can be: float32 is taken as it is, and y is rounded where it is summed.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of, store_at, store_shorts_at
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.quantize.lanes import LANES, bits_of, load, select, splat

_ROUND, _ONE, _SIXTEEN = np.int32(0x7FFF), np.int32(1), np.int32(16)
_NAN = np.float32(np.nan)


def float_operand(x: Tensor) -> Tensor:
    """x as contiguous float32, which is x itself where it can be."""
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return x.contiguous()


def empty_result(tokens: int, rows: int, dtype: torch.dtype) -> Tensor:
    """y [tokens, rows] to be filled in: bfloat16 if that is wanted, else float32."""
    kept = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return torch.empty(tokens, rows, dtype=kept)


def _pointer(kind):
    @intrinsic
    def pointer(typing_context, address):
        """An address as a pointer."""

        def generate(context, builder, signature, arguments):
            place = context.get_value_type(kind).as_pointer()
            return builder.inttoptr(arguments[0], place)

        return types.CPointer(kind)(types.int64), generate

    return pointer


_to_floats, _to_shorts = _pointer(types.float32), _pointer(types.int16)
_to_bytes = _pointer(types.uint8)


@inlined
def floats_from(address, rows, columns):
    """float32 [rows, columns] that begin at an address; something else must keep them alive."""
    return numba.carray(_to_floats(address), (rows, columns))


@inlined
def shorts_from(address, rows, columns):
    """int16 [rows, columns], alike."""
    return numba.carray(_to_shorts(address), (rows, columns))


@inlined
def bytes_from(address, rows, columns):
    """uint8 [rows, columns], alike."""
    return numba.carray(_to_bytes(address), (rows, columns))


@inlined
def _bfloat16_bits(value):
    """The nearest bfloat16 of each lane, ties to even, in its low 16 bits."""
    bits = bits_of(select(value == value, value, splat(_NAN)))
    odd = (bits >> splat(_SIXTEEN)) & splat(_ONE)
    return (bits + splat(_ROUND) + odd) >> splat(_SIXTEEN)


@compiled
def sums_beside(tokens, given, width, size, rows):
    """float32 [tokens, width] to sum in; [0, width] where y [given, rows] itself can hold that."""
    as_wanted = size == 4 and rows == width and tokens == given
    return np.empty((0 if as_wanted else tokens, width), np.float32)


@compiled
def _put(value, y, size):
    """Sixteen sums to an address, as float32 or, of 2 bytes, as bfloat16."""
    if size == 2:
        store_shorts_at(y, _bfloat16_bits(value))
    else:
        store_at(y, value)


@compiled
def hand_over(out, first, last, y, size, tokens, rows):
    """Write columns ``first`` … ``last`` - 1 of the sums to y.

    Args:
        out: float32 [tokens or more, whole registers].
        first, last: multiples of 16; what lies behind the last row of y is left out.
        y: the address of [tokens, rows] numbers of ``size`` bytes, as `empty_result` made them.
    """
    some = np.empty(2 * LANES, np.int16)
    for token in range(tokens):
        for place in range(first, last, LANES):
            value, at = load(out[token], place), y + size * (token * rows + place)
            if place + LANES <= rows:
                _put(value, at, size)
                continue
            _put(value, address_of(some), size)
            halves = (rows - place) * size // 2
            shorts_from(at, 1, halves)[0] = some[:halves]
