"""W8A8: integers are exact, so the result is the same bits as any other exact way to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.kernels import Int8Weight, int8_linear, quantize_tokens
from labkit.quantize import int8_matmul, rtn

CHANNEL = QuantScheme(8, narrow_range=False)
TOKEN = QuantScheme(8, granularity="token")


def _weight(rows, columns, seed=0):
    """Every code from -128 on."""
    torch.manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int16).to(torch.int8)
    return QuantizedTensor(codes, torch.rand(rows, 1) + 0.1, None, CHANNEL)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 70),
    rows=st.integers(1, 200),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_bits_are_those_of_the_plain_product(tokens, rows, columns, seed):
    quantized = _weight(rows, columns, seed)
    packed = Int8Weight.from_quantized(quantized)
    assert torch.equal(packed.rows(), quantized.codes)
    codes, scale = quantize_tokens(torch.randn(tokens, columns))
    y = int8_linear(codes, scale, packed)
    plain = int8_matmul.linear(QuantizedTensor(codes, scale, None, TOKEN), quantized)
    assert torch.equal(y, plain)
    exact = int8_linear(codes, scale, packed, implementation="reference").double()
    assert ((y.double() - exact).abs() <= 4 * 2.0**-23 * exact.abs()).all()


@pytest.mark.parametrize("sign", [-128, 127])
def test_the_largest_sums_do_not_overflow(sign):
    columns = 16384
    codes = torch.full((5, columns), -128, dtype=torch.int8)
    weight = QuantizedTensor(
        torch.full((3, columns), sign, dtype=torch.int8), torch.ones(3, 1), None, CHANNEL
    )
    y = int8_linear(codes, torch.ones(5, 1), Int8Weight.from_quantized(weight))
    assert (y == -128.0 * sign * columns).all()


def test_axes_bias_dtype_and_scale_of_a_tensor():
    weight = rtn.quantize(torch.randn(70, 33), QuantScheme(8, granularity="tensor"))
    packed, bias = Int8Weight.from_quantized(weight), torch.randn(70)
    x = torch.randn(33, 4, 2).permute(2, 1, 0)
    codes, scale = quantize_tokens(x)
    y = int8_linear(codes, scale, packed, bias, dtype=torch.bfloat16)
    flat = int8_linear(codes.reshape(8, 33), scale.reshape(8, 1), packed) + bias
    assert y.shape == (2, 4, 70) and torch.equal(y.reshape(8, 70), flat.bfloat16())
    strided = int8_linear(codes[:, ::2], scale[:, ::2], packed, bias, dtype=torch.bfloat16)
    assert torch.equal(strided, y[:, ::2])
    assert int8_linear(codes[:0], scale[:0], packed).shape == (0, 4, 70)


def test_bad_input_is_named():
    packed = Int8Weight.from_quantized(_weight(8, 12))
    codes, scale = torch.zeros(2, 12, dtype=torch.int8), torch.ones(2, 1)
    for wrong, words in (
        ((codes.float(), scale), "codes is torch.float32"),
        ((codes, scale.double()), "scale is torch.float64"),
        ((codes[:, :8], scale), "codes have shape"),
        ((codes, scale[:1]), "scale has shape"),
        ((codes.to("meta"), scale), "codes is on meta"),
    ):
        with pytest.raises((SchemeError, ShapeError), match=words):
            int8_linear(*wrong, packed)
    with pytest.raises(SchemeError, match=r"dtype is torch\.int8"):
        int8_linear(codes, scale, packed, dtype=torch.int8)
    with pytest.raises(SchemeError, match="a weight in int8 asym"):
        Int8Weight.from_quantized(rtn.quantize(torch.randn(4, 8), QuantScheme(8, False)))
    with pytest.raises(SchemeError, match="at most 65793 columns"):
        Int8Weight.from_quantized(_weight(1, 65794))
    for place, value, words in (
        (0, packed.codes[:, :2], "codes has shape"),
        (0, packed.codes.to(torch.int8), "codes is torch.int8"),
        (1, packed.scale[:3], "scale has shape"),
    ):
        parts = [packed.codes, packed.scale, packed.shape]
        parts[place] = value
        with pytest.raises((SchemeError, ShapeError), match=words):
            Int8Weight(*parts)
