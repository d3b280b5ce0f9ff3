"""FakeQuant against torch.ao.quantization.FakeQuantize; ranges that move, freeze and travel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leaves import gradients, leaf
from torch.ao import quantization as ao

from labkit.core.errors import CalibrationError, GroupSizeError, NonFiniteError, SchemeError
from labkit.core.observers import EMAObserver
from labkit.core.scheme import QuantScheme
from labkit.quantize import rtn
from labkit.training.fake_quant import FakeQuant

INT8 = QuantScheme(8, False, "tensor")
SCHEMES = [
    QuantScheme(bits, symmetric, granularity, 8 if granularity == "group" else None)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel", "group", "token")
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_forward_is_round_to_nearest_and_the_export_of_it(scheme):
    weight = leaf(6, 32)
    fake = FakeQuant(scheme, scale_dtype=torch.float16)
    rounded, exported = fake(weight), fake.quantized(weight)
    expected = rtn.quantize(weight, scheme)
    assert torch.equal(rounded.detach(), expected.dequantize())
    assert torch.equal(exported.codes, expected.codes)
    assert torch.equal(exported.scale, expected.scale) and exported.scale.dtype == torch.float16
    # Min-max clips nothing but what the rounding of the scale cut off: all the rest learns.
    assert (torch.autograd.grad(rounded.sum(), weight)[0] == 1).float().mean() > 0.9


def close_but_for_ties(ours: torch.Tensor, theirs: torch.Tensor, step: float) -> bool:
    """torch multiplies by 1 / scale: next to a tie it may take the other neighbour."""
    wrong = (ours - theirs).abs()
    return bool((wrong > step * 1e-3).float().mean() < 0.01 and wrong.max() <= step * 1.001)


def torchs(scheme: QuantScheme) -> ao.FakeQuantize:
    """torch's own with its min-max observer on, for the grid of `scheme`."""
    by_channel = scheme.granularity == "channel"
    kind = "channel" if by_channel else "tensor"
    affine = "symmetric" if scheme.symmetric else "affine"
    return ao.FakeQuantize(
        observer=ao.PerChannelMinMaxObserver if by_channel else ao.MinMaxObserver,
        quant_min=scheme.qmin,
        quant_max=scheme.qmax,
        dtype=torch.qint8 if scheme.symmetric else torch.quint8,
        qscheme=getattr(torch, f"per_{kind}_{affine}"),
        **({"ch_axis": 0} if by_channel else {}),
    )


GRIDS = [
    QuantScheme(bits, symmetric, granularity, narrow_range=False)
    for bits in (2, 4, 8)
    for symmetric in (True, False)
    for granularity in ("tensor", "channel")
]


