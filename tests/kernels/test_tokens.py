"""Activations per token: the codes of the plain quantizer, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.kernels import quantize_tokens


@settings(max_examples=60, deadline=None)
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_codes_and_scales_are_those_of_the_formula(x):
    codes, scale = quantize_tokens(torch.from_numpy(x))
    expected, step = quantize_tokens(torch.from_numpy(x), implementation="reference")
    assert torch.equal(codes, expected) and torch.equal(scale, step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_axes_and_strides(dtype):
    x = (torch.randn(300, 40, 3) * 5).to(dtype).permute(2, 1, 0)
    codes, scale = quantize_tokens(x)
    expected, step = quantize_tokens(x, implementation="reference")
    assert codes.shape == x.shape and scale.shape == (3, 40, 1)
    assert torch.equal(codes, expected) and torch.equal(scale, step)
    assert ((codes * scale - x.float()).abs() <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("place", [0, 15, 16, 20])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(place, value):
    x = torch.ones(3, 21)
    x[1, place] = value
    with pytest.raises(NonFiniteError, match="token 1"):
        quantize_tokens(x)


def test_bad_input_is_named():
    with pytest.raises(SchemeError, match=r"x is torch\.int64"):
        quantize_tokens(torch.arange(4))
    with pytest.raises(ShapeError, match="x has shape"):
        quantize_tokens(torch.ones(3, 0))
    assert quantize_tokens(torch.ones(0, 3))[0].shape == (0, 3)
