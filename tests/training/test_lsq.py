"""Learned scales against torch's learnable fake quantization and against the paper's formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaves import gradients, leaf

from labkit.core.errors import CalibrationError, NonFiniteError
from labkit.core.scheme import QuantScheme
from labkit.training import lsq, ste
from labkit.training.lsq import LearnedScale


def grown(shape: tuple[int, ...], value: float) -> torch.Tensor:
    return torch.full(shape, value).requires_grad_()


# Not on a tie: there torch rounds the zero-point one way forwards and the other way backwards.
ZEROS = st.floats(0, 15).filter(lambda zero: abs(zero % 1 - 0.5) > 1e-3)


@settings(max_examples=40, deadline=None)
@given(exponent=st.integers(-4, 1), zero=ZEROS, seed=st.integers(0, 999))
def test_per_tensor_gradients_equal_torch(exponent, zero, seed):
    factor, scale = 0.37, 2.0**exponent
    x, twin = leaf(1, 400, seed=seed, spread=3), leaf(1, 400, seed=seed, spread=3)
    s, z = grown((1, 1), scale), grown((1, 1), zero)
    s2, z2 = grown((1,), scale), grown((1,), zero)
    ours = lsq.learned_fake_quantize(x, s, z, 0, 15, factor)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(twin, s2, z2, 0, 15, factor)
    assert torch.equal(ours, theirs)
    for a, b in zip(gradients(ours, x, s, z), gradients(theirs, twin, s2, z2), strict=True):
        assert torch.allclose(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-4)


def test_per_channel_gradients_equal_torch():
    scales, zeros = torch.tensor([0.125, 0.5, 1.0]), torch.tensor([2.0, 7.4, 15.0])
    x, twin = leaf(3, 300, spread=2), leaf(3, 300, spread=2)
    s, z = (t[:, None].clone().requires_grad_() for t in (scales, zeros))
    s2, z2 = (t.clone().requires_grad_() for t in (scales, zeros))
    ours = lsq.learned_fake_quantize(x, s, z, 0, 15, 0.5)
    theirs = torch._fake_quantize_learnable_per_channel_affine(twin, s2, z2, 0, 0, 15, 0.5)
    assert torch.equal(ours, theirs)
    for a, b in zip(gradients(ours, x, s, z), gradients(theirs, twin, s2, z2), strict=True):
        assert torch.allclose(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_whole_module_learns_as_torchs_learnable_fake_quantization(granularity, symmetric):
    """Forward and the gradients of weight, scale and zero-point, with LSQ's own factor."""
    scheme = QuantScheme(4, symmetric, granularity)
    weight, twin = leaf(6, 128), leaf(6, 128)
    learned = LearnedScale.of_weight(weight, scheme, start="minmax")
    with torch.no_grad():
        learned.scale.fill_(0.25)  # some clipped, some not; a power of two
        learned.zero_point.copy_(learned.zero_point.clamp(5, 9) * (not symmetric))
    scale = learned.scale.detach().flatten().clone().requires_grad_()
    zero = learned.zero_point.detach().flatten().clone().requires_grad_()
    ends = (scheme.qmin, scheme.qmax, learned.factor)
    if granularity == "tensor":
        theirs = torch._fake_quantize_learnable_per_tensor_affine(twin, scale, zero, *ends)
    else:
        theirs = torch._fake_quantize_learnable_per_channel_affine(twin, scale, zero, 0, *ends)
    ours = learned(weight)
    assert torch.equal(ours, theirs)
    mine = [weight, learned.scale, *([] if symmetric else [learned.zero_point])]
    wanted = gradients(theirs, twin, scale, zero)
    for a, b in zip(gradients(ours, *mine), wanted, strict=False):
        assert torch.allclose(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-5)
    assert any(float(gradient.abs().max()) > 0 for gradient in wanted[1:])


