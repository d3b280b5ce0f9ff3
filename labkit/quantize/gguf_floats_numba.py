"""F32, F16 and BF16 compiled: the same bytes as `labkit.quantize.gguf_floats`.

They are limited by memory, so they write where the result shall be.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import share
from labkit.quantize.half_numba import to_half, wide

_ONE, _SIXTEEN, _ALMOST_HALF = np.uint32(1), np.uint32(16), np.uint32(0x7FFF)


def _copy(x: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out, x)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _to_halves(x, out):
    for j in range(x.size):
        out[j] = to_half(x[j])


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _from_halves(x, out):
    for j in range(x.size):
        out[j] = wide(x[j])


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _to_bfloats(x, out):
    for j in range(x.size):
        even = np.uint32((x[j] >> _SIXTEEN) & _ONE)
        out[j] = np.uint16(np.uint32(x[j] + _ALMOST_HALF + even) >> _SIXTEEN)


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _from_bfloats(x, out):
    for j in range(x.size):
        out[j] = np.uint32(x[j]) << _SIXTEEN


def _converter(loop, source: type, target: type):
    """f(x, out, threads) for contiguous arrays of any dtype, taken for ``source``, ``target``."""

    def convert(x: np.ndarray, out: np.ndarray, threads: int) -> None:
        numbers, results = x.reshape(-1).view(source), out.reshape(-1).view(target)
        share(
            lambda first, last: loop(numbers[first:last], results[first:last]),
            numbers.size,
            1,
            threads,
        )

    return convert


ENCODE_INTO = {
    "F32": _converter(_copy, np.uint32, np.uint32),
    "F16": _converter(_to_halves, np.float32, np.uint16),
    "BF16": _converter(_to_bfloats, np.uint32, np.uint16),
}
"""f(x float32 [rows, columns], out uint8 [rows, row bytes], threads)"""

DECODE = {
    "F32": _converter(_copy, np.uint32, np.uint32),
    "F16": _converter(_from_halves, np.uint16, np.float32),
    "BF16": _converter(_from_bfloats, np.uint16, np.uint32),
}
"""f(blocks uint8 [rows, row bytes], out float32 [rows, columns], threads)"""
