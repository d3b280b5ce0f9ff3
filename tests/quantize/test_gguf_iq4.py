"""The levels of IQ4_NL and IQ4_XS: which one is the nearest, in both versions."""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize import iq4, iq4_search_numba
from labkit.quantize.lanes import LANES, load, store, store_bytes
from tests.quantize.gguf_inputs import FLOAT


def _around_the_boundaries():
    """Every float32 within 2000 steps of a level or of the middle between two, and the ends."""
    middles = (iq4.LEVELS[1:] + iq4.LEVELS[:-1]) / 2
    centres = np.concatenate([iq4.LEVELS, middles]).astype(FLOAT).view(np.int32)
    near = (centres[:, None] + np.arange(-2000, 2001, dtype=np.int32)).view(FLOAT)
    return np.concatenate([near.ravel(), FLOAT([0, -0.0, np.inf, -np.inf, np.nan])])


@numba.njit
def _with_lanes(x, levels, codes):
    for start in range(0, len(x), LANES):
        lanes = load(x, start)
        store(levels, start, iq4_search_numba.nearest_level(lanes))
        store_bytes(codes, start, iq4_search_numba.nearest_index(lanes))


def test_compiled_nearest_level_is_the_same():
    x = np.resize(_around_the_boundaries(), 2**17)
    levels, codes = np.empty_like(x), np.empty(x.size, np.uint8)
    _with_lanes(x, levels, codes)
    expected = iq4.nearest_level(x)
    np.testing.assert_array_equal(codes & 15, expected)
    np.testing.assert_array_equal(levels, iq4.LEVELS[expected])


def test_halfway_between_two_levels_is_the_upper():
    middles = (iq4.LEVELS[1:] + iq4.LEVELS[:-1]) / 2
    np.testing.assert_array_equal(iq4.nearest_level(middles), np.arange(1, 16))
    np.testing.assert_array_equal(iq4.nearest_level(iq4.LEVELS), np.arange(16))
    assert iq4.nearest_level(FLOAT([np.nan, np.inf, -np.inf])).tolist() == [15, 15, 0]