@pytest.mark.parametrize("scheme", GRIDS, ids=str)
def test_forward_and_gradient_are_torchs_bit_for_bit(scheme):
    """With ranges whose scale is a power of two, where torch's x · (1 / scale) is x / scale."""
    levels = scheme.qmax - scheme.qmin
    low = -levels / 32 if scheme.symmetric else -(levels // 2) / 16
    high = levels / 32 if scheme.symmetric else levels / 16 + low
    x, twin = leaf(5, 400, spread=0.3), leaf(5, 400, spread=0.3)
    with torch.no_grad():
        for t in (x, twin):
            t.clamp_(low, high)
            t[:, 0], t[:, 1] = low, high
    ours, theirs = FakeQuant(scheme), torchs(scheme)
    a, b = ours(x), theirs(twin)
    scale, zero = ours.qparams()
    assert float(scale.max()) == float(scale.min()) == 1 / 16
    assert torch.equal(scale.flatten(), theirs.scale)
    assert torch.equal(zero.flatten(), theirs.zero_point.to(torch.int32))
    assert torch.equal(a, b)
    assert torch.equal(gradients(a, x)[0], gradients(b, twin)[0])


@pytest.mark.parametrize("scheme", GRIDS, ids=str)
def test_other_scales_differ_from_torchs_next_to_ties_alone(scheme):
    x, twin = leaf(5, 400), leaf(5, 400)
    ours, theirs = FakeQuant(scheme), torchs(scheme)
    a, b = ours(x), theirs(twin)
    scale, zero = ours.qparams()
    assert torch.allclose(scale.flatten(), theirs.scale, rtol=1e-6)
    assert torch.equal(zero.flatten(), theirs.zero_point.to(torch.int32))
    quotient = x.detach() / scale.reshape(-1, 1)
    tied = (quotient.remainder(1) - 0.5).abs() < 2**-14
    assert torch.allclose(a[~tied], b[~tied], rtol=1e-5)
    assert bool(((a - b).abs() <= scale.reshape(-1, 1) * 1.001).all())
    assert torch.equal(gradients(a, x)[0][~tied], gradients(b, twin)[0][~tied])
    assert tied.float().mean() < 0.01


def test_moving_activations_as_torch_does_them():
    theirs = ao.FakeQuantize(
        observer=ao.MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        averaging_constant=0.1,
    )
    ours, core = FakeQuant(INT8, "moving", momentum=0.9), EMAObserver(0.9)
    for seed in range(12):
        x, twin = leaf(3, 50, seed=seed, spread=1 + seed), leaf(3, 50, seed=seed, spread=1 + seed)
        a, b = ours(x), theirs(twin)
        core.observe(x.detach())
        scale, zero = ours.qparams()
        assert torch.allclose(scale, theirs.scale.squeeze(), rtol=1e-5)
        assert abs(int(zero) - int(theirs.zero_point)) <= 1
        assert close_but_for_ties(a.detach() / 1.0, b.detach(), float(scale) * 2)
        assert (gradients(a, x)[0] != gradients(b, twin)[0]).float().mean() < 0.02
    lo, hi = core.range()
    assert torch.allclose(ours.lo, lo, rtol=1e-5) and torch.allclose(ours.hi, hi, rtol=1e-5)


def test_evaluation_and_freezing_keep_the_range():
    fake = FakeQuant(INT8, "moving")
    fake(torch.linspace(-1, 1, 20))
    before = fake.qparams()[0]
    fake.eval()
    fake(torch.linspace(-50, 50, 20))
    assert torch.equal(fake.qparams()[0], before)
    fake.train()
    fake.freeze()
    clipped = fake(torch.linspace(-50, 50, 20))
    assert torch.equal(fake.qparams()[0], before) and float(clipped.max()) < 1.01
    fake.freeze(False)
    fake(torch.linspace(-50, 50, 20))
    assert fake.qparams()[0] > before


def test_a_weight_range_follows_the_weight_until_it_is_frozen():
    fake, weight = FakeQuant(QuantScheme(4, True, "channel")), torch.randn(3, 16)
    fake(weight)
    assert torch.allclose(fake.quantized(2 * weight).scale, 2 * fake.quantized(weight).scale)
    fake.freeze()
    kept = fake.qparams()[0]
    assert torch.equal(fake.quantized(4 * weight).scale, kept)


def test_one_by_token_never_freezes():
    fake = FakeQuant(QuantScheme(8, True, "token"))
    fake(torch.randn(2, 5, 16))
    fake.freeze()
    assert fake(torch.randn(3, 16)).shape == (3, 16)


def test_the_state_travels_with_its_shape():
    fake, weight = FakeQuant(QuantScheme(4, True, "channel")), torch.randn(3, 16)
    fake(weight)
    fake.freeze()
    other = FakeQuant(QuantScheme(4, True, "channel"))
    other.load_state_dict(fake.state_dict())
    assert bool(other.frozen) and torch.equal(other(2 * weight), fake(2 * weight))


def test_a_range_can_come_from_any_observer():
    fake = FakeQuant(INT8, "moving").eval()
    fake.set_range(torch.tensor([-1.0]), torch.tensor([3.0]))
    assert torch.allclose(fake.qparams()[0], torch.tensor(4 / 255))
    assert fake(torch.randn(2, 3, 4)).shape == (2, 3, 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), bits=st.integers(2, 8))
def test_rounding_twice_changes_nothing(seed, bits):
    fake = FakeQuant(QuantScheme(bits, True, "channel"))
    once = fake(leaf(4, 16, seed=seed).detach())
    fake.freeze()
    assert torch.equal(fake(once), once)


def test_failures_say_what_to_do():
    with pytest.raises(CalibrationError, match="seen nothing"):
        FakeQuant(INT8, "moving").quantized(torch.randn(4))
    with pytest.raises(CalibrationError, match="seen nothing"):
        FakeQuant(INT8, "moving").eval()(torch.randn(4))
    constant = FakeQuant(INT8, "moving")
    assert torch.allclose(constant(torch.full((8,), 0.5)), torch.tensor(0.5))
    with pytest.raises(CalibrationError, match="one value"):
        constant.quantized(torch.full((8,), 0.5))
    with pytest.raises(NonFiniteError):
        constant(torch.tensor([float("inf")]))
    with pytest.raises(SchemeError, match="moving"):
        FakeQuant(QuantScheme(8, True, "token"), "moving")
    with pytest.raises(GroupSizeError):
        FakeQuant(QuantScheme(4, True, "group", 32))(torch.randn(2, 48))


def test_a_dead_row_of_a_weight_is_no_failure():
    weight = torch.randn(3, 8)
    weight[1] = 0
    exported = FakeQuant(QuantScheme(4, True, "channel")).quantized(weight)
    assert not exported.dequantize()[1].any()
    assert FakeQuant(INT8)(torch.empty(0, 4)).shape == (0, 4)
