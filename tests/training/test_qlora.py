"""QLoRA: a frozen base, adapters that learn, and what merging and rounding again do to them."""

import pytest
import torch
from leaves import leaf
from small_nets import token_batch
from tiny_models import tiny, tokens
from torch import nn

from labkit.core.errors import ModelError, NonFiniteError, SchemeError
from labkit.models.apply import map_weights
from labkit.models.walking import linear_layers
from labkit.quantize import nf4
from labkit.training.qlora import (
    FrozenLinear,
    adapted_layers,
    adapter_parameters,
    add_adapters,
    freeze_base,
    merge,
)
from labkit.training.trainer import TrainSettings, train

SETTINGS = TrainSettings(steps=12, warmup=2, lr=1e-2)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(2, 8)).logits


def rounded(model: nn.Module) -> nn.Module:
    return map_weights(model, lambda name, weight: nf4.quantize(weight).dequantize())


@pytest.fixture
def adapted():
    pytest.importorskip("peft")
    return add_adapters(freeze_base(tiny("qwen2")), rank=4, alpha=8)


def test_the_frozen_layer_is_the_dequantized_one_both_ways():
    linear = nn.Linear(64, 8)
    frozen = FrozenLinear(nf4.quantize(linear.weight), linear.bias)
    x, twin = leaf(3, 64), leaf(3, 64)
    weight = frozen.quantized.dequantize()
    a, b = frozen(x), nn.functional.linear(twin, weight, linear.bias)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.allclose(x.grad, twin.grad, atol=1e-5)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_frozen_model_is_the_rounded_one():
    model = tiny("qwen2")
    frozen = freeze_base(model)
    assert torch.allclose(logits(frozen), logits(rounded(model)), atol=1e-5)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert isinstance(linear_layers(model)["model.layers.0.mlp.up_proj"], nn.Linear)


def test_adapters_change_nothing_until_they_learn(adapted):
    assert torch.allclose(logits(adapted), logits(rounded(tiny("qwen2"))), atol=1e-5)
    assert len(adapted_layers(adapted)) == 14
    wanting = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert len(wanting) == 28 and all("lora_" in name for name in wanting)
    counted = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_parameters(adapted) == counted > 0
    assert adapter_parameters(tiny("qwen2")) == 0


def test_training_moves_adapters_alone_and_merging_keeps_what_they_learned(adapted):
    codes = {n: m.base_layer.quantized.packed.clone() for n, m in adapted_layers(adapted).items()}
    history = train(adapted, token_batch, SETTINGS)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for name, layer in adapted_layers(adapted).items():
        assert torch.equal(layer.base_layer.quantized.packed, codes[name])
    merged = merge(adapted)
    assert not adapted_layers(merged)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-3)
    # Rounding again costs: the adapter's small numbers fall between the grid's.
    again = rounded(merged)
    assert not torch.allclose(logits(again), logits(merged), atol=1e-2)


def test_pefts_own_merge_fails_instead_of_losing_the_adapter(adapted):
    layer = next(iter(adapted_layers(adapted).values()))
    with pytest.raises(AttributeError):
        layer.merge()


def test_failures_say_what_to_do(adapted):
    with pytest.raises(ModelError, match="already"):
        add_adapters(adapted)
    for rank in (0, -1, 2.5, True):
        with pytest.raises(SchemeError, match=f"rank {rank}"):
            add_adapters(tiny("llama"), rank=rank)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SchemeError, match=f"alpha {alpha}"):
            add_adapters(tiny("llama"), alpha=alpha)
    with pytest.raises(SchemeError, match=r"dropout 1\.0"):
        add_adapters(tiny("llama"), dropout=1.0)
    with pytest.raises(ModelError, match="no adapters"):
        merge(tiny("llama"))
    ruined = tiny("llama")
    ruined.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        freeze_base(ruined)
    assert "layers.1.mlp.up_proj" in caught.value.__notes__[0]


def test_without_peft_the_error_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ModelError, match="pip install peft"):
        add_adapters(tiny("llama"))
