"""The encoder of `labkit.quantize.mxfp4`, compiled: the same bytes.

A code is the number of midpoints below a magnitude: seven comparisons for each of 32 weights side
by side. The scale byte is read off the bits of the largest magnitude: its exponent, or one more
where log2f rounds up.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_checks_numba import checked
from labkit.quantize.legacy_blocks_numba import with_own_output
from labkit.quantize.mxfp4 import BOUNDS, exponent

_MAGNITUDE = np.int32(0x7FFFFFFF)
_NBYTES = 17


def _first_mantissas() -> np.ndarray:
    """For each binade, 2^-149 first, the first 23-bit mantissa from which log2f says one more.

    int32 [277]; 2^23 where none does. Found by bisection, as log2 never falls.
    """
    binade = np.arange(277)
    low, high = np.zeros(277, np.int64), np.full(277, 2**23)
    while (low < high).any():
        middle = (low + high) // 2
        found = exponent(np.ldexp(1 + middle / 2**23, binade - 149))
        more = (found != (binade - 149 - 2 + 127) & 0xFF) & (low < high)
        low = np.where(more | (low == high), low, middle + 1)
        high = np.where(more, middle, high)
    return low.astype(np.int32)


_ROUNDS_UP = _first_mantissas()


@numba.njit(error_model="numpy")
def _exponent(top):
    """The scale byte for the bits, int32, of a block's largest magnitude."""
    field, mantissa = top >> np.int32(23), top & np.int32(0x7FFFFF)
    if top == 0:
        return np.uint8(0)
    while field <= 0 and mantissa < 2**23:  # subnormal: the first 1 moves to where it is implied
        mantissa <<= 1
        field -= 1
    if field < 0:
        field += 1
    binade = field + 22
    up = (mantissa & 0x7FFFFF) >= _ROUNDS_UP[binade]
    return np.uint8((binade - 149 - 2 + 127 + np.int32(up)) & 0xFF)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _encode(x, bits, out):
    codes = np.empty(32, np.int32)
    for i in range(x.shape[0]):
        v, pattern, block = x[i], bits[i], out[i]
        top = np.int32(0)
        for j in range(pattern.size):
            top = max(top, np.int32(pattern[j] & _MAGNITUDE))
        e = _exponent(top)
        block[0] = e
        codes[:] = 0
        for k in range(BOUNDS.shape[1]):
            bound = BOUNDS[e, k]
            for j in range(v.size):
                codes[j] += np.int32(abs(v[j]) > bound)
        for j in range(v.size):
            codes[j] |= np.int32((v[j] < 0) & (codes[j] > 0)) << 3
        first, second, qs = codes[0:16], codes[16:32], block[1:17]
        for j in range(qs.size):
            qs[j] = np.uint8(first[j] | (second[j] << 4))


def _encode_into(x: np.ndarray, importance: None, out: np.ndarray, threads: int) -> float:
    """Write the blocks of float32 ``x`` [rows, columns] into ``out``; return the largest |x|."""
    blocks, table = x.reshape(-1, 32), out.reshape(-1, _NBYTES)

    def convert(first: int, last: int) -> None:
        part = blocks[first:last]
        _encode(part, part.view(np.int32), table[first:last])

    return checked(convert, blocks, threads)


ENCODE_INTO = {"MXFP4": _encode_into}
ENCODE = {"MXFP4": with_own_output("MXFP4", _encode_into)}
