"""Notebook 06's sliders: the numbers behind the picture are those of the search."""

import pytest
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.widgets_06_scales import ALPHAS, ScaleExplorer
from labkit.quantize import awq, rtn
from labkit.quantize.hessian import InputStats

SCHEME = QuantScheme(3, False, "group", 8)


@pytest.fixture
def explorer():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(12, 16, generator=generator) for name in ("up", "down")}
    loudness = torch.logspace(-1, 1, 16)
    inputs = {name: torch.randn(50, 16, generator=generator) * loudness for name in weights}
    return ScaleExplorer(weights, inputs, SCHEME), weights, inputs


def test_without_scales_all_of_the_error_is_left(explorer):
    box, *_ = explorer
    assert box.error == 1 and box.curve[0] == 1


def test_the_error_is_that_of_the_outputs(explorer):
    box, weights, inputs = explorer
    box.layer.value, box.alpha.value, box.beta.value = "down", 0.5, 0.25
    weight, x = weights["down"], inputs["down"]
    scales = box._layer()[0].candidate(0.5, 0.25).scales
    scaled = rtn.quantize(weight * scales, SCHEME).dequantize() / scales
    plain = rtn.quantize(weight, SCHEME).dequantize()
    errors = [float((x @ (other - weight).T).square().sum()) for other in (scaled, plain)]
    assert box.error == pytest.approx(errors[0] / errors[1], rel=1e-3)
    assert box.curve[ALPHAS.index(0.5)] == pytest.approx(box.error)


def test_the_sliders_reach_what_the_search_finds(explorer):
    box, weights, inputs = explorer
    search = awq.search_scales(weights["up"], InputStats(16).add(inputs["up"]), SCHEME)
    least = min(box.curve)
    assert search.loss / search.unscaled <= least * 1.0001 < 1


def test_every_control_draws_anew(explorer):
    box, *_ = explorer
    seen = {box.picture.value}
    for control, value in ((box.alpha, 0.5), (box.beta, 0.5), (box.layer, "down")):
        control.value = value
        assert box.picture.value not in seen
        seen.add(box.picture.value)
    assert "<img alt=" in box.picture.value and "down" in box.picture.value
