"""The exponential of sixteen lanes."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import as_floats, multiply_add
from labkit.quantize.lanes import bits_of, select, splat

_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_LOG2E, _MAGIC = np.float32(1.44269504), np.float32(1.5 * 2**23)
# ln 2 in two parts, so that n * ln 2 keeps the digits that float32 would drop (Cephes, expf).
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
_ONE, _UP = np.float32(1), np.int32(23)
_P0, _P1, _P2 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(0.5)
_ONE_BITS = np.int32(0x3F800000)


@inlined
def exponential(x):
    """e^x to within 2 units of the last place, x cut to -87 … 88.

    e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and a polynomial for e^r (Cephes).
    """
    x = select(x < splat(_LEAST), splat(_LEAST), x)
    x = select(x > splat(_MOST), splat(_MOST), x)
    shifted = multiply_add(x, splat(_LOG2E), splat(_MAGIC))
    n = shifted - splat(_MAGIC)
    r = multiply_add(n, splat(_LN2_HIGH), x)
    r = multiply_add(n, splat(_LN2_LOW), r)
    p = multiply_add(splat(_P0), r, splat(_P1))
    p = multiply_add(p, r, splat(_P2))
    p = multiply_add(p, r, splat(_P3))
    p = multiply_add(p, r, splat(_P4))
    p = multiply_add(p, r, splat(_P5))
    p = multiply_add(p, r * r, r + splat(_ONE))
    # n stands in the low bits of `shifted`; the shift drops the others.
    return p * as_floats((bits_of(shifted) << splat(_UP)) + splat(_ONE_BITS))
