"""From a float model to one that trains rounded: names, parameters, and what is left alone."""

import pytest
import torch
from small_nets import SmallNet, images
from tiny_models import FAMILIES, tiny, tokens
from torch import nn

from labkit.core.errors import (
    CalibrationError,
    GroupSizeError,
    ModelError,
    NonFiniteError,
    SchemeError,
)
from labkit.core.observers import MinMaxObserver
from labkit.core.scheme import QuantScheme
from labkit.models.walking import linear_layers
from labkit.training.batch_norm import QatConvBn2d, fold_batch_norm
from labkit.training.fake_quant import FakeQuant
from labkit.training.layers import QatEmbedding, QatLinear, rounders
from labkit.training.lsq import LearnedScale
from labkit.training.pact import LearnedClip
from labkit.training.prepare import QatConfig, freeze_ranges, observe, prepare

W8, W3 = QuantScheme(8), QuantScheme(3, narrow_range=False)
STATIC8 = QuantScheme(8, False, "tensor")
STATIC8_SIGNED = QuantScheme(8, True, "tensor", narrow_range=False)
TOKEN8 = QuantScheme(8, True, "token", narrow_range=False)


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_names_and_nearly_its_outputs(family):
    model, ids = tiny(family), tokens(2, 8)
    said: list[str] = []
    prepared = prepare(model, QatConfig(W8, TOKEN8), tell=said.append)
    layers = linear_layers(prepared)
    assert list(layers) == list(linear_layers(model))
    assert all(isinstance(layer, QatLinear) for layer in layers.values())
    with torch.no_grad():
        before, after = model(ids).logits, prepared(ids).logits
    assert (after - before).norm() < 0.1 * before.norm()
    assert not torch.equal(after, before)
    assert not any(isinstance(layer, QatLinear) for layer in model.modules())
    assert "lm_head" in said[0] or "embed_out" in said[0]
    assert all(parameter.requires_grad for parameter in prepared.parameters())


def test_kept_layers_stay_and_are_named():
    said: list[str] = []
    config = QatConfig(W3, keep=("*.0.*down_proj", "*lm_head*", "*.1.*"))
    with pytest.raises(ModelError, match="lm_head"):
        prepare(tiny("llama"), config)  # the head is not among the layers in question
    config = QatConfig(W3, keep=("*.0.*down_proj", "*.1.*"))
    prepared = prepare(tiny("llama"), config, tell=said.append)
    kept = [n for n, m in linear_layers(prepared).items() if not isinstance(m, QatLinear)]
    assert len(kept) == 8 and "model.layers.0.mlp.down_proj" in kept
    assert all(name in said[0] for name in kept)


def test_prepared_twice_layers_have_schemes_of_their_own():
    said: list[str] = []
    half = prepare(tiny("llama"), QatConfig(W3, keep=("*.mlp.*",)), tell=quiet)
    both = prepare(half, QatConfig(W8, keep=("*.self_attn.*",)), tell=said.append)
    block = both.model.layers[0]
    assert block.mlp.up_proj.weight_quant.scheme == W8
    assert block.self_attn.q_proj.weight_quant.scheme == W3
    assert said == ["In floating point: model.embed_tokens, lm_head."]


@pytest.mark.parametrize("scales", ["learned", "minmax"])
def test_scales_are_learned_or_watched(scales):
    config = QatConfig(W3, STATIC8, scales=scales)
    prepared = prepare(tiny("llama"), config, tell=quiet)
    kinds = {type(module) for module in rounders(prepared).values()}
    assert kinds == {LearnedScale if scales == "learned" else FakeQuant}
    prepared.train()(tokens(2, 8)).logits.sum().backward()
    assert prepared.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_static_inputs_may_be_clipped_where_it_is_learned():
    config = QatConfig(W3, STATIC8_SIGNED, activations="pact")
    prepared = prepare(tiny("llama"), config, tell=quiet)
    layer = prepared.model.layers[0].mlp.up_proj
    assert isinstance(layer.input_quant, LearnedClip)
    assert isinstance(layer.weight_quant, LearnedScale)
    prepared.train()(tokens(2, 8)).logits.sum().backward()
    assert float(layer.input_quant.alpha.detach()) > 1
    for inputs in (None, TOKEN8):
        with pytest.raises(SchemeError, match="pact"):
            QatConfig(W3, inputs, activations="pact")


