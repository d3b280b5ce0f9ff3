"""HQQ: the fit lowers the error, each part does what its formula says, and degenerate groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import GroupSizeError, NonFiniteError, SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.quantize import hqq, rtn

SEEDS = st.integers(0, 2**32 - 1)


def weights(seed=0, out=16, columns=128, size=0.03):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, columns, generator=generator) * size


@given(SEEDS, st.integers(1, 8), st.sampled_from([None, 16, 64]))
def test_the_fit_never_makes_it_worse(seed, bits, group):
    weight = weights(seed)
    start = hqq.quantize(weight, bits, group, iterations=0)
    fitted = hqq.quantize(weight, bits, group)
    groups = weight.reshape(16, -1, fitted.group_size)
    before, after = (
        (t.dequantize().reshape(groups.shape) - groups).abs().mean(-1) for t in (start, fitted)
    )
    assert bool((after <= before * (1 + 1e-6)).all())
    assert int(fitted.codes.max()) < 2**bits


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_beats_round_to_nearest(bits):
    weight = weights(1, 128, 512)
    scheme = QuantScheme(bits, False, "group", 64)
    plain, fitted = rtn.quantize(weight, scheme), hqq.quantize(weight, bits, 64)
    for p in (1, 2):
        ours, theirs = ((t.dequantize() - weight).norm(p) for t in (fitted, plain))
        assert float(ours) < float(theirs)


def test_errors_fall_turn_by_turn_until_they_stall():
    errors = hqq.solve(weights(2, 64, 512), 4, 64).errors
    assert 3 < len(errors) <= 21
    assert list(errors[:4]) == sorted(errors[:4], reverse=True)
    assert len(hqq.solve(weights(2), 4, 64, iterations=3).errors) <= 4


@given(st.floats(0.1, 0.9), st.floats(1.0, 20.0), SEEDS)
def test_shrinking_moves_towards_zero_and_cuts_what_is_small(p, beta, seed):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = hqq.shrink(x, beta, p)
    assert bool((y.abs() <= x.abs()).all()) and bool((y * x >= 0).all())
    threshold = beta ** (-1 / (2 - p))
    assert not bool(y[x.abs() < threshold * 0.999].any())
    assert bool((y[x.abs() > threshold * 1.001] != 0).all())
    assert float(hqq.shrink(torch.zeros(1), beta, p)) == 0.0


def test_on_weights_of_a_language_models_size_p_and_kappa_change_nothing():
    """An error below 0.17 is cut to nothing whatever it is; in units of 1 it is not."""
    small, large = weights(3), weights(3, size=3.0)
    for weight, same in ((small, True), (large, False)):
        one = hqq.quantize(weight, 2, 64, p=0.7, scale_dtype=torch.float32)
        other = hqq.quantize(weight, 2, 64, p=0.5, kappa=1.1, scale_dtype=torch.float32)
        assert torch.equal(one.zero, other.zero) == same


def test_outliers_weigh_less_than_in_a_mean():
    """One error that no zero can mend: p < 1 leaves it out of the mean, p = 1 counts it more."""
    residual = torch.tensor([0.01, -0.01, 0.02, 5.0])
    kept = hqq.shrink(residual, 10.0, 0.7)
    assert kept[:3].tolist() == [0.0, 0.0, 0.0]
    assert float(kept[3]) > 4.9
    assert float((residual - kept).mean()) < 0.03 < float(residual.mean())


def test_degenerate_groups():
    weight = torch.zeros(3, 64)
    weight[1] = 0.1234
    weight[2, :32] = -1e-6
    tensor = hqq.quantize(weight, 4, 64, scale_dtype=torch.float32)
    restored = tensor.dequantize()
    assert not bool(restored[0].any())
    assert torch.allclose(restored[1], weight[1], rtol=1e-6)
    # The package gives so narrow a group one level: an error of half its range.
    assert float((restored[2] - weight[2]).abs().max()) < 1e-8


@given(SEEDS, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_codes_fit_what_is_stored(seed, dtype):
    weight = weights(seed)
    tensor = hqq.quantize(weight, 3, 32, scale_dtype=dtype)
    assert tensor.scale.dtype == tensor.zero.dtype == dtype
    groups = weight.reshape(16, 4, 32)
    zero, scale = tensor.zero.float()[..., None], tensor.scale.float()[..., None]
    nearest = torch.round(groups / scale + zero).clamp(0, 7)
    assert torch.equal(tensor.codes.float().reshape(groups.shape), nearest)


def test_refusals():
    weight = weights()
    with pytest.raises(GroupSizeError, match="group size 48 does not divide 128"):
        hqq.quantize(weight, 4, 48)
    with pytest.raises(ShapeError, match=r"Expected \[out, in\]"):
        hqq.quantize(weight[0], 4, 64)
    with pytest.raises(ShapeError, match=r"\(0, 64\)"):
        hqq.quantize(torch.empty(0, 64), 4, 64)
    with pytest.raises(SchemeError, match="int8"):
        hqq.quantize(torch.zeros(2, 64, dtype=torch.int8), 4, 64)
    with pytest.raises(SchemeError, match="9 bits"):
        hqq.quantize(weight, 9, 64)
    with pytest.raises(SchemeError, match="kappa"):
        hqq.quantize(weight, 4, 64, kappa=0.5)
    with pytest.raises(SchemeError, match="keep scales and zeros in float32"):
        hqq.quantize(weights(size=1e-5) + 1.0, 8, 64)
    weight[3, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(3, 5\) = nan"):
        hqq.quantize(weight, 4, 64)
