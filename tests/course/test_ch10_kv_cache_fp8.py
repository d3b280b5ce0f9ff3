"""Notebook 10: its sliders and pictures say what the numbers say."""

import numpy as np
import pytest
import torch

from labkit.core.memory import gib, kv_cache_bytes
from labkit.core.model_shapes import MODEL_SHAPES
from labkit.course import widgets_10_pages as server
from labkit.course.widgets_10_memory import CacheExplorer, stored_bits
from labkit.course.widgets_10_pages import SLOTS, PageExplorer
from labkit.course.widgets_10_pictures import (
    errors_beside_a_loud_channel,
    errors_of_wrong_scales,
    heat_maps,
    whole_model,
)


def test_the_cache_slider_is_the_formula():
    box = CacheExplorer()
    box.model.value, box.context.value, box.sequences.value = "llama-2-70b", 4096, 4
    shape = MODEL_SHAPES["llama-2-70b"]
    assert box.cache_gib == pytest.approx(gib(kv_cache_bytes(shape, 4096, 4)))
    box.kind.value = "int8"
    assert box.cache_gib == pytest.approx(gib(kv_cache_bytes(shape, 4096, 4, 8.25)))
    assert "H100" in box.fitting and "L4" not in box.fitting
    box.sequences.value, box.context.value = 64, 2**17
    assert box.fitting == [] and "none" in box.picture.value
    assert stored_bits("fp16") == 16 and 5 < stored_bits("int4") < 5.1


@pytest.mark.parametrize("make", [CacheExplorer, PageExplorer])
def test_every_control_draws_anew(make):
    box = make()
    seen = {box.picture.value}
    for row in box.children[:-1]:
        for control in row.children:
            options = getattr(control, "options", (3, 5))
            control.value = next(o for o in options if o != control.value)
            assert box.picture.value not in seen
            seen.add(box.picture.value)


def test_pages_hold_more_the_smaller_they_are():
    shares = [server.mean(server.moments(size), "used") / SLOTS for size in (128, 64, 16, 4, 1)]
    assert shares == sorted(shares) and shares[-1] > 0.9
    reserved = server.mean(server.moments(0), "used") / SLOTS
    known = server.mean(server.exact_moments(), "used") / SLOTS
    assert reserved < 0.4 < known < server.mean(server.moments(16), "used") / SLOTS
    box = PageExplorer()
    box.step.value, box.page_size.value = 50, 4
    runs, pages = box.both
    assert f"{pages.running} with pages of 4" in box.picture.value
    for moment in (runs, pages):
        assert (moment.owner >= 0).sum() == moment.used
        assert len(np.unique(moment.owner[moment.owner >= 0])) == moment.running


def test_int8_counts_from_the_largest_and_fp8_from_each_number():
    found = errors_beside_a_loud_channel([1.0, 16.0, 32.0])
    assert found["int8"][1] - found["int8"][2] == pytest.approx(6, abs=0.3)
    assert found["fp8"][0] == pytest.approx(found["fp8"][2], abs=0.3)
    assert found["int8"][0] > found["fp8"][0] + 8 and found["int8"][2] < found["fp8"][2]
    scales = errors_of_wrong_scales([0.25, 1.0, 64.0])
    assert scales["fp8"][1] == pytest.approx(scales["fp8"][2], abs=0.1)
    assert scales["int8"][1] - scales["int8"][2] > 30
    assert max(scales["int8"][0], scales["fp8"][0]) < 15


def test_pictures_hold_their_data():
    fig = heat_maps({"a": -torch.ones(4, 3), "b": torch.zeros(4, 3)})
    images = [ax.images[0].get_array() for ax in fig.axes if ax.images]
    assert images[0].shape == (4, 3) and float(images[0].max()) == 1
    fig = whole_model({"x": (1.0, 2.0, 30.0), "y": (0.5, 1.0, 31.0)}, 8)
    left, right = fig.axes
    assert [bar.get_width() for bar in left.patches] == [1.0, 0.5, 2.0, 1.0]
    assert right.lines[0].get_xdata().tolist() == [30.0, 31.0]
