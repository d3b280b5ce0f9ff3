"""Generated inputs hold what the exercises rely on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.course.inputs import shapes, vector, weight


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.sampled_from([1, 2, 4]))
def test_shapes_hold_squares_and_others(seed, count, multiple):
    found = list(shapes(np.random.default_rng(seed), count, 12, multiple))
    assert len(found) == count
    assert any(rows == columns for rows, columns in found)
    assert any(rows != columns for rows, columns in found)
    assert all(columns % multiple == 0 and columns > 0 for _, columns in found)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_rows_and_columns_of_a_weight_differ_in_magnitude(seed):
    w = weight(np.random.default_rng(seed), 8, 8)
    assert w.shape == (8, 8)
    for axis in (0, 1):
        maxima = w.abs().amax(axis)
        assert len(set(maxima.tolist())) > 4


def test_a_skewed_vector_is_shifted():
    rng = np.random.default_rng(0)
    assert float(vector(rng, 1000, skew=100.0).min()) > 0
