"""What counts as a run that has gone wrong."""

from __future__ import annotations

import pytest

from labkit.training.divergence import NEGLIGIBLE, WINDOW, DivergenceError, Watch


def feed(losses, factor=3.0):
    watch = Watch(factor)
    for step, loss in enumerate(losses, start=1):
        watch.add(step, loss, gradient=1.0, lr=1e-3)


def test_a_loss_that_rises_beyond_the_factor_ends_the_run():
    feed([1.0] * WINDOW + [2.9] * WINDOW)
    with pytest.raises(DivergenceError, match="rose from 1 to") as caught:
        feed([1.0] * WINDOW + [4.0] * WINDOW)
    assert caught.value.step > WINDOW


def test_what_is_nearly_zero_may_rise_by_any_factor():
    feed([NEGLIGIBLE / 100] * WINDOW + [NEGLIGIBLE] * WINDOW)
    with pytest.raises(DivergenceError):
        feed([NEGLIGIBLE / 100] * WINDOW + [4 * NEGLIGIBLE] * WINDOW)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_no_number_ends_the_run_at_once(loss):
    with pytest.raises(DivergenceError, match="the loss is"):
        feed([loss])
