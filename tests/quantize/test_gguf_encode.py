"""Every encoder writes the bytes of ggml: the plain version and the compiled one, on anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit import models
from labkit.core.errors import CalibrationError, NonFiniteError
from labkit.peers import ggml
from labkit.quantize import gguf
from labkit.quantize.gguf_types import BLOCK_TYPES
from tests.quantize.gguf_inputs import FLOAT, importances, weights
from tests.quantize.gguf_same import assert_same, encoders

TYPES = tuple(gguf.ENCODERS)
# What an importance saves of the error that it weighs, at least.
SAVED = dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q4_K", "Q5_K"), 0.1)
SAVED |= dict.fromkeys(("Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"), 0.05)
WEIGHTS = weights()
STACKED = np.concatenate(list(WEIGHTS.values()))
NAMES = np.repeat(list(WEIGHTS), [len(x) for x in WEIGHTS.values()])

each_type = pytest.mark.parametrize("type_name", TYPES)


@each_type
def test_bytes_are_those_of_ggml(type_name):
    for importance in importances(BLOCK_TYPES[type_name].weights):
        assert_same(STACKED, importance, type_name, NAMES)


@given(
    x=arrays(FLOAT, (1, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    importance=st.none()
    | arrays(FLOAT, 256, elements=st.floats(0, 2.0**100, width=32), fill=st.just(FLOAT(1))),
    type_name=st.sampled_from(TYPES),
)
def test_bytes_of_anything_finite(x, importance, type_name):
    if importance is not None:
        importance[:: BLOCK_TYPES[type_name].weights] += 1  # without any it is refused at the door
    assert_same(x, importance, type_name)


@each_type
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 15, 16, 17, 33, 63, 64, 65, 130])
def test_any_number_of_blocks(type_name, blocks):
    rng = np.random.default_rng(blocks)
    size = BLOCK_TYPES[type_name].weights
    x = rng.standard_normal(blocks * size).astype(FLOAT)
    for importance in (None, rng.random(x.size).astype(FLOAT)):
        assert_same(x.reshape(1, -1), importance, type_name)
        assert_same(x.reshape(-1, size), None if importance is None else importance[:size],
                     type_name)  # fmt: skip
        assert_same(np.tile(x, (3, 1)), importance, type_name)


@each_type
def test_bytes_of_real_weights(type_name):
    model, _ = models.load()
    for layer in (model.model.layers[0], model.model.layers[-1]):
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.down_proj):
            weight = linear.weight.detach().float()
            for importance in (None, weight.square().mean(0)):
                known = None if importance is None else importance.numpy()
                expected = ggml.quantize(weight.numpy(), type_name, known)
                for loop in ("plain", "numba"):
                    blocks = gguf.quantize(weight, type_name, importance, loop=loop)
                    np.testing.assert_array_equal(blocks, expected)


@each_type
def test_threads_change_nothing(type_name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 768)).astype(FLOAT)
    _, compiled = encoders(type_name)
    for importance in (None, rng.random(768).astype(FLOAT)):
        one, two = (compiled(x, importance, threads) for threads in (1, 2))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, ggml.quantize(x, type_name, importance))


@pytest.mark.parametrize("type_name", SAVED)
def test_importance_lowers_the_error_that_it_weighs(type_name):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((32, 512)).astype(FLOAT)
    importance = np.exp(2 * rng.standard_normal(512)).astype(FLOAT)
    errors = []
    for known in (None, importance):
        blocks = encoders(type_name)[0](x, known)
        errors.append(np.mean(importance * (ggml.dequantize(blocks, type_name) - x) ** 2))
    assert errors[1] < (1 - SAVED[type_name]) * errors[0]


@pytest.mark.parametrize("type_name", SAVED)
def test_a_block_without_importance_is_refused(type_name):
    importance = np.ones(512, FLOAT)
    importance[256:] = 0
    with pytest.raises(CalibrationError, match=type_name):
        gguf.quantize(np.ones((2, 512), FLOAT), type_name, importance)


@pytest.mark.parametrize("type_name", [name for name in TYPES if name != "MXFP4"])
def test_a_scale_beyond_float16_is_refused(type_name):
    with pytest.raises(NonFiniteError, match="beyond float16"):
        gguf.quantize(np.linspace(-1e12, 1e12, 512, dtype=FLOAT).reshape(2, 256), type_name)


@pytest.mark.slow
@each_type
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
