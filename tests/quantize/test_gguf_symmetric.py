"""Q3_K and Q6_K: the bytes of ggml, from the plain version and from the compiled one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit import models
from labkit.core.errors import CalibrationError, NonFiniteError
from labkit.peers import ggml
from labkit.quantize import (
    gguf,
    kquants_search,
    kquants_symmetric,
    kquants_symmetric_numba,
    symmetric_packing_numba,
)
from tests.quantize.gguf_inputs import FLOAT, importances, weights

TYPES = ("Q3_K", "Q6_K")
WEIGHTS = weights()


def _assert_same(x, importance, type_name):
    expected = ggml.quantize(x, type_name, importance)
    plain = kquants_symmetric.ENCODE[type_name](x, importance)
    compiled = kquants_symmetric_numba.ENCODE[type_name](x, importance, 1)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(compiled, expected)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_bytes_are_those_of_ggml(type_name, name):
    for importance in importances():
        _assert_same(WEIGHTS[name], importance, type_name)


@given(
    x=arrays(FLOAT, (1, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    importance=st.none()
    | arrays(FLOAT, 256, elements=st.floats(0, 2.0**100, width=32), fill=st.just(FLOAT(1))),
    type_name=st.sampled_from(TYPES),
)
def test_bytes_of_anything_finite(x, importance, type_name):
    if importance is not None:
        importance[::32] += 1  # a block without any is refused at the door
    _assert_same(x, importance, type_name)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 63, 64, 65, 130])
def test_any_number_of_super_blocks(type_name, rows):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 256)).astype(FLOAT)
    for importance in (None, rng.random(256).astype(FLOAT)):
        _assert_same(x, importance, type_name)


@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_of_real_weights(type_name):
    model, _ = models.load()
    for layer in (model.model.layers[0], model.model.layers[-1]):
        for linear in (layer.self_attn.k_proj, layer.mlp.down_proj):
            weight = linear.weight.detach().float()
            for importance in (None, weight.square().mean(0).numpy()):
                expected = ggml.quantize(weight.numpy(), type_name, importance)
                for loop in ("plain", "numba"):
                    blocks = gguf.quantize(weight, type_name, importance, loop=loop)
                    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize("type_name", TYPES)
def test_threads_change_nothing(type_name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 768)).astype(FLOAT)
    for importance in (None, rng.random(768).astype(FLOAT)):
        one, two = (kquants_symmetric_numba.ENCODE[type_name](x, importance, n) for n in (1, 2))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, ggml.quantize(x, type_name, importance))


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_lowers_the_error_that_it_weighs(type_name):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((32, 512)).astype(FLOAT)
    importance = np.exp(2 * rng.standard_normal(512)).astype(FLOAT)
    errors = []
    for given_importance in (None, importance):
        blocks = kquants_symmetric.ENCODE[type_name](x, given_importance)
        errors.append(np.mean(importance * (ggml.dequantize(blocks, type_name) - x) ** 2))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("type_name", TYPES)
def test_a_block_without_importance_is_refused(type_name):
    importance = np.ones(512, FLOAT)
    importance[256:] = 0
    with pytest.raises(CalibrationError, match=type_name):
        gguf.quantize(np.ones((2, 512), FLOAT), type_name, importance)


@pytest.mark.parametrize("type_name", TYPES)
def test_a_scale_beyond_float16_is_refused(type_name):
    with pytest.raises(NonFiniteError, match="beyond float16"):
        gguf.quantize(np.full((2, 256), 1e12, FLOAT), type_name)


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


@pytest.mark.slow
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("important", [False, True])
def test_ten_million_random_weights(type_name, important):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2442, 4096), FLOAT) * FLOAT(0.02)
    x[::2] *= np.exp(rng.standard_normal((1221, 4096), FLOAT))  # every other row with heavy tails
    importance = rng.standard_normal(4096, FLOAT) ** 2 if important else None
    expected = ggml.quantize(x, type_name, importance)
    for loop in ("numba", "plain"):
        blocks = gguf.quantize(x, type_name, importance, loop=loop)
        np.testing.assert_array_equal(blocks, expected)
