"""Q2_K, Q4_K and Q5_K: the bytes of ggml, from the plain version and from the compiled one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from labkit import models
from labkit.peers import ggml
from labkit.quantize import gguf, kquants, kquants_numba

TYPES = ("Q2_K", "Q4_K", "Q5_K")
ROWS, COLUMNS = 20, 768  # 60 super-blocks: three full sixteens and a rest; rows end inside of one
FLOAT = np.float32


def _gauss(rng, size=1.0):
    return (rng.standard_normal((ROWS, COLUMNS)) * size).astype(FLOAT)


def _outlier(rng, value):
    x = _gauss(rng, 0.02)
    x[np.arange(ROWS), rng.integers(0, COLUMNS, ROWS)] = value
    return x


def _signed_zeros(rng):
    return np.where(rng.random((ROWS, COLUMNS)) < 0.5, FLOAT(0), FLOAT(-0.0))


def _powers(rng, low, high):
    x = rng.standard_normal((ROWS, COLUMNS)) * np.exp2(rng.integers(low, high, (ROWS, COLUMNS)))
    return x.clip(-3e38, 3e38).astype(FLOAT)


def _constants(rng):
    values = np.resize(np.array([1, -1, 0.3, -1e-20, 1e-30, 1e4, -7], FLOAT), ROWS)
    return np.repeat(values[:, None], COLUMNS, 1)


INPUTS = {
    "gaussian": _gauss,
    "student-t": lambda rng: rng.standard_t(2, (ROWS, COLUMNS)).astype(FLOAT),
    "zeros": lambda rng: np.zeros((ROWS, COLUMNS), FLOAT),
    "constants": _constants,
    "one huge outlier": lambda rng: _outlier(rng, 6e4),
    "one huge negative outlier": lambda rng: _outlier(rng, -3e38),
    "subnormals": lambda rng: _gauss(rng, 1e-40),
    "few subnormals": lambda rng: (rng.integers(-50, 50, (ROWS, COLUMNS)) * 1e-45).astype(FLOAT),
    "scales below float16": lambda rng: _gauss(rng, 1e-8),
    "alternating signs": lambda rng: np.tile(FLOAT([1, -1]), (ROWS, COLUMNS // 2)),
    "ties": lambda rng: (rng.integers(-8, 8, (ROWS, COLUMNS)) / 2).astype(FLOAT),
    "signed zeros": _signed_zeros,
    "signed zeros and a few": lambda rng: np.where(
        rng.random((ROWS, COLUMNS)) < 0.03, _gauss(rng), _signed_zeros(rng)
    ),
    "positive": lambda rng: np.abs(_gauss(rng)),
    "all above 9": lambda rng: _gauss(rng) + FLOAT(10),
    "all below -9": lambda rng: _gauss(rng) - FLOAT(10),
    "sub-blocks of many sizes": lambda rng: (
        _gauss(rng) * np.exp(4 * rng.standard_normal((ROWS, COLUMNS // 16))).repeat(16, 1)
    ).astype(FLOAT),
    "weights of many sizes": lambda rng: _powers(rng, -60, 14),
    "weights of all sizes": lambda rng: _powers(rng, -149, 127),
}


def _with_zeros(rng, every):
    importance = rng.random(COLUMNS).astype(FLOAT)
    importance.reshape(-1, every)[::2] = 0
    return importance


IMPORTANCES = {
    "none": lambda rng: None,
    "ones": lambda rng: np.ones(COLUMNS, FLOAT),
    "chi-squared": lambda rng: (rng.standard_normal(COLUMNS) ** 2).astype(FLOAT),
    "columns of 0": lambda rng: _with_zeros(rng, 1),
    "sub-blocks of 0": lambda rng: _with_zeros(rng, 32),
    "one column a block": lambda rng: np.resize(FLOAT([1] + [0] * 255), COLUMNS),
    "many sizes": lambda rng: np.exp2(rng.integers(-40, 40, COLUMNS)).astype(FLOAT),
    "all sizes": lambda rng: np.exp2(rng.integers(-120, 120, COLUMNS)).astype(FLOAT),
}


def _assert_same(x, importance, type_name):
    expected = ggml.quantize(x, type_name, importance)
    plain = kquants.ENCODE[type_name](x, importance)
    compiled = kquants_numba.ENCODE[type_name](x, importance, 1)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(compiled, expected)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("weights", INPUTS)
def test_bytes_are_those_of_ggml(type_name, weights):
    for name, make in IMPORTANCES.items():
        rng = np.random.default_rng([len(name), len(weights)])
        _assert_same(INPUTS[weights](rng), make(rng), type_name)


@given(
    x=arrays(FLOAT, (1, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    importance=st.none()
    | arrays(FLOAT, 256, elements=st.floats(0, 2.0**100, width=32), fill=st.just(FLOAT(1))),
    type_name=st.sampled_from(TYPES),
)
def test_bytes_of_anything_finite(x, importance, type_name):
    if importance is not None:
        importance[0] = 1  # a super-block without any is refused at the door
    _assert_same(x, importance, type_name)


@pytest.mark.parametrize("type_name", TYPES)
def test_bytes_of_real_weights(type_name):
    model, _ = models.load()
    for layer in (model.model.layers[0], model.model.layers[-1]):
        for linear in (layer.self_attn.v_proj, layer.mlp.down_proj):
            weight = linear.weight.detach().float()
            importance = weight.square().mean(0) + 1e-6
            for given_importance in (None, importance):
                expected = ggml.quantize(
                    weight.numpy(),
                    type_name,
                    None if given_importance is None else importance.numpy(),
                )
                for loop in ("plain", "numba"):
                    blocks = gguf.quantize(weight, type_name, given_importance, loop=loop)
                    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("super_blocks", [1, 2, 15, 16, 17, 33])
def test_any_number_of_super_blocks(type_name, super_blocks):
    rng = np.random.default_rng(super_blocks)
    x = rng.standard_normal((1, 256 * super_blocks)).astype(FLOAT)
    for importance in (None, rng.random(x.size).astype(FLOAT)):
        _assert_same(x, importance, type_name)
        tall = x.reshape(super_blocks, 256)
        _assert_same(tall, None if importance is None else importance[:256], type_name)


@pytest.mark.parametrize("type_name", TYPES)
def test_threads_change_nothing(type_name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((300, 768)).astype(FLOAT)
    for importance in (None, rng.random(768).astype(FLOAT)):
        one, two = (kquants_numba.ENCODE[type_name](x, importance, n) for n in (1, 2))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, ggml.quantize(x, type_name, importance))


@pytest.mark.parametrize("type_name", TYPES)
def test_importance_lowers_the_error_that_it_weighs(type_name):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((32, 512)).astype(FLOAT)
    importance = np.exp(2 * rng.standard_normal(512)).astype(FLOAT)
    errors = []
    for given_importance in (None, importance):
        blocks = kquants.ENCODE[type_name](x, given_importance)
        errors.append(np.mean(importance * (ggml.dequantize(blocks, type_name) - x) ** 2))
    assert errors[1] < 0.9 * errors[0]


@given(arrays(np.uint8, (2, 3, 8), elements=st.integers(0, 63)))
def test_six_bit_pairs_come_back(codes):
    packed = kquants.pack_pairs(*codes)
    assert packed.shape == (3, 12)
    np.testing.assert_array_equal(kquants.unpack_pairs(packed), codes)


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
