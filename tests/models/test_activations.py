"""Models that multiply integers: what they compute, what they count, what they refuse."""

import math

import pytest
import torch
from tiny_models import tiny

from labkit.core.errors import CalibrationError, GroupSizeError, NonFiniteError, SchemeError
from labkit.core.observers import PercentileObserver
from labkit.core.scheme import QuantScheme
from labkit.models.activations import (
    float_shares,
    observe_inputs,
    with_llm_int8,
    with_quantized_activations,
)
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods.llm_int8 import LlmInt8
from labkit.models.methods.smoothquant import SmoothQuant
from labkit.models.plant_outliers import plant
from labkit.models.walking import capture_inputs, linear_layers
from labkit.nn.quantized_linear import LLMInt8Linear, QuantizedLinear

IDS = torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(0))
KINDS = ("static", "dynamic", "token")


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def distance(model, reference):
    return float((logits(model) - reference).norm() / reference.norm())


@pytest.mark.parametrize("family", ["llama_gqa_tied", "qwen2", "gpt2", "opt"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_multiplies_integers(family, kind):
    model = tiny(family)
    reference = logits(model)
    changed = with_quantized_activations(model, kind, calibration=IDS)
    layers = [changed.get_submodule(name) for name in linear_layers(model)]
    assert layers and all(isinstance(layer, QuantizedLinear) for layer in layers)
    assert 0 < distance(changed, reference) < 0.1
    assert torch.equal(logits(model), reference), "the model itself was changed"


def test_fewer_bits_are_worse():
    model = tiny("llama")
    reference = logits(model)
    errors = [
        distance(with_quantized_activations(model, "token", bits=bits), reference)
        for bits in (8, 6, 4, 3)
    ]
    assert errors == sorted(errors)
    asymmetric = with_quantized_activations(model, "token", symmetric=False)
    assert distance(asymmetric, reference) < 0.1


def test_planted_outliers_break_one_scale_and_every_cure_helps():
    model = tiny("llama")
    reference = logits(model)
    planted = plant(model, (3, 40), 128.0).model
    static = distance(with_quantized_activations(planted, "static", calibration=IDS), reference)
    token = distance(with_quantized_activations(planted, "token"), reference)
    split = with_llm_int8(planted, 30.0)
    assert distance(split, reference) < 0.3 * static and token < static
    shares = float_shares(split)
    assert shares["model.layers.0.self_attn.q_proj"] == pytest.approx(2 / 64)
    assert set(shares) == set(linear_layers(model))


def test_static_ranges_are_those_of_the_calibration_data():
    model = tiny("llama")
    seen = observe_inputs(model, IDS)
    for name, x in capture_inputs(model, IDS, seen).items():
        low, high = seen[name].range()
        torch.testing.assert_close((low, high), (x.min(), x.max()), rtol=1e-5, atol=1e-6)
    narrow = with_quantized_activations(
        model, "static", calibration=IDS, observer=lambda: PercentileObserver(99.0)
    )
    name = "model.layers.0.mlp.down_proj"
    wide = with_quantized_activations(model, "static", calibration=IDS)
    scales = [float(m.get_submodule(name).activation.scale) for m in (narrow, wide)]
    assert scales[0] < scales[1]


def test_llm_int8_takes_a_threshold_for_each_layer():
    model = tiny("llama")
    thresholds = dict.fromkeys(linear_layers(model), math.inf)
    first = next(iter(thresholds))
    thresholds[first] = 1e-6
    changed = with_llm_int8(model, thresholds)
    logits(changed)
    shares = float_shares(changed)
    assert shares.pop(first) == 1.0 and set(shares.values()) == {0.0}
    assert isinstance(changed.get_submodule(first), LLMInt8Linear)
    assert float_shares(with_llm_int8(model)) == {}
    with pytest.raises(SchemeError, match="no threshold"):
        with_llm_int8(model, {})


def test_bad_input_is_refused_with_the_layer_named():
    model = tiny("llama")
    for calibration in (None, IDS[:0]):
        with pytest.raises(CalibrationError, match="static"):
            with_quantized_activations(model, "static", calibration=calibration)
    with pytest.raises(SchemeError, match="asym"):
        logits(with_quantized_activations(model, weight_scheme=QuantScheme(8, symmetric=False)))
    grouped = QuantScheme(8, granularity="group", group_size=24)
    with pytest.raises(GroupSizeError) as caught:
        with_quantized_activations(model, weight_scheme=grouped)
    assert any("q_proj" in note for note in caught.value.__notes__)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(IDS[0, 0])] = math.nan
    with pytest.raises(NonFiniteError):
        logits(with_quantized_activations(model, "token"))
    with pytest.raises(NonFiniteError):
        with_quantized_activations(model, "static", calibration=IDS)


class TestInTheDriver:
    def test_llm_int8_needs_no_calibration_and_gives_the_weights_that_run(self):
        model = tiny("llama")
        result = quantize_blockwise(model, LlmInt8())
        assert distance(result.model, logits(model)) < 0.05
        running = with_llm_int8(model)
        for report in result.reports:
            codes = running.get_submodule(report.name).quantized.codes
            assert torch.equal(report.quantized.codes, codes) and report.sqnr_db > 30

    def test_smoothquant_is_smoothing_then_rounding(self):
        model = plant(tiny("llama_gqa_tied"), (3, 40), 128.0).model
        result = quantize_blockwise(model, SmoothQuant(alpha=0.5), IDS)
        reference = logits(model)
        assert distance(result.model, reference) < 0.05
        notes = {report.name: report.note for report in result.reports}
        assert notes["model.layers.1.mlp.up_proj"] == "smoothed, alpha 0.5"
        assert "not smoothed" in notes["model.layers.1.mlp.down_proj"]
        naive = with_quantized_activations(model, "static", calibration=IDS)
        both = with_quantized_activations(result.model, "static", calibration=IDS)
        assert distance(both, reference) < 0.3 * distance(naive, reference)

    def test_alpha_is_searched_or_refused(self):
        model = plant(tiny("gpt2"), (3,), 64.0).model
        result = quantize_blockwise(model, SmoothQuant(alpha=None), IDS)
        assert any(report.note.startswith("smoothed, alpha 0.") for report in result.reports)
        with pytest.raises(SchemeError, match="alpha") as caught:
            quantize_blockwise(model, SmoothQuant(alpha=2.0), IDS)
        assert any("c_attn" in note for note in caught.value.__notes__)
