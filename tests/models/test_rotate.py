"""A rotated model computes the same; its stream is rotated; what it cannot rotate it refuses."""

import pytest
import torch
from tiny_models import tiny

from labkit.core.errors import ModelError, NonFiniteError, SchemeError, ShapeError
from labkit.models.residual import STREAMS, residual_stream
from labkit.models.rotate import rotate
from labkit.models.walking import capture_inputs, linear_layers
from labkit.quantize.rotation import random_hadamard, random_orthogonal

IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(0))
ROTATED = ["llama", "llama_gqa_tied", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gpt2"]
ROTATED += ["gpt_neox"]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def float64(family, **changes):
    """In float64 a wrong formula and a rounding error cannot be taken for each other."""
    return tiny(family, **changes).double()


@pytest.mark.parametrize("family", ROTATED)
def test_the_function_stays(family):
    model = float64(family)
    before = logits(model)
    for rotation in (None, random_orthogonal(64, 3), torch.eye(64)):
        after = logits(rotate(model, rotation).model)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert torch.equal(logits(model), before), "the model itself was changed"


def test_all_of_the_table_is_tested():
    assert {residual_stream(tiny(f)) for f in ROTATED} == set(STREAMS.values())


def test_a_size_that_is_no_power_of_two():
    model = float64("llama", hidden_size=48, num_key_value_heads=4)
    before = logits(model)
    torch.testing.assert_close(logits(rotate(model, seed=1).model), before, rtol=1e-4, atol=1e-4)


def test_the_stream_is_really_rotated():
    model = float64("llama")
    rotated = rotate(model)
    fused = rotate(model, torch.eye(64))
    name = "model.layers.1.mlp.gate_proj"
    x = capture_inputs(fused.model, IDS, [name])[name]
    turned = capture_inputs(rotated.model, IDS, [name])[name]
    torch.testing.assert_close(
        turned, (x.double() @ rotated.rotation).float(), rtol=1e-3, atol=1e-4
    )
    inner = "model.layers.1.mlp.down_proj"
    torch.testing.assert_close(
        capture_inputs(rotated.model, IDS, [inner])[inner],
        capture_inputs(model, IDS, [inner])[inner],
        rtol=1e-3,
        atol=1e-4,
    )


def test_tied_embeddings_are_untied_and_it_is_said():
    model = tiny("llama_gqa_tied")
    rotated = rotate(model)
    assert rotated.model.lm_head.weight is not rotated.model.model.embed_tokens.weight
    assert rotated.model.config.tie_word_embeddings is False
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert any("lm_head shared" in note and "8,192 weights" in note for note in rotated.notes)
    assert rotate(tiny("llama", tie_word_embeddings=False)).notes == ()


def test_layer_norms_become_rms_norms_and_it_is_said():
    rotated = rotate(tiny("gpt2"))
    kinds = {type(m).__name__ for m in rotated.model.modules()}
    assert "RMSNorm" in kinds and "LayerNorm" not in kinds
    assert any("LayerNorm became an RMSNorm" in note for note in rotated.notes)
    assert any("got a bias" in note for note in rotated.notes)


def test_float32_stays_float32_and_close():
    model = tiny("llama")
    rotated = rotate(model).model
    assert all(p.dtype == torch.float32 for p in rotated.parameters())
    torch.testing.assert_close(logits(rotated), logits(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["opt", "gemma2", "gemma3_text"])
def test_unknown_streams_are_refused_by_name(family):
    with pytest.raises(ModelError, match=f"{family}.* is not known"):
        rotate(tiny(family))


def test_bad_rotations_and_weights_are_refused():
    model = tiny("llama")
    with pytest.raises(ModelError, match="without config"):
        rotate(torch.nn.Linear(2, 2))
    with pytest.raises(SchemeError, match="not orthogonal"):
        rotate(model, random_hadamard(64) * 8)
    with pytest.raises(ShapeError, match=r"\[64, 64\]"):
        rotate(model, random_hadamard(32))
    with torch.no_grad():
        linear_layers(model)["model.layers.0.mlp.up_proj"].weight[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match="up_proj"):
        rotate(model)
