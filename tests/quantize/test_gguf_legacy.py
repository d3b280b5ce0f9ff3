"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4: ggml's bytes, from the plain and the compiled version."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit import models
from labkit.peers import ggml
from labkit.quantize import gguf, mxfp4
from tests.quantize.gguf_inputs import FLOAT, importances, weights

SEARCHING = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
TYPES = (*SEARCHING, "Q8_0", "MXFP4")
WEIGHTS = weights()


def _assert_same(x, importance, type_name):
    module = f"labkit.quantize.{gguf.ENCODERS[type_name]}"
    expected = ggml.quantize(x, type_name, importance)
    plain = import_module(module).ENCODE[type_name](x, importance)
    compiled = import_module(f"{module}_numba").ENCODE[type_name](x, importance, 1)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(compiled, expected)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_bytes_are_those_of_ggml(type_name, name):
    for importance in importances():
        _assert_same(WEIGHTS[name], importance, type_name)


@given(
    x=arrays(FLOAT, (2, 64), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    importance=st.none()
    | arrays(FLOAT, 64, elements=st.floats(0, 2.0**100, width=32), fill=st.just(FLOAT(1))),
    type_name=st.sampled_from(TYPES),
)
def test_bytes_of_anything_finite(x, importance, type_name):
    if importance is not None:
        importance[::32] += 1  # a block without any is refused at the door
    _assert_same(x, importance, type_name)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 63, 64, 65, 130])
def test_any_number_of_blocks(type_name, blocks):
    rng = np.random.default_rng(blocks)
    x = rng.standard_normal((3, blocks * 32)).astype(FLOAT)
    for importance in (None, rng.random(blocks * 32).astype(FLOAT)):
        _assert_same(x, importance, type_name)


@pytest.mark.parametrize("type_name", TYPES)
def test_the_first_of_equal_magnitudes_counts(type_name):
    # 1 and -1 in every order, at every pair of places: the sign of the scale follows the first.
    x = np.zeros((32 * 31, 32), FLOAT)
    for row, (i, j) in enumerate((i, j) for i in range(32) for j in range(32) if i != j):
        x[row, i], x[row, j] = 1, -1
    _assert_same(x, None, type_name)


def test_mxfp4_at_every_power_of_two():
    """The scale follows log2f, which rounds the numbers just below a power of two up to it."""
    around = np.arange(1, 255)[:, None] * 2**23 + np.arange(-40, 41)
    small = np.concatenate([np.arange(64), 2 ** np.arange(6, 23), 2 ** np.arange(6, 23) - 1])
    largest = np.concatenate([around.reshape(-1), small]).astype(np.uint32).view(FLOAT)
    largest = largest[np.isfinite(largest)]
    x = largest[:, None] * np.linspace(-1, 1, 32, dtype=FLOAT)
    x[:, 7] = largest
    _assert_same(x, None, "MXFP4")


def test_mxfp4_at_every_midpoint():
    levels = np.concatenate([mxfp4.MIDWAY, np.nextafter(mxfp4.MIDWAY, FLOAT(0))])
    levels = np.concatenate([levels, np.nextafter(mxfp4.MIDWAY, FLOAT(99)), [8.0]])
    levels = np.concatenate([levels, -levels])
    x = np.zeros((200, 64), FLOAT)
    x[:, : levels.size] = np.ldexp(levels.astype(FLOAT), np.arange(-100, 100)[:, None])
    x[:, 32] = x[:, levels.argmax()]  # the largest is in both blocks
    _assert_same(x, None, "MXFP4")


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


@pytest.mark.parametrize("type_name", SEARCHING)
def test_importance_lowers_the_error_that_it_weighs(type_name):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((32, 512)).astype(FLOAT)
    importance = np.exp(2 * rng.standard_normal(512)).astype(FLOAT)
    errors = []
    for known in (None, importance):
        restored = gguf.dequantize(gguf.quantize(x, type_name, known), type_name)
        errors.append(np.mean(importance * (restored - x) ** 2))
    assert errors[1] < 0.9 * errors[0]


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
