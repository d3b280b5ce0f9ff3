"""W4A16 and W4A8: every implementation within a stated distance of the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.kernels import Int4Weight, int4_linear, quantize_tokens
from labkit.quantize import rtn
from tests.kernels.cases import int4_weight, product_bound

# rows, columns, group size (0: a row), symmetric, act-order, dtype of scales
WEIGHTS = [
    (7, 256, 128, True, False, torch.float16),
    (9, 384, 128, False, True, torch.float16),
    (5, 96, 32, False, True, torch.float32),
    (33, 4096, 64, True, False, torch.float16),
    (3, 100, 0, False, False, torch.float32),
    (2, 1, 0, True, False, torch.float16),
    (1, 1000, 0, True, False, torch.float16),
    (6, 96, 48, False, False, torch.float16),
    (65, 2304, 256, False, False, torch.float16),
]


@pytest.fixture(params=WEIGHTS, ids=str)
def weight(request):
    rows, columns, group, symmetric, act_order, scale = request.param
    return int4_weight(rows, columns, group, symmetric, act_order=act_order, scale=scale)[0]


@pytest.mark.parametrize("parameters", WEIGHTS, ids=str)
def test_packing_keeps_every_weight(parameters):
    rows, columns, group, symmetric, act_order, scale = parameters
    packed, quantized = int4_weight(
        rows, columns, group, symmetric, act_order=act_order, scale=scale
    )
    assert torch.equal(packed.dequantize(), quantized.dequantize())
    if columns % 128 == 0 and group % 128 == 0 and columns > 1000:
        assert packed.nbytes < quantized.nbytes * 1.05 + 4 * columns


@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 16, 37])
def test_w4a16_is_within_float32_roundings(weight, tokens):
    x = torch.randn(tokens, weight.in_features)
    y = int4_linear(x, weight)
    exact = int4_linear(x.double().float(), weight, implementation="reference")
    bound = product_bound(x, weight.dequantize(), torch.float32)
    assert ((y.double() - exact.double()).abs() <= bound).all()


@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 37])
def test_w4a8_is_the_product_of_the_codes(weight, tokens):
    x = torch.randn(tokens, weight.in_features)
    codes, scale = quantize_tokens(x)
    y = int4_linear(x, weight, activation_bits=8)
    exact = int4_linear(x, weight, activation_bits=8, implementation="reference")
    bound = product_bound(codes * scale, weight.dequantize(), torch.float32)
    assert ((y.double() - exact.double()).abs() <= bound).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 6),
    group=st.sampled_from([1, 8, 31, 32, 64, 100, 128, 256]),
    tokens=st.integers(1, 20),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    bits=st.sampled_from([8, 16]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_shape(rows, groups, group, tokens, symmetric, act_order, bits, dtype, seed):
    packed, quantized = int4_weight(
        rows, groups * group, group, symmetric, act_order=act_order, seed=seed
    )
    assert torch.equal(packed.dequantize(), quantized.dequantize())
    x = torch.randn(tokens, groups * group).to(dtype)
    y = int4_linear(x, packed, activation_bits=bits)
    exact = int4_linear(x, packed, activation_bits=bits, implementation="reference")
    assert y.dtype == dtype and y.shape == (tokens, rows)
    bound = 2 * product_bound(x, packed.dequantize(), dtype)
    assert ((y.double() - exact.double()).abs() <= bound).all()


def test_strides_leading_axes_and_bias():
    packed, _ = int4_weight(24, 256, 128, False)
    bias = torch.randn(24)
    x = torch.randn(256, 2, 6)[:, :, ::2].permute(1, 2, 0)
    assert not x.is_contiguous()
    y = int4_linear(x, packed, bias)
    expected = int4_linear(x.contiguous().reshape(-1, 256), packed) + bias
    assert y.shape == (2, 3, 24) and torch.equal(y.reshape(-1, 24), expected)
    assert int4_linear(x[:0], packed).shape == (0, 3, 24)


def test_one_thread_gives_the_same_bits():
    packed, _ = int4_weight(300, 1024, 128, False)
    x = torch.randn(5, 1024)
    threads = torch.get_num_threads()
    shared = int4_linear(x, packed)
    try:
        torch.set_num_threads(1)
        assert torch.equal(int4_linear(x, packed), shared)
    finally:
        torch.set_num_threads(threads)


def test_nan_reaches_the_output_of_w4a16():
    packed, _ = int4_weight(8, 128, 128, True)
    x = torch.zeros(2, 128)
    x[1, 5] = float("nan")
    y = int4_linear(x, packed)
    assert (y[0] == 0).all() and y[1].isnan().all()


def test_bad_input_is_named():
    packed, _ = int4_weight(8, 128, 64, True)
    x = torch.randn(2, 128)
    for wrong, words in (
        ((x[:, :64], packed), "x has shape"),
        ((x.double(), packed), "x is torch.float64"),
        ((x, packed, torch.randn(7)), "bias has shape"),
        ((x, packed, torch.arange(8)), "bias is torch.int64"),
        ((x.to("meta"), packed), "x is on meta"),
    ):
        with pytest.raises((SchemeError, ShapeError), match=words):
            int4_linear(*wrong)
    with pytest.raises(SchemeError, match="activation_bits is 4"):
        int4_linear(x, packed, activation_bits=4)
    with pytest.raises(SchemeError, match="implementation 'fast'"):
        int4_linear(x, packed, implementation="fast")
    with pytest.raises(SchemeError, match="Expected 4 bits"):
        Int4Weight.from_quantized(rtn.quantize(torch.randn(4, 8), QuantScheme(8)))
    parts = (packed.codes, packed.scale, None, packed.columns, 32, 128)
    for place, value, error, words in (
        (0, packed.codes.to(torch.int8), SchemeError, "codes is torch.int8"),
        (0, packed.codes[:, ::2], ShapeError, "codes has shape"),
        (0, packed.codes.T.contiguous().T, SchemeError, "codes is not contiguous"),
        (1, packed.scale.double(), SchemeError, "scale is torch.float64"),
        (2, torch.zeros(8, 3, dtype=torch.uint8), ShapeError, "zero_point has shape"),
        (3, packed.columns + 1, ShapeError, "columns outside"),
        (4, 64, SchemeError, "chunk is 64"),
        (4, 128, GroupSizeError, "128 slots for 2 groups"),
    ):
        with pytest.raises(error, match=words):
            Int4Weight(*parts[:place], value, *parts[place + 1 :])
