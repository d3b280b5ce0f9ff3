"""SmoothQuant and planted outliers on whole models: the same function in other numbers."""

import math

import pytest
import torch
from tiny_models import tiny

from labkit.core.errors import CalibrationError, ModelError, NonFiniteError, SchemeError
from labkit.models.families import family as known_family
from labkit.models.plant_outliers import pick_channels, plant
from labkit.models.smooth import norm_folds, smooth
from labkit.models.walking import capture_inputs, decoder_blocks

IDS = torch.randint(3, 120, (4, 12), generator=torch.Generator().manual_seed(0))
FAMILIES = ["llama", "llama_gqa_tied", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2", "opt"]
FAMILIES += ["gpt_neox"]
LOUD = (3, 40)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def first_norm_readers(model):
    prefix, blocks = decoder_blocks(model)
    return f"{prefix}.0.{norm_folds(known_family(model), blocks[0])[0].linears[0]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_planting_changes_activations_and_no_logit(family):
    model = tiny(family)
    planted = plant(model, LOUD, 64.0)
    torch.testing.assert_close(logits(planted.model), logits(model), rtol=0, atol=1e-6)
    name = first_norm_readers(model)
    before = capture_inputs(model, IDS, [name])[name]
    after = capture_inputs(planted.model, IDS, [name])[name]
    torch.testing.assert_close(after[:, list(LOUD)], before[:, list(LOUD)] * 64)
    others = [c for c in range(64) if c not in LOUD]
    assert torch.equal(after[:, others], before[:, others])
    assert len(planted.norms) == 4 and planted.channels == LOUD


@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_changes_activations_and_no_logit(family):
    model = plant(tiny(family), LOUD, 64.0).model
    smoothed = smooth(model, IDS, 0.5)
    size = float(logits(model).abs().max())
    torch.testing.assert_close(logits(smoothed.model), logits(model), rtol=1e-4, atol=1e-4 * size)
    name = first_norm_readers(model)
    spread = [
        float((m := capture_inputs(net, IDS, [name])[name].abs().amax(dim=0)).max() / m.median())
        for net in (model, smoothed.model)
    ]
    assert spread[1] < 0.3 * spread[0]
    assert len(smoothed.alphas) == 4 and set(smoothed.alphas.values()) == {0.5}


def test_smoothing_undoes_planting_up_to_the_same_balance():
    model = tiny("llama")
    planted = plant(model, LOUD, 64.0).model
    a, b = (smooth(net, IDS, 0.5).model for net in (model, planted))
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=name)


def test_alpha_is_searched_for_each_norm():
    smoothed = smooth(plant(tiny("llama"), LOUD, 64.0).model, IDS, None)
    assert all(0 < alpha <= 1 for alpha in smoothed.alphas.values())


def test_folds_that_cannot_be_are_said():
    assert any("v_proj" in reason for reason in smooth(tiny("qwen2"), IDS).skipped)


def test_bad_input_is_refused():
    model = tiny("llama")
    with pytest.raises(CalibrationError, match="no calibration"):
        smooth(model, IDS[:0])
    with pytest.raises(SchemeError, match="alpha") as caught:
        smooth(model, IDS, 1.5)
    assert any("input_layernorm" in note for note in caught.value.__notes__)
    with pytest.raises(ModelError):
        smooth(torch.nn.Linear(2, 2), IDS)
    for factor in (0.0, -2.0, 3.0, math.inf, math.nan):
        with pytest.raises(SchemeError, match="power of two"):
            plant(model, LOUD, factor)
    for channels in ((3, 3), (64,), (-1,)):
        with pytest.raises(SchemeError, match="0 to 63"):
            plant(model, channels)
    with pytest.raises(SchemeError):
        pick_channels(4, 5)
    with torch.no_grad():
        model.model.embed_tokens.weight[int(IDS[0, 0])] = math.inf
    with pytest.raises(NonFiniteError):
        smooth(model, IDS)


def test_picked_channels_are_different_and_the_same_again():
    channels = pick_channels(64, 10, seed=2)
    assert channels == pick_channels(64, 10, seed=2) == tuple(sorted(set(channels)))
    assert channels != pick_channels(64, 10, seed=3)
