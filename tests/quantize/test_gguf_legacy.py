"""Q4_0 to Q8_0 and MXFP4 where they are hard: equal magnitudes, powers of two, midpoints."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.quantize import gguf, mxfp4
from tests.quantize.gguf_inputs import FLOAT
from tests.quantize.gguf_same import assert_same

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")


@pytest.mark.parametrize("type_name", TYPES)
def test_the_first_of_equal_magnitudes_counts(type_name):
    # 1 and -1 in every order, at every pair of places: the sign of the scale follows the first.
    x = np.zeros((32 * 31, 32), FLOAT)
    for row, (i, j) in enumerate((i, j) for i in range(32) for j in range(32) if i != j):
        x[row, i], x[row, j] = 1, -1
    assert_same(x, None, type_name)


def test_mxfp4_at_every_power_of_two():
    """The scale follows log2f, which rounds the numbers just below a power of two up to it."""
    around = np.arange(1, 255)[:, None] * 2**23 + np.arange(-40, 41)
    small = np.concatenate([np.arange(64), 2 ** np.arange(6, 23), 2 ** np.arange(6, 23) - 1])
    largest = np.concatenate([around.reshape(-1), small]).astype(np.uint32).view(FLOAT)
    largest = largest[np.isfinite(largest)]
    x = largest[:, None] * np.linspace(-1, 1, 32, dtype=FLOAT)
    x[:, 7] = largest
    assert_same(x, None, "MXFP4")


def test_mxfp4_at_every_midpoint():
    levels = np.concatenate([mxfp4.MIDWAY, np.nextafter(mxfp4.MIDWAY, FLOAT(0))])
    levels = np.concatenate([levels, np.nextafter(mxfp4.MIDWAY, FLOAT(99)), [8.0]])
    levels = np.concatenate([levels, -levels])
    x = np.zeros((200, 64), FLOAT)
    x[:, : levels.size] = np.ldexp(levels.astype(FLOAT), np.arange(-100, 100)[:, None])
    x[:, 32] = x[:, levels.argmax()]  # the largest is in both blocks
    assert_same(x, None, "MXFP4")


def test_mxfp4_leaves_out_levels_beyond_float32():
    """At the largest scale the levels 4 and 6 are infinite: what is nearest to them becomes 3."""
    largest = np.finfo(FLOAT).max
    x = np.resize(largest * np.linspace(-1, 1, 63, dtype=FLOAT), (4, 64))
    x[:, [3, 40]] = largest
    assert_same(x, None, "MXFP4")
    assert np.isfinite(gguf.dequantize(gguf.quantize(x, "MXFP4"), "MXFP4")).all()
