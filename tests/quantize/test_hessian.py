import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import CalibrationError, NonFiniteError, ShapeError
from labkit.quantize.hessian import InputStats


def inputs(tokens=40, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_batches_of_any_length_give_the_mean_over_tokens(lengths, seed):
    x = inputs(sum(lengths) + 1, seed=seed)
    stats = InputStats(6)
    for batch in torch.split(x, [*lengths, 1]):
        stats.add(batch)
    assert stats.tokens == len(x)
    expected = 2 / len(x) * (x.double().T @ x.double())
    torch.testing.assert_close(stats.hessian().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.mean_abs(), x.abs().mean(dim=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(stats.max_abs(), x.abs().amax(dim=0))


def test_it_is_the_second_derivative_of_the_output_error():
    x, change = inputs(), torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    damage = float((change @ x.T).square().sum()) / len(x)
    hessian = InputStats(6).add(x).hessian()
    assert damage == pytest.approx(0.5 * float((change @ hessian * change).sum()), rel=1e-5)


def test_leading_axes_are_tokens():
    x = inputs()
    stats = InputStats(6).add(x.reshape(4, 10, 6))
    assert stats.tokens == 40
    assert torch.equal(stats.hessian(), InputStats(6).add(x).hessian())


def test_half_precision_is_summed_in_float32():
    x = torch.full((5000, 2), 0.1, dtype=torch.bfloat16)
    hessian = InputStats(2).add(x).hessian()
    assert float(hessian[0, 1]) == pytest.approx(2 * float(x[0, 0]) ** 2, rel=1e-4)


def test_nan_and_infinity_are_named_by_position():
    x = inputs()
    x[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\(3, 2\) = nan"):
        InputStats(6).add(x)
    x[3, 2] = float("inf")
    stats = InputStats(6)
    with pytest.raises(NonFiniteError, match=r"\(3, 2\) = inf"):
        stats.add(x)
    assert stats.tokens == 0
    with pytest.raises(NonFiniteError, match="sum of x"):
        InputStats(6).add(torch.full((2, 6), 1e30)).hessian()


def test_refusals():
    with pytest.raises(ShapeError, match="6 columns"):
        InputStats(6).add(inputs(columns=5))
    with pytest.raises(ShapeError, match="At least one"):
        InputStats(0)
    stats = InputStats(6).add(torch.empty(0, 6))
    for ask in (stats.hessian, stats.mean_abs, stats.max_abs):
        with pytest.raises(CalibrationError, match="0 calibration tokens"):
            ask()
    with pytest.raises(CalibrationError, match="40 calibration tokens where 41"):
        InputStats(6).add(inputs()).require_tokens(41)


def test_a_hessian_made_elsewhere():
    hessian = InputStats(6).add(inputs()).hessian()
    stats = InputStats.from_hessian(hessian, tokens=40)
    assert torch.equal(stats.hessian(), hessian) and stats.tokens == 40
    with pytest.raises(CalibrationError, match="from a Hessian alone"):
        stats.mean_abs()
    with pytest.raises(CalibrationError, match="made from a Hessian"):
        stats.add(inputs())
    with pytest.raises(ShapeError, match="square"):
        InputStats.from_hessian(hessian[:3], tokens=40)
    with pytest.raises(NonFiniteError):
        InputStats.from_hessian(hessian / 0, tokens=40)
