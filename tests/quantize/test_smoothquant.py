"""SmoothQuant: the formula, the product that must not change, and the search of alpha."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import NonFiniteError, SchemeError, ShapeError
from labkit.quantize.smoothquant import (
    A8_TOKEN,
    column_maxima,
    search_alpha,
    smooth,
    smoothing_scales,
)


def pair(seed=0, tokens=64, columns=16, out=8, loud=50.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator)
    x[:, 3] *= loud
    return x, torch.randn(out, columns, generator=generator)


def maxima(x, weight):
    return x.abs().amax(dim=0), column_maxima([weight])


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_the_product_stays(seed, alpha):
    x, weight = pair(seed)
    scales = smoothing_scales(*maxima(x, weight), alpha)
    smooth_x, smooth_weight = smooth(x, weight, scales)
    torch.testing.assert_close(
        smooth_x @ smooth_weight.T, x @ weight.T, rtol=1e-4, atol=1e-4 * float(x.abs().max())
    )


def test_the_ends_and_the_middle_of_alpha():
    x, weight = pair()
    x_max, w_max = maxima(x, weight)
    ends = {a: smooth(x, weight, smoothing_scales(x_max, w_max, a)) for a in (0.0, 0.5, 1.0)}
    ones = torch.ones(16)
    torch.testing.assert_close(ends[1.0][0].abs().amax(dim=0), ones)
    torch.testing.assert_close(ends[0.0][1].abs().amax(dim=0), ones)
    half_x, half_w = (t.abs().amax(dim=0) for t in ends[0.5])
    torch.testing.assert_close(half_x, half_w)
    torch.testing.assert_close(half_x, (x_max * w_max).sqrt())


def test_silent_channels_are_left_alone():
    x, weight = pair()
    x[:, 1], weight[:, 2] = 0, 0
    for alpha in (0.0, 0.3, 1.0):
        scales = smoothing_scales(*maxima(x, weight), alpha)
        assert scales[1] == 1 and scales[2] == 1 and bool(torch.isfinite(scales).all())


def test_several_weights_share_the_loudest():
    _, a = pair(0)
    _, b = pair(1)
    assert torch.equal(column_maxima([a, b]), torch.cat([a, b]).abs().amax(dim=0))


def test_extreme_maxima_do_not_overflow():
    scales = smoothing_scales(torch.tensor([1e30, 1e-30]), torch.tensor([1e-30, 1e30]), 0.5)
    torch.testing.assert_close(scales, torch.tensor([1e30, 1e-30]))


def test_search_finds_an_alpha_that_beats_both_ends_and_none():
    x, weight = pair(tokens=256, columns=64, out=64)
    found = search_alpha(x, [weight, weight[:8] * 2])
    assert len(found.errors) == 21 and min(found.errors) == found.errors[int(found.best * 20)]
    assert 0.2 < found.best < 1.0
    assert min(found.errors) < 0.2 * found.unsmoothed
    token = search_alpha(x, [weight], A8_TOKEN, alphas=(0.5,))
    assert token.best == 0.5 and token.errors[0] < token.unsmoothed


def test_a_silent_input_has_no_error():
    found = search_alpha(torch.zeros(4, 3), [torch.ones(2, 3)], alphas=(0.0, 1.0))
    assert found.errors == (0.0, 0.0) and found.unsmoothed == 0.0


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(SchemeError, match="alpha"):
        smoothing_scales(torch.ones(2), torch.ones(2), alpha)


def test_bad_input_is_refused():
    x, weight = pair()
    with pytest.raises(ShapeError, match="maxima"):
        smoothing_scales(torch.ones(2), torch.ones(3))
    with pytest.raises(ShapeError, match="columns"):
        column_maxima([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(ShapeError):
        column_maxima([])
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteError, match="activations"):
            smoothing_scales(torch.tensor([1.0, bad]), torch.ones(2))
        with pytest.raises(NonFiniteError, match="weight"):
            column_maxima([torch.tensor([[bad]])])
    with pytest.raises(ShapeError, match="last axis"):
        smooth(x, weight, torch.ones(15))
    with pytest.raises(SchemeError, match="positive"):
        smooth(x, weight, torch.zeros(16))
    with pytest.raises(SchemeError, match="alphas"):
        search_alpha(x, [weight], alphas=())