@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied"])
def test_a_tied_head_shares_the_rounded_table(family):
    model = tiny(family)
    prepared = prepare(model, QatConfig(W3, embedding=W8), tell=quiet)
    assert isinstance(prepared.model.embed_tokens, QatEmbedding)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(prepared.lm_head, QatLinear) == tied
    if tied:
        assert prepared.lm_head.weight is prepared.model.embed_tokens.weight
        assert prepared.lm_head.weight_quant is prepared.model.embed_tokens.weight_quant
    assert prepared(tokens(1, 4)).logits.isfinite().all()


def test_a_rounded_cache_is_what_keys_and_values_give():
    prepared = prepare(
        tiny("llama"), QatConfig(W8, cache=QuantScheme(2, True, "token")), tell=quiet
    )
    attention = prepared.model.layers[0].self_attn
    keys = attention.k_proj(torch.randn(1, 5, 64))
    assert max(len(row.unique()) for row in keys[0]) <= 3
    assert attention.q_proj.output_quant is None
    with pytest.raises(ModelError, match="fused"):
        prepare(tiny("gpt2"), QatConfig(W8, cache=TOKEN8), tell=quiet)


def test_a_convolution_net_folds_its_norms():
    model = SmallNet().eval()
    prepared = prepare(model, QatConfig(W8), tell=quiet)
    assert isinstance(prepared.conv1, QatConvBn2d) and isinstance(prepared.bn1, nn.Identity)
    assert isinstance(prepared.head, QatLinear)
    x = images()
    with torch.no_grad():
        assert torch.allclose(prepared(x), model(x), atol=0.05)
    expected = fold_batch_norm(model.conv2, model.bn2).weight
    assert torch.allclose(prepared.conv2.folded().weight, expected)


def test_freezing_holds_ranges_and_statistics():
    prepared = prepare(SmallNet(), QatConfig(W8, STATIC8, scales="minmax"), tell=quiet).train()
    prepared(images())
    freeze_ranges(prepared)
    before = {name: value.clone() for name, value in prepared.named_buffers()}
    prepared(10 * images(seed=1))
    after = dict(prepared.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)
    freeze_ranges(prepared, False)
    prepared(10 * images(seed=1))
    assert not torch.equal(before["conv1.norm.running_mean"], prepared.conv1.norm.running_mean)


def test_observing_starts_static_ranges_and_changes_nothing_else():
    prepared = prepare(SmallNet(), QatConfig(W8, STATIC8, scales="minmax"), tell=quiet).eval()
    mean = prepared.conv1.norm.running_mean.clone()
    observe(prepared, [images(seed=0)])
    seen = MinMaxObserver()
    seen.observe(images(seed=0))
    assert torch.allclose(prepared.conv1.input_quant.hi, seen.range()[1])
    assert torch.equal(prepared.conv1.norm.running_mean, mean) and not prepared.training
    assert prepared(images()).shape == (8, 4)


def test_failures_name_the_layer():
    with pytest.raises(ModelError, match="no layer is named"):
        prepare(tiny("llama"), QatConfig(W3, keep=("nothing",)))
    with pytest.raises(ModelError, match="left to quantize"):
        prepare(tiny("llama"), QatConfig(W3, keep=("*",)))
    with pytest.raises(GroupSizeError) as caught:
        prepare(tiny("llama"), QatConfig(QuantScheme(4, True, "group", 48)))
    assert "model.layers.0.self_attn.q_proj" in caught.value.__notes__[0]
    ruined = tiny("llama")
    ruined.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        prepare(ruined, QatConfig(W3, scales="minmax"))
    assert "layers.1.mlp.up_proj" in caught.value.__notes__[0]


def test_a_norm_without_statistics_is_named():
    model = SmallNet()
    model.bn2.reset_running_stats()
    with pytest.raises(CalibrationError, match="no batch") as caught:
        prepare(model, QatConfig(W8), tell=quiet)
    assert caught.value.__notes__ == ["in layer conv2"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (QatConfig(W3, STATIC8), "model.layers.0.self_attn.q_proj.input_quant"),
        (QatConfig(W3, STATIC8_SIGNED, activations="pact"), "layers.0.self_attn.q_proj.input"),
    ],
)
def test_an_activation_without_variance_is_named(config, name):
    prepared = prepare(tiny("llama"), config, tell=quiet).train()
    with torch.no_grad():
        prepared.model.layers[0].input_layernorm.weight.zero_()
    with pytest.raises(CalibrationError, match=rf"{name}.*variance"):
        prepared(tokens(2, 8))
