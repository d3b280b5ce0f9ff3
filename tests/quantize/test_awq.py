import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.core.errors import (
    CalibrationError,
    GroupSizeError,
    NonFiniteError,
    SchemeError,
    ShapeError,
)
from labkit.core.scheme import QuantScheme
from labkit.quantize import awq, rtn
from labkit.quantize.awq_scales import ScaleSpace, relative_weight, salience
from labkit.quantize.hessian import InputStats

SEEDS = st.integers(0, 2**32 - 1)
SCHEME = QuantScheme(3, False, "group", 8)
SCHEMES = st.builds(
    lambda bits, symmetric, group: QuantScheme(
        bits, symmetric, "group" if group else "channel", 8 if group else None
    ),
    st.integers(2, 4),
    st.booleans(),
    st.booleans(),
)


def case(seed, out=10, columns=16, tokens=64):
    """A weight [out, in], and inputs whose channels differ in loudness by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, columns, generator=generator)
    loudness = torch.randn(columns, generator=generator).mul(1.5).exp()
    return weight, torch.randn(tokens, columns, generator=generator) * loudness


def stats_of(x):
    return InputStats(x.shape[1]).add(x)


def output_error(x, weight, other):
    return float((x @ (other - weight).T).square().mean())


@settings(max_examples=12)
@given(SCHEMES, SEEDS)
def test_never_worse_than_rounding_to_nearest(scheme, seed):
    weight, x = case(seed)
    solution = awq.solve(weight, stats_of(x), scheme)
    plain = output_error(x, weight, rtn.quantize(weight, scheme).dequantize())
    ours = output_error(x, weight, solution.dequantize())
    assert solution.search.unscaled == pytest.approx(plain, rel=1e-3, abs=1e-9)
    assert solution.search.loss <= plain * (1 + 1e-4)
    assert ours == pytest.approx(solution.loss, rel=1e-3, abs=1e-9)


@settings(max_examples=12)
@given(SEEDS)
def test_the_loss_is_the_error_of_the_outputs(seed):
    weight, x = case(seed)
    stats = stats_of(x)
    candidate = ScaleSpace(salience(stats), [weight], SCHEME).candidate(0.5, 0.25)
    scaled = rtn.quantize(weight * candidate.scales, SCHEME).dequantize() / candidate.scales
    loss = awq.output_loss(weight, stats.hessian() / 2, SCHEME)(candidate.scales)
    assert loss == pytest.approx(output_error(x, weight, scaled), rel=1e-3)


@settings(max_examples=12)
@given(SEEDS)
def test_all_of_the_grid_is_tried_and_the_best_kept(seed):
    weight, x = case(seed)
    stats = stats_of(x)
    space = ScaleSpace(salience(stats), [weight], SCHEME)
    loss = awq.output_loss(weight, stats.hessian() / 2, SCHEME)
    search = awq.search_scales(weight, stats, SCHEME)
    for (alpha, beta, value), candidate in zip(search.history, space.grid(), strict=True):
        assert (alpha, beta) == (candidate.alpha, candidate.beta)
        assert value == loss(candidate.scales)
    assert search.loss <= min(value for *_, value in search.history)
    assert search.loss == loss(search.best.scales)


def test_loud_channels_grow():
    weight, x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.ones(50, 32)
    x[:, 3] = 30.0
    x *= torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    search = awq.search_scales(weight, stats_of(x), QuantScheme(3, False, "group", 32))
    assert int(search.best.scales.argmax()) == 3
    assert search.loss < 0.5 * search.unscaled


@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_scales_are_normalised_and_follow_the_formula(seed, alpha, beta):
    weight, x = case(seed)
    x_mean = x.abs().mean(dim=0)
    scales = ScaleSpace(x_mean, [weight], SCHEME).candidate(alpha, beta).scales
    assert float(scales.max() * scales.min()) == pytest.approx(1, rel=1e-4)
    expected = x_mean.pow(alpha) / (relative_weight([weight], SCHEME).pow(beta) + 1e-4 * (beta > 0))
    ratio = scales / expected
    torch.testing.assert_close(ratio, ratio[:1].expand(16), rtol=1e-4, atol=0)


def test_relative_weight_of_several_layers():
    first, second = torch.tensor([[1.0, -2.0, 4.0, 0.0]]), torch.tensor([[0.0, 5.0, 2.0, 1.0]])
    scheme = QuantScheme(4, False, "group", 2)
    expected = torch.tensor([(0.5 + 0) / 2, (1 + 1) / 2, (1 + 1) / 2, (0 + 0.5) / 2])
    assert torch.equal(relative_weight([first, second], scheme), expected)
    with pytest.raises(ShapeError, match="same number of columns"):
        relative_weight([first, torch.ones(2, 6)], scheme)


def test_a_dead_channel_has_scale_one_and_shifts_no_other():
    weight, x = case(3)
    alive = ScaleSpace(x.abs().mean(dim=0)[1:], [weight[:, 1:]], QuantScheme(3)).candidate(0.5)
    x[:, 0] = 0.0
    space = ScaleSpace(salience(stats_of(x)), [weight], QuantScheme(3))
    scales = space.candidate(0.5).scales
    assert float(scales[0]) == 1.0
    torch.testing.assert_close(scales[1:], alive.scales)


def test_zero_groups_stay_zero():
    weight, x = case(4)
    weight[2] = 0.0
    weight[:, 8:] = 0.0
    solution = awq.solve(weight, stats_of(x), SCHEME)
    assert not bool(solution.dequantize()[2].any() or solution.dequantize()[:, 8:].any())


def test_one_token_is_enough_to_run():
    weight, x = case(5, tokens=1)
    solution = awq.solve(weight, stats_of(x), SCHEME)
    assert solution.tokens == 1
    assert solution.search.loss <= solution.search.unscaled


def test_nothing_that_was_given_is_changed():
    weight, x = case(6)
    stats = stats_of(x)
    before = weight.clone(), stats.hessian()
    awq.solve(weight, stats, SCHEME)
    assert torch.equal(weight, before[0]) and torch.equal(stats.hessian(), before[1])


def test_candidates_that_float16_cannot_hold_are_passed_over():
    weight, x = case(7)
    weight *= 5e4  # steps near float16's end: scales that grow overflow, others do not
    search = awq.search_scales(weight, stats_of(x), SCHEME)
    losses = [value for *_, value in search.history]
    assert float("inf") in losses and search.loss < float("inf")
    with pytest.raises(SchemeError, match=r"beyond the maximum .*float16"):
        awq.search_scales(weight * 1e4, stats_of(x), SCHEME)


def test_refusals():
    weight, x = case(8)
    with pytest.raises(CalibrationError, match="0 calibration tokens"):
        awq.solve(weight, InputStats(16), SCHEME)
    with pytest.raises(CalibrationError, match="all inputs of 5 tokens are 0"):
        awq.solve(weight, stats_of(torch.zeros(5, 16)), SCHEME)
    with pytest.raises(ShapeError, match="8 channels of x for 16 columns"):
        awq.solve(weight, stats_of(x[:, :8]), SCHEME)
    with pytest.raises(GroupSizeError):
        awq.solve(weight, stats_of(x), QuantScheme(4, False, "group", 5))
    with pytest.raises(SchemeError, match="At least one step"):
        awq.search_scales(weight, stats_of(x), SCHEME, steps=0)
    with pytest.raises(SchemeError, match="plain, duo"):
        awq.search_scales(weight, stats_of(x), SCHEME, forms=("triple",))
    x[3, 2] = float("inf")
    with pytest.raises(NonFiniteError, match=r"\(3, 2\) = inf"):
        stats_of(x)
    weight[0, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(0, 1\) = nan"):
        awq.solve(weight, stats_of(case(8)[1]), SCHEME)


def test_losses_that_are_not_finite_are_no_choice():
    space = ScaleSpace(torch.ones(16), [torch.ones(2, 16)], SCHEME)
    found = awq.choose(space.grid(2, ("plain",)), _Losses(float("nan"), 3.0))
    assert found.loss == 3.0 and found.best.alpha == 0.5
    with pytest.raises(CalibrationError, match="no candidate has a finite"):
        awq.choose(space.grid(2, ("plain",)), _Losses(float("nan"), float("inf")))


class _Losses:
    """Gives one loss after the other, whatever is asked."""

    def __init__(self, *losses):
        self.left = iter(losses)

    def __call__(self, scales):
        return next(self.left)
