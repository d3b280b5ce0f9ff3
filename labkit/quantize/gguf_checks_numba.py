"""The look at every weight before it is encoded, compiled: it must cost less than the encoding."""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import share

_MAGNITUDE = np.int32(0x7FFFFFFF)
_RUN = 4096


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

    share(part, -(-bits.size // _RUN), _RUN, threads)
    return float(np.array(max(found), np.int32).view(np.float32))
