"""Q4_K and Q5_K: eight scales and eight minima of six bits in twelve bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit.quantize import kquants


@given(arrays(np.uint8, (2, 3, 8), elements=st.integers(0, 63)))
def test_six_bit_pairs_come_back(codes):
    packed = kquants.pack_pairs(*codes)
    assert packed.shape == (3, 12)
    np.testing.assert_array_equal(kquants.unpack_pairs(packed), codes)
