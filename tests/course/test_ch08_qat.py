"""Notebook 08: its sliders, its live curve and its tables say what the numbers say."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from labkit.core.scheme import QuantScheme
from labkit.course import widgets_08_training
from labkit.course.chapters.exercises_08_lsq import lsq_gradient
from labkit.course.widgets_08_grid import REACH, GridExplorer
from labkit.course.widgets_08_pictures import (
    bars_of_perplexity,
    layer_diagram,
    recovery,
    recovery_table,
    relative_curve,
    task_table,
)
from labkit.course.widgets_08_training import (
    LossCurve,
    ScaleLog,
    fast_bfloat16,
    learned_scales,
    scale_paths,
)
from labkit.training.prepare import QatConfig, prepare
from labkit.training.trainer import TrainSettings, train


def test_the_curves_are_the_staircase_and_its_two_gradients():
    box = GridExplorer()
    box.bits.value, box.scale.value = 2, 1.0
    curves = box.curves()
    x, inside = curves["x"], curves["by x"] == 1
    assert sorted(curves["rounded"].unique().tolist()) == [-2, -1, 0, 1]
    assert torch.equal(inside, (x.round() >= -2) & (x.round() <= 1))
    assert torch.allclose(curves["by scale"][inside], (x.round() - x)[inside], atol=1e-6)
    assert curves["by scale"][0] == -2 and curves["by scale"][-1] == 1
    assert box.clipped == pytest.approx(1 - 4 / (2 * REACH), abs=1e-2)


def test_every_slider_draws_anew():
    box = GridExplorer()
    seen = {box.picture.value}
    for control, value in ((box.bits, 4), (box.scale, 0.5)):
        control.value = value
        assert box.picture.value not in seen
        seen.add(box.picture.value)
    assert "16 levels" in box.picture.value


def test_the_exercise_asks_for_the_gradient_of_the_definition():
    """s · clamp(round(w / s)) by finite differences of its straight-through form."""
    w, grad = torch.tensor([[0.375, 5.0, -7.0]]), torch.tensor([[1.0, 0.5, 2.0]])
    found = lsq_gradient(w, torch.ones(1, 1), -4, 3, grad)
    by_hand = (1.0 * (0 - 0.375) + 0.5 * 3 + 2.0 * -4) / (3 * 3) ** 0.5
    assert float(found) == pytest.approx(by_hand)


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return prepare(net, QatConfig(QuantScheme(3, narrow_range=False)), tell=lambda line: None)


def test_the_curve_is_drawn_while_the_trainer_runs(small):
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    curve, log = LossCurve(6, every=3), ScaleLog(small, "0")
    before = learned_scales(small)
    pictures = [curve.picture.value]

    def watch(words, done, total):
        curve.progress(words, done, total)
        log.note()
        pictures.append(curve.picture.value)

    settings = TrainSettings(steps=6, warmup=1, evaluate_every=6)
    history = train(
        small,
        lambda step: x,
        settings,
        loss=lambda network, batch: (network(batch) - batch[:, :4]).square().mean(),
        progress=watch,
    )
    assert curve.losses == pytest.approx([row["loss"] for row in history], abs=1e-4)
    assert len(set(pictures)) == 3  # empty, after 3 steps, after 6
    assert f"{curve.losses[-1]:.2f} after 6 of 6" in curve.picture.value
    assert list(curve.figure().axes[0].lines[0].get_ydata()) == curve.losses
    paths = log.relative()
    assert paths.shape == (7, 16) and bool((paths[0] == 1).all())
    after = learned_scales(small)
    assert set(before) == {"0", "2"}
    assert torch.allclose(paths[-1], after["0"] / before["0"])
    left, right = scale_paths(log, before, after, (0, 3)).axes
    assert list(left.lines[1].get_ydata()) == paths[:, 3].tolist()
    assert sum(patch.get_height() for patch in right.patches) == 20


@pytest.mark.parametrize(
    ("found", "fast"),
    [({"avx512_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({}, False)],
)
def test_bfloat16_where_the_processor_has_it(monkeypatch, found, fast):
    monkeypatch.setattr(widgets_08_training.torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(widgets_08_training.torch.backends.mkldnn, "is_available", lambda: False)
    assert fast_bfloat16() is fast


def test_no_bfloat16_where_onednn_may_not_use_it():
    """It would fall back to loops that take many times as long as float32."""
    code = "from labkit.course.widgets_08_training import fast_bfloat16; print(fast_bfloat16())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def a_run(what):
    domains = ("stdlib-code", "stdlib-prose")
    three = {
        kind: dict(zip(domains, values, strict=True))
        for kind, values in {"fp32": (10, 40), "gptq": (20, 80), "qat": (12, 50)}.items()
    }
    tasks = {kind: {"doctest": share} for kind, share in (("fp32", 1), ("gptq", 0.5), ("qat", 0.9))}
    curve = [{"step": 0, "stdlib-code": 30, "stdlib-prose": 90},
             {"step": 60, "stdlib-code": 15, "stdlib-prose": 60}]  # fmt: skip
    closed = {"stdlib-code": 0.8, "stdlib-prose": 0.75}
    return {"what": what, **three, "closed": closed, "tasks": tasks, "curve": curve}


def test_the_recorded_runs_are_drawn_and_listed():
    runs = [a_run("W3"), a_run("W2")]
    assert relative_curve(runs[0], "stdlib-code") == ([0, 60], [1, 0.5])
    left, right = recovery(runs).axes
    assert left.get_title(loc="left") == "W3" and right.get_title(loc="left") == "W2"
    assert list(left.lines[0].get_ydata()) == [1, 0.5]
    assert list(left.lines[1].get_ydata()) == [0.5, 0.5]
    lines = recovery_table(runs).splitlines()
    assert lines[1].split() == ["W3", "code", "10.00", "20.00", "12.00", "80%"]
    assert lines[4].split() == ["prose", "40.00", "80.00", "50.00", "75%"]
    assert [line.split()[-1] for line in task_table(runs).splitlines()] == [
        "doctest", "100%", "50%", "90%", "50%", "90%",
    ]  # fmt: skip


def test_the_bars_and_the_layer_name_what_they_show():
    ax = bars_of_perplexity({"2 bits": 60.0, "FP32": 9.0}, 9.0).axes[0]
    assert [patch.get_height() for patch in ax.patches] == [60, 9]
    assert [text.get_text() for text in ax.texts] == ["60.0", "9.0"]
    words = [text.get_text() for text in layer_diagram().axes[0].texts]
    assert sum("fake" in word for word in words) == 2 and any("not rounded" in w for w in words)
