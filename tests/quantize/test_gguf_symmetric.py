"""Q3_K and Q6_K: their rounding, which is not numpy's at the ends of the range."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.quantize import kquants_search, symmetric_packing_numba
from tests.quantize.gguf_inputs import FLOAT


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([0.5, 1.5, 2.5, -0.5, -1.5], [0, 2, 2, 0, -2]),
        ([4194303.0, -4194303.0], [4194303, -4194303]),
        ([np.inf, -np.inf, np.nan], [-(2**22), -(2**22), 0]),
    ],
)
def test_nearest_int_rounds_to_even_and_takes_anything(x, expected):
    assert kquants_search.nearest_int(FLOAT(x)).tolist() == expected
    compiled = symmetric_packing_numba.nearest_int
    assert [compiled(number) for number in FLOAT(x)] == expected
