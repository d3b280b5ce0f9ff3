"""The look at every weight before it is encoded, compiled: it must cost less than the encoding.

Where encoding is one pass itself, both go over a run of weights while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from labkit.quantize.gguf_threads import FAST, share

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = 0x7F800000
_RUN = 4096
# Weights that stay in a second-level cache.
_CACHED = 2**17


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _largest(bits):
    """The largest magnitude, as bits: floats without a sign are in their order, NaN the last."""
    top = np.int32(0)
    for j in range(bits.size):
        top = max(top, np.int32(bits[j] & _MAGNITUDE))
    return np.int32(top)


def largest_magnitude(x: np.ndarray, threads: int) -> float:
    """The largest |x| of contiguous float32 ``x``; NaN or infinity if there is one."""
    bits = x.reshape(-1).view(np.int32)
    found: list[int] = []

    def part(first: int, last: int) -> None:
        found.append(_largest(bits[first * _RUN : last * _RUN]))

    share(part, -(-bits.size // _RUN), _RUN, threads, least=FAST)
    return _as_float(max(found))


def checked(convert: Callable[[int, int], None], blocks: np.ndarray, threads: int) -> float:
    """Call ``convert(first, last)`` for runs of float32 ``blocks`` [n, weights], if finite.

    Returns:
        The largest magnitude of all; NaN or infinity, and then not all are converted.
    """
    bits = blocks.reshape(-1).view(np.int32)
    weights = blocks.shape[1]
    found: list[int] = []

    def part(first: int, last: int) -> None:
        top = _largest(bits[first * weights : last * weights])
        found.append(top)
        if top < _INFINITY:
            convert(first, last)

    share(part, len(blocks), weights, threads, most=_CACHED, least=FAST // 2)
    return _as_float(max(found))


def _as_float(bits: int) -> float:
    return float(np.array(bits, np.int32).view(np.float32))
