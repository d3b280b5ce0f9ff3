"""FP8 for what flows: the scale puts the largest number on 448."""

from __future__ import annotations

import pytest
import torch

from labkit.core.errors import NonFiniteError, SchemeError
from labkit.core.float8_tensor import Float8Tensor
from labkit.quantize.float8_activation import float8_scale, quantize_float8


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_the_largest_lands_on_the_end(granularity):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16) * 10.0 ** torch.arange(-2, 3)[:, None]
    codes, scale = quantize_float8(x, granularity)
    assert codes.dtype == torch.float8_e4m3fn and codes.shape == x.shape
    assert scale.shape == ((3, 5, 1) if granularity == "token" else (1, 1, 1))
    ends = codes.float().abs()
    ends = ends.amax(-1) if granularity == "token" else ends.amax()
    assert (ends == 448).all()
    error = (codes.float() * scale - x).abs()
    assert (error <= (x.abs() * 2**-4).maximum(scale * 2**-10) * 1.001).all()


def test_it_rounds_like_a_weight():
    x = torch.randn(6, 32)
    codes, scale = quantize_float8(x)
    weight = Float8Tensor.quantize(x)
    assert torch.equal(codes.float(), weight.codes.float()) and torch.equal(scale, weight.scale)


def test_zeros_and_a_scale_that_was_calibrated():
    codes, scale = quantize_float8(torch.zeros(2, 4))
    assert (scale == 1).all() and (codes.float() == 0).all()
    small = torch.full((1, 4), 1e-44)
    assert float8_scale(small) > 0
    clipped, _ = quantize_float8(torch.tensor([[1.0, 900.0]]), scale=torch.tensor([[1.0]]))
    assert clipped.float().tolist() == [[1.0, 448.0]]


def test_bad_arguments():
    with pytest.raises(SchemeError, match="granularity"):
        float8_scale(torch.ones(2, 2), "channel")
    with pytest.raises(SchemeError, match="shape"):
        float8_scale(torch.ones(2, 0))
    with pytest.raises(SchemeError, match="positive"):
        quantize_float8(torch.ones(2, 2), scale=torch.zeros(1))
    with pytest.raises(NonFiniteError):
        quantize_float8(torch.tensor([[float("nan")]]), scale=torch.ones(1))
