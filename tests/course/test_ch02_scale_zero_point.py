"""Chapter 02: the widgets compute what they draw, and other right answers pass than our own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from labkit.core.affine import fake_quantize
from labkit.core.metrics import mse
from labkit.course.checking import evaluate
from labkit.course.registry import get
from labkit.course.widgets_02_clip import MOST_VALUES, RATIOS, ClipExplorer
from labkit.course.widgets_02_error import clip_curve, grid_of, split_error
from labkit.course.widgets_02_grid import DATA, GridExplorer


def skewed(count=4000):
    return torch.nn.functional.silu(3 * torch.randn(count, generator=torch.manual_seed(1)))


def alt_of(picture):
    return re.search(r'alt="([^"]*)"', picture.value).group(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_parts_add_up_to_the_squared_error(bits, symmetric):
    x = skewed()
    for ratio in (0.2, 0.7, 1.0):
        split = split_error(x, ratio * float(x.min()), ratio * float(x.max()), bits, symmetric)
        grid = split.grid
        x_hat = fake_quantize(x, grid.scale, grid.zero_point, grid.qmin, grid.qmax)
        assert split.total == pytest.approx(mse(x, x_hat), rel=1e-5)


def test_nothing_is_clipped_in_the_whole_range():
    split = split_error(skewed(), float(skewed().min()), float(skewed().max()), 8, False)
    assert split.clipping == 0
    assert split.rounding == pytest.approx(split.grid.scale**2 / 12, rel=0.1)


def test_a_value_beyond_the_last_code_is_clipped_and_one_within_half_a_step_is_not():
    grid = grid_of(0.0, 3.0, 2, False)
    assert grid.values == [0.0, 1.0, 2.0, 3.0]
    assert split_error(torch.tensor([3.4]), 0.0, 3.0, 2, False).clipping == 0
    assert split_error(torch.tensor([3.6]), 0.0, 3.0, 2, False).rounding == 0
    assert split_error(torch.tensor([5.0]), 0.0, 3.0, 2, False).clipping == pytest.approx(4.0)


def test_a_narrower_range_rounds_less_and_clips_more():
    curve = clip_curve(skewed(), (0.3, 0.6, 1.0), 4, False)
    assert curve[0].rounding < curve[1].rounding < curve[2].rounding
    assert curve[0].clipping > curve[1].clipping > curve[2].clipping == 0


def test_the_range_sliders_move_scale_zero_point_error_and_picture():
    explorer = GridExplorer()
    before = explorer.grid, explorer.error, explorer.picture.value
    explorer.upper.value = 5.5
    assert explorer.grid.scale > before[0].scale
    assert explorer.error < before[1]
    assert explorer.picture.value != before[2]
    assert f"scale {explorer.grid.scale:.3g}" in alt_of(explorer.picture)
    wide = explorer.grid.zero_point
    explorer.lower.value = -3.0
    assert explorer.grid.zero_point > wide
    assert f"zero-point {explorer.grid.zero_point}" in alt_of(explorer.picture)


def test_the_grid_explorer_draws_every_setting():
    explorer, pictures = GridExplorer(), set()
    for bits in explorer.bits.options:
        for kind in explorer.kind.options:
            explorer.bits.value, explorer.kind.value = bits, kind
            pictures.add(explorer.picture.value)
            assert explorer.grid.zero_point == 0 or kind == "asymmetric"
    assert len(pictures) == 2 * len(explorer.bits.options)


def test_an_empty_range_gives_a_grid_all_the_same():
    explorer = GridExplorer()
    explorer.upper.value = explorer.lower.value = 0.0
    assert explorer.grid.scale == 1.0 and explorer.grid.zero_point == 0
    assert explorer.error == pytest.approx(
        split_error(DATA, 0.0, 0.0, explorer.bits.value, False).total
    )


def test_the_clip_slider_redraws_and_its_best_has_the_least_error():
    explorer = ClipExplorer(skewed(), unit="value")
    whole, picture = explorer.error, explorer.picture.value
    explorer.keep.value = explorer.best
    assert explorer.picture.value != picture
    assert explorer.error.total == min(split.total for split in explorer.curve) < whole.total
    assert f"Keeping {explorer.best:.0%}" in alt_of(explorer.picture)
    four_bits = explorer.best
    explorer.bits.value = 8
    assert explorer.best > four_bits


def test_every_stop_of_the_clip_slider_is_a_ratio_of_the_curve():
    keep = ClipExplorer(skewed(100), unit="value").keep
    stops = np.arange(keep.min, keep.max + keep.step / 2, keep.step)
    assert np.allclose(stops, RATIOS)


def test_a_large_tensor_is_thinned_out_but_keeps_its_ends():
    x = torch.arange(2.0 * MOST_VALUES + 2)
    explorer = ClipExplorer(x, unit="value")
    assert explorer.values.numel() <= MOST_VALUES + 2
    assert explorer.values.min() == x.min() and explorer.values.max() == x.max()
    assert float(explorer.values.mean()) == pytest.approx(float(x.double().mean()), rel=1e-3)


def symmetric_by_numpy(x, bits):
    largest = float(np.abs(x.numpy()).max())
    return largest / (2 ** (bits - 1) - 1) if largest else 1


def asymmetric_by_torch(lo, hi, bits):
    lo, hi = torch.tensor(lo).clamp(max=0), torch.tensor(hi).clamp(min=0)
    scale = (hi - lo) / (2**bits - 1)
    scale = torch.where(scale == 0, torch.tensor(1.0), scale)
    return scale, torch.round(-lo / scale).clamp(0, 2**bits - 1).int()


def codes_by_the_inverse_scale(x, scale, zero_point, qmin, qmax):
    return (x * (1 / scale)).round().add(zero_point).clamp(min=qmin, max=qmax).to(torch.int32)


def percentile_by_torch(batches, percentile):
    return torch.quantile(torch.cat([b.flatten() for b in batches]).abs(), percentile / 100)


def threshold_all_at_once(x, bits, steps):
    qmax = 2 ** (bits - 1) - 1
    thresholds = x.abs().max() * torch.arange(1, steps + 1) / steps
    scale = (thresholds / qmax)[:, None]
    x_hat = torch.round(x[None] / scale).clamp(-qmax, qmax) * scale
    return thresholds[(x - x_hat).square().sum(dim=1).argmin()]


def matmul_without_corrections(x_codes, x_zero, w_codes, w_zero):
    return (x_codes.long() - x_zero) @ (w_codes.long() - w_zero).T


RIGHT = {
    "02.1": symmetric_by_numpy,
    "02.2": asymmetric_by_torch,
    "02.3": codes_by_the_inverse_scale,
    "02.4": percentile_by_torch,
    "02.5": threshold_all_at_once,
    "02.6": matmul_without_corrections,
}


@pytest.mark.parametrize("exercise_id", RIGHT)
def test_other_right_answers_pass(exercise_id):
    for seed in range(10):
        verdict = evaluate(get(exercise_id), RIGHT[exercise_id], np.random.default_rng(seed))
        assert verdict.status == "passed", verdict.text()


def cast_without_clamping(x, scale, zero_point, qmin, qmax):
    kind = torch.uint8 if qmin == 0 else torch.int8
    codes = (torch.round(x / scale) + zero_point).to(torch.int32).to(kind).to(torch.int32)
    return codes.clamp(qmin, qmax)


def scale_for_minus_128(x, bits):
    return float(x.abs().max()) / 2 ** (bits - 1) or 1


def sum_over_the_wrong_axis(x_codes, x_zero, w_codes, w_zero):
    product = x_codes.int() @ w_codes.int().T
    zeros = w_zero.T
    return (
        product
        - x_zero * w_codes.sum(0)
        - x_codes.sum(1, keepdim=True) * zeros
        + x_codes.shape[1] * x_zero * zeros
    )


@pytest.mark.parametrize(
    ("exercise_id", "answer", "words"),
    [
        ("02.1", scale_for_minus_128, "a code +128"),
        ("02.3", cast_without_clamping, "Clamp while they are still floats"),
        ("02.6", sum_over_the_wrong_axis, "its own row, over the inputs"),
    ],
)
def test_a_wrong_answer_in_other_words_is_recognised(exercise_id, answer, words):
    verdict = evaluate(get(exercise_id), answer, np.random.default_rng(3))
    assert verdict.status == "failed"
    assert words in verdict.misconception
