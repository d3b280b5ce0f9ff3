"""The straight-through estimator against torch's fake quantization, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaves import gradients, leaf

from labkit.core import affine
from labkit.core.errors import NonFiniteError, SchemeError
from labkit.training import ste


def test_rounding_passes_the_gradient_unchanged():
    x = leaf(64, spread=10)
    y = ste.round_through(x)
    assert torch.equal(y, x.detach().round())
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(64))


# Powers of two: there x / scale and torch's x * (1 / scale) are the same number.
@settings(max_examples=60, deadline=None)
@given(
    exponent=st.integers(-6, 2),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    seed=st.integers(0, 999),
)
def test_per_tensor_equals_torch_in_both_directions(exponent, bits, symmetric, seed):
    qmin, qmax = affine.integer_range(bits, symmetric)
    zero = 0 if symmetric else qmax // 2
    scale = 2.0**exponent
    x, twin = leaf(500, seed=seed, spread=2), leaf(500, seed=seed, spread=2)
    ours = ste.fake_quantize(x, torch.tensor(scale), torch.tensor(zero), qmin, qmax)
    theirs = torch.fake_quantize_per_tensor_affine(twin, scale, zero, qmin, qmax)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradients(ours, x)[0], gradients(theirs, twin)[0])


def test_per_channel_equals_torch_in_both_directions():
    scale = 2.0 ** torch.tensor([-3.0, -1.0, 0.0, -5.0])
    zero = torch.tensor([0, 3, 7, 15], dtype=torch.int32)
    x, twin = leaf(4, 200, spread=2), leaf(4, 200, spread=2)
    ours = ste.fake_quantize(x, scale[:, None], zero[:, None], 0, 15)
    theirs = torch.fake_quantize_per_channel_affine(twin, scale, zero, 0, 0, 15)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradients(ours, x)[0], gradients(theirs, twin)[0])


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-3, 10), zero=st.integers(0, 15), seed=st.integers(0, 999))
def test_it_is_the_affine_quantizer_and_passes_inside_alone(scale, zero, seed):
    x = leaf(300, seed=seed, spread=5)
    step, zero_point = torch.tensor(scale), torch.tensor(zero)
    ours = ste.fake_quantize(x, step, zero_point, 0, 15)
    assert torch.equal(ours.detach(), affine.fake_quantize(x.detach(), step, zero_point, 0, 15))
    unclipped = torch.round(x.detach() / step) + zero
    inside = (unclipped >= 0) & (unclipped <= 15)
    assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], inside.float())


def test_bfloat16_goes_in_and_comes_out():
    x = leaf(32).detach().bfloat16().requires_grad_()
    y = ste.fake_quantize(x, torch.tensor(0.25), torch.tensor(0), -7, 7)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16


def test_what_cannot_be_rounded_is_refused():
    zero = torch.tensor(0)
    with pytest.raises(NonFiniteError):
        ste.fake_quantize(torch.tensor([1.0, float("nan")]), torch.tensor(1.0), zero, -7, 7)
    with pytest.raises(SchemeError):
        ste.fake_quantize(torch.ones(2), torch.tensor(0.0), zero, -7, 7)
