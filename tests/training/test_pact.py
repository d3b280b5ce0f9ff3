"""PACT: the clip's gradients are the paper's, and alpha finds its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaves import leaf

from labkit.core.errors import CalibrationError, NonFiniteError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.training.pact import LearnedClip

RELU4, SIGNED4 = QuantScheme(4, False, "tensor"), QuantScheme(4, True, "tensor")


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.1, 8), seed=st.integers(0, 999), bits=st.integers(2, 8))
def test_gradients_are_those_of_the_clip(alpha, seed, bits):
    x, clip = leaf(200, seed=seed, spread=3), LearnedClip(QuantScheme(bits, False, "tensor"), alpha)
    y = clip(x)
    weights = torch.randn(200, generator=torch.Generator().manual_seed(seed + 1))
    y.backward(weights)
    bound = clip.alpha.detach()
    twin, limit = x.detach().clone().requires_grad_(), bound.clone().requires_grad_()
    # The paper's form of clamp(x, 0, alpha), whose derivatives autograd knows.
    (0.5 * (twin.abs() - (twin - limit).abs() + limit)).backward(weights)
    assert torch.allclose(x.grad, twin.grad, atol=1e-5)
    assert torch.allclose(clip.alpha.grad, limit.grad, atol=1e-4)
    assert float((y.detach() - x.detach().clamp(0, alpha)).abs().max()) <= (
        0.5001 * alpha / (2**bits - 1)
    )


def test_a_signed_clip_pulls_from_both_ends():
    clip = LearnedClip(SIGNED4, 1.0)
    x = torch.tensor([-5.0, -0.5, 0.5, 5.0, 7.0], requires_grad=True)
    clip(x).backward(torch.tensor([10.0, 1.0, 1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [0, 1, 1, 0, 0]
    assert clip.alpha.grad.item() == 2 + 3 - 10


def test_alpha_settles_between_clipping_and_rounding():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).relu()
    clip = LearnedClip(QuantScheme(2, False, "tensor"), 6.0)
    optimizer = torch.optim.SGD(clip.parameters(), lr=2.0)
    before = float((clip(x) - x).square().mean().detach())
    for _ in range(100):
        optimizer.zero_grad()
        ((clip(x) - x).square().mean() + 0.01 * clip.penalty()).backward()
        optimizer.step()
    assert 1.0 < clip.alpha.item() < 4.5
    assert float((clip(x) - x).square().mean().detach()) < before


def test_alpha_may_start_at_the_first_tensor():
    clip = LearnedClip(SIGNED4, None)
    for call in (clip.qparams, clip.require_ready, lambda: clip.eval()(torch.ones(3))):
        with pytest.raises(CalibrationError, match="no tensor"):
            call()
    clip.train()(torch.tensor([-3.0, 2.0]))
    assert clip.alpha.item() == 3.0
    clip(torch.tensor([-30.0, 20.0]))
    assert clip.alpha.item() == 3.0
    other = LearnedClip(SIGNED4, None)
    other.load_state_dict(clip.state_dict())
    assert other.eval()(torch.tensor([9.0])).item() == pytest.approx(3.0)
    with pytest.raises(SchemeError, match="ReLU"):
        LearnedClip(RELU4, None)(torch.tensor([-1.0, 2.0]))
    with pytest.raises(CalibrationError, match="variance"):
        LearnedClip(SIGNED4, None)(torch.zeros(3))


def test_what_is_exported_is_what_was_trained():
    for scheme in (RELU4, SIGNED4):
        x, clip = leaf(3, 5, spread=3), LearnedClip(scheme, 2.5)
        assert torch.equal(clip.quantized(x).dequantize(), clip(x).detach())


def test_failures_say_what_to_do():
    for scheme, alpha in ((QuantScheme(4, False, "token"), 1.0), (RELU4, 0.0)):
        with pytest.raises(SchemeError, match="positive bound"):
            LearnedClip(scheme, alpha)
    clip = LearnedClip(RELU4)
    with pytest.raises(NonFiniteError):
        clip(torch.tensor([float("nan")]))
    with torch.no_grad():
        clip.alpha.fill_(-3.0)
    assert torch.isfinite(clip(torch.randn(4))).all()
    with torch.no_grad():
        clip.alpha.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="learned clip"):
        clip(torch.randn(4))