def test_the_gradient_is_what_autograd_finds_through_the_staircase():
    """The formula is no second estimator: it is the straight-through one, applied to s."""
    x, s = leaf(4, 100), grown((4, 1), 0.3)
    ours = lsq.learned_fake_quantize(x, s, torch.zeros(4, 1), -3, 3, 1.0)
    plain = ste.round_through(x / s).clamp(-3, 3) * s
    assert torch.allclose(ours, plain)
    for a, b in zip(gradients(ours, x, s), gradients(plain, x, s), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_start_and_gradient_scale_are_the_papers():
    weight = leaf(8, 48)
    learned = LearnedScale.of_weight(weight, QuantScheme(3, True, "channel"))
    expected = 2 * weight.detach().abs().mean(1, keepdim=True) / math.sqrt(3)
    assert torch.allclose(learned.scale, expected)
    assert learned.factor == pytest.approx(1 / math.sqrt(48 * 3))
    assert not learned.zero_point.requires_grad


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("start", ["lsq", "minmax", "mse"])
def test_what_is_exported_is_what_was_trained(granularity, symmetric, start):
    scheme = QuantScheme(3, symmetric, granularity, 16 if granularity == "group" else None)
    weight = leaf(8, 48)
    learned = LearnedScale.of_weight(weight, scheme, start=start, scale_dtype=torch.float16)
    with torch.no_grad():
        learned.scale.mul_(1.01)  # a step of training: no longer a float16 number
    exported = learned.quantized(weight)
    assert torch.equal(exported.dequantize(), learned(weight).detach())
    assert exported.scale.dtype == torch.float16
    learned(weight).square().sum().backward()
    assert float(learned.scale.grad.abs().max()) > 0
    assert symmetric == (learned.zero_point.grad is None)


def test_learning_the_scale_lowers_the_error():
    weight = leaf(4, 256).detach()
    learned = LearnedScale.of_weight(weight, QuantScheme(2, True, "channel"), start="minmax")
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)
    before = (learned(weight) - weight).square().sum(1)
    for _ in range(80):
        optimizer.zero_grad()
        (learned(weight) - weight).square().sum(1).div(16).sum().backward()
        optimizer.step()
    after = (learned(weight) - weight).square().sum(1)
    assert bool((after < 0.7 * before).all())


def test_an_activation_starts_its_scale_and_keeps_it():
    learned = LearnedScale(QuantScheme(8, False, "tensor"), elements=32, start="minmax")
    x = torch.randn(2, 5, 32)
    learned(x)
    first = learned.scale.item()
    learned(10 * x)
    assert learned.scale.item() == first
    assert learned.quantized(torch.randn(3, 32)).scale.shape == (1, 1)


def test_a_scale_that_a_step_drove_below_zero_stays_usable():
    weight = leaf(2, 16)
    learned = LearnedScale.of_weight(weight, QuantScheme(4, True, "channel"))
    with torch.no_grad():
        learned.scale[0] = -1.0
    learned(weight).sum().backward()
    assert torch.isfinite(learned.scale.grad).all()
    assert float(learned.qparams()[0].min()) > 0


def test_failures_say_what_to_do():
    scheme = QuantScheme(8, True, "tensor")
    with pytest.raises(CalibrationError, match="seen no tensor"):
        LearnedScale(scheme).quantized(torch.randn(4))
    with pytest.raises(CalibrationError, match="seen no tensor"):
        LearnedScale(scheme).eval()(torch.randn(4))
    with pytest.raises(CalibrationError, match="variance"):
        LearnedScale(scheme)(torch.zeros(4))
    ruined = LearnedScale(scheme)
    ruined(torch.randn(4))
    with torch.no_grad():
        ruined.scale.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="learned scale"):
        ruined(torch.randn(4))


def test_a_row_of_zeros_has_a_scale():
    weight = torch.randn(3, 8)
    weight[1] = 0
    learned = LearnedScale.of_weight(weight, QuantScheme(4, True, "channel"))
    assert learned.scale[1].item() == 1.0 and not learned(weight)[1].any()
