"""Float8Tensor: relative error of the format, no NaN at the top, parts that fit each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.core.float8_tensor import FP8, FP8_MAX, Float8Tensor, to_float8
from labkit.core.quantized import Quantized


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    power=st.integers(-20, 20),
    granularity=st.sampled_from(["tensor", "channel"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_three_bits_of_mantissa(seed, power, granularity, dtype):
    """Off by at most a 16th of the value, or by half of the smallest step, 2^-9 scales."""
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed)) * 2.0**power
    ours = Float8Tensor.quantize(weight, granularity, scale_dtype=dtype)
    assert ours.scale.dtype == dtype and ours.scale.shape == (
        (1, 1) if granularity == "tensor" else (6, 1)
    )
    # A bfloat16 scale may be rounded down by 2^-8 of itself, and then clips the largest value.
    bound = weight.abs() / 16 * 1.001 + ours.scale.float() * 2**-10 * 1.001
    assert ((ours.dequantize() - weight).abs() <= bound).all()


def test_the_largest_value_is_exact_and_zero_stays_zero():
    weight = torch.tensor([[7.0, -3.5, 0.0], [0.0, 0.0, 0.0]])
    ours = Float8Tensor.quantize(weight)
    assert torch.equal(ours.dequantize(), weight)
    assert float(ours.codes[0, 0]) == FP8_MAX and float(ours.scale[1, 0]) == 1.0


def test_beyond_the_range_is_clipped_where_a_cast_gives_nan():
    assert to_float8(torch.tensor([1e9, -1e9, 448.0])).float().tolist() == [448.0, -448.0, 448.0]
    assert torch.isfinite(Float8Tensor.quantize(torch.tensor([[1e38, 1e-38]])).dequantize()).all()


def test_size():
    ours = Float8Tensor.quantize(torch.ones(4, 64), scale_dtype=torch.bfloat16)
    assert isinstance(ours, Quantized)
    assert (ours.nbytes, ours.bits_per_weight) == (4 * 64 + 4 * 2, 8 + 2 * 8 / 64)
    assert torch.equal(ours.to("cpu").dequantize(), ours.dequantize())


def test_what_is_refused():
    codes, scale = torch.ones(2, 3).to(FP8), torch.ones(2, 1)
    with pytest.raises(SchemeError, match="float8_e4m3fn"):
        Float8Tensor(codes.float(), scale)
    with pytest.raises(SchemeError, match="16- or 32-bit"):
        Float8Tensor(codes, scale.to(torch.int32))
    for wrong in (scale.T, torch.ones(2), torch.ones(1, 3)):
        with pytest.raises(ShapeError):
            Float8Tensor(codes, wrong)
    with pytest.raises(SchemeError, match="granularity"):
        Float8Tensor.quantize(torch.ones(2, 3), "group")
    with pytest.raises(NonFiniteError):
        Float8Tensor.quantize(torch.tensor([[float("nan")]]))
