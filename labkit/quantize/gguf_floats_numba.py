"""F32, F16 and BF16 compiled: the same bytes as `labkit.quantize.gguf_floats`.

They are limited by memory, so they write where the result shall be.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_checks_numba import checked
from labkit.quantize.gguf_threads import FAST, share
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


def _encoder(loop, source: type, target: type):
    """f(x float32 [rows, columns], importance, out uint8 [rows, row bytes], threads) -> largest."""

    def encode_into(x: np.ndarray, importance: None, out: np.ndarray, threads: int) -> float:
        numbers, results = x.reshape(-1).view(source), out.reshape(-1).view(target)

        def convert(first: int, last: int) -> None:
            loop(numbers[first:last], results[first:last])

        return checked(convert, x.reshape(-1, 1), threads)

    return encode_into


def _decoder(loop, source: type, target: type):
    """f(blocks uint8 [rows, row bytes], out float32 [rows, columns], threads)."""

    def decode(blocks: np.ndarray, out: np.ndarray, threads: int) -> None:
        numbers, results = blocks.reshape(-1).view(source), out.reshape(-1).view(target)

        def part(first: int, last: int) -> None:
            loop(numbers[first:last], results[first:last])

        share(part, numbers.size, 1, threads, least=FAST)

    return decode


ENCODE_INTO = {
    "F32": _encoder(_copy, np.uint32, np.uint32),
    "F16": _encoder(_to_halves, np.float32, np.uint16),
    "BF16": _encoder(_to_bfloats, np.uint32, np.uint16),
}
DECODE = {
    "F32": _decoder(_copy, np.uint32, np.uint32),
    "F16": _decoder(_from_halves, np.uint16, np.float32),
    "BF16": _decoder(_from_bfloats, np.uint16, np.uint32),
}
