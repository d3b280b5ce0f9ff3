"""Sixteen lanes: each does what NumPy does to an element, to the bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit.quantize import lanes
from labkit.quantize.lanes import LANES

FLOATS = arrays(np.float32, LANES, elements=st.floats(width=32))


@numba.njit(error_model="numpy")
def _arithmetic(x, y, out):
    a, b = lanes.load(x, 0), lanes.load(y, 0)
    results = (a + b, a - b, a * b, a / b, lanes.absolute(a), lanes.negative(a))
    for k in range(6):
        lanes.store(out, LANES * k, results[k])
    lanes.store(out, LANES * 6, lanes.square_root(lanes.absolute(a)))
    lanes.store(out, LANES * 7, a * b + a)
    larger = lanes.select(a > b, a, b)
    lanes.store(out, LANES * 8, larger)
    a += b
    lanes.store(out, LANES * 9, a)


@given(FLOATS, FLOATS)
def test_arithmetic_is_that_of_numpy(x, y):
    out = np.empty((10, LANES), np.float32)
    _arithmetic(x, y, out.reshape(-1))
    with np.errstate(all="ignore"):
        root, larger = np.sqrt(np.abs(x)), np.where(x > y, x, y)
        expected = [x + y, x - y, x * y, x / y, np.abs(x), -x, root, x * y + x, larger, x + y]
    np.testing.assert_array_equal(out, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(out)[known], np.signbit(expected)[known])


@numba.njit(error_model="numpy")
def _compare(x, y, out):
    a, b, one = lanes.load(x, 0), lanes.load(y, 0), lanes.splat(np.int32(1))
    none = lanes.splat(np.int32(0))
    lanes.store_bytes(out, 0, lanes.select(a < b, one, none))
    lanes.store_bytes(out, LANES, lanes.select(a <= b, one, none))
    lanes.store_bytes(out, 2 * LANES, lanes.select(a == b, one, none))
    lanes.store_bytes(out, 3 * LANES, lanes.select((a > b) | (a == b), one, none))
    return lanes.any_lane(a > b)


@given(FLOATS, FLOATS)
def test_comparisons_are_false_for_nan(x, y):
    out = np.empty((4, LANES), np.uint8)
    found = _compare(x, y, out.reshape(-1))
    np.testing.assert_array_equal(out, [x < y, x <= y, x == y, x >= y])
    assert found == (x > y).any()


@numba.njit(error_model="numpy")
def _integers(x, out, floats):
    bits = lanes.bits_of(lanes.load(x, 0))
    byte, three = lanes.splat(np.int32(255)), lanes.splat(np.int32(3))
    lanes.store_bytes(out, 0, bits)
    lanes.store_bytes(out, LANES, bits >> lanes.splat(np.int32(23)))
    lanes.store_bytes(out, 2 * LANES, ((bits & byte) << three) + three - byte)
    lanes.store(floats, 0, lanes.to_floats((bits & byte) - three))


@given(arrays(np.int32, LANES, elements=st.integers(-(2**31), 2**31 - 1)))
def test_integers_are_those_of_numpy(bits):
    out, floats = np.empty((3, LANES), np.uint8), np.empty(LANES, np.float32)
    _integers(bits.view(np.float32), out.reshape(-1), floats)
    small = bits & 255
    expected = [bits, bits.view(np.uint32) >> 23, (small << 3) + 3 - 255]
    np.testing.assert_array_equal(out, [row.astype(np.uint8) for row in expected])
    np.testing.assert_array_equal(floats, small - 3)


def test_floats_and_integers_do_not_mix():
    @numba.njit
    def mixed(x):
        return lanes.any_lane(lanes.load(x, 0) < lanes.splat(np.int32(1)))

    with pytest.raises(numba.TypingError):
        mixed(np.zeros(LANES, np.float32))


@numba.njit(error_model="numpy")
def _widen(block, out):
    lanes.store(out, 0, lanes.to_floats(lanes.load_bytes(block, 3)))


def test_bytes_are_loaded_without_a_sign():
    block, out = np.arange(250, 250 + 19).astype(np.uint8), np.empty(LANES, np.float32)
    _widen(block, out)
    np.testing.assert_array_equal(out, block[3:].astype(np.float32))
