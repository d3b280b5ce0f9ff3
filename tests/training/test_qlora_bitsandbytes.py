"""QLoRA beside bitsandbytes' own 4-bit layers: the same bytes, the same loss curve, two traps."""

from functools import partial

import pytest
import torch
from small_nets import token_batch
from tiny_models import tiny, tokens
from torch import nn

from labkit.core.errors import ModelError, NonFiniteError
from labkit.models.walking import linear_layers
from labkit.quantize import nf4
from labkit.training.qlora import add_adapters, base_weight, freeze_base, merge
from labkit.training.qlora_bitsandbytes import (
    as_codebook,
    bitsandbytes_base,
    keep_unpacked,
    stored_weight,
)
from labkit.training.trainer import TrainSettings, train

pytest.importorskip("peft")
bnb = pytest.importorskip("bitsandbytes")

SETTINGS = TrainSettings(steps=12, warmup=2, lr=1e-2, evaluate_every=4)
# Both compute in float32 with the same numbers; only sums may be taken in another order.
CURVE = 1e-4


def pair(double: bool, **changes) -> tuple[nn.Module, nn.Module]:
    """Our base and bitsandbytes', of one model."""
    model = tiny("qwen2", **changes)
    quantize = partial(nf4.quantize, double_quantization=double)
    return freeze_base(model, quantize), bitsandbytes_base(model, double_quantization=double)


@pytest.mark.parametrize("double", [False, True])
def test_both_bases_hold_the_same_bytes(double):
    ours, theirs = pair(double)
    assert list(linear_layers(ours)) == list(linear_layers(theirs))
    for name, layer in linear_layers(theirs).items():
        mine, other = ours.get_submodule(name).quantized, as_codebook(layer)
        assert torch.equal(mine.packed, other.packed), name
        assert mine.nbytes == other.nbytes, name
        assert torch.allclose(base_weight(ours.get_submodule(name)), base_weight(layer), atol=1e-6)
    assert not any(p.requires_grad for p in theirs.parameters())


@pytest.mark.parametrize("double", [False, True])
def test_both_bases_learn_by_the_same_curve(double):
    ours, theirs = (add_adapters(base, rank=4, alpha=8) for base in pair(double))

    def look(model: nn.Module) -> dict[str, float]:
        # In evaluation mode: where bitsandbytes would repack its layers amid the training.
        with torch.no_grad():
            return {"mean": float(model(tokens(2, 8)).logits.mean())}

    mine = train(ours, token_batch, SETTINGS, evaluate=look)
    other = train(theirs, token_batch, SETTINGS, evaluate=look)
    assert mine[-1]["loss"] < 0.8 * mine[1]["loss"]
    for a, b in zip(mine[1:], other[1:], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=CURVE)
        assert b["gradient"] == pytest.approx(a["gradient"], rel=100 * CURVE)
    for (name, a), (twin, b) in zip(
        linear_layers(merge(ours)).items(), linear_layers(merge(theirs)).items(), strict=True
    ):
        assert name == twin
        assert torch.allclose(a.weight, b.weight, atol=1e-3), name


def test_double_quantization_saves_what_the_paper_says():
    """32 / 64 bits a weight become 8 / 64 + 32 / (64 * 256): 0.373 less (QLoRA, section 3)."""
    model = tiny("llama", hidden_size=256, intermediate_size=256)
    plain, double = (
        next(iter(linear_layers(freeze_base(model, quantize)).values())).quantized
        for quantize in (nf4.quantize, partial(nf4.quantize, double_quantization=True))
    )
    assert plain.bits_per_weight - double.bits_per_weight == pytest.approx(0.373, abs=5e-3)


def test_a_layer_that_was_repacked_is_refused():
    _, theirs = pair(False)
    layer = next(iter(linear_layers(theirs).values()))
    before = stored_weight(layer).clone()
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ModelError, match=r"repacked.*before the first forward"):
        add_adapters(theirs)
    with pytest.raises(ModelError, match="repacked"):
        base_weight(layer)
    layer.weight.quant_state.packing_format_for_cpu = False
    assert torch.equal(base_weight(layer), before)


def test_layers_are_not_repacked_once_they_are_checked():
    """As transformers would hand them over: nothing forbids the repacking yet."""
    _, theirs = pair(False)
    for layer in linear_layers(theirs).values():
        layer.support_avx512bf16_for_cpu = bnb.functional.has_avx512bf16()
    keep_unpacked(theirs)
    theirs.eval()
    before = [layer.weight.data.clone() for layer in linear_layers(theirs).values()]
    with torch.no_grad():
        theirs(tokens(2, 8))
    after = [layer.weight.data for layer in linear_layers(theirs).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_wrong_magnitudes_are_noticed(monkeypatch):
    """Rows of 96 and blocks of 64, on any processor: bitsandbytes' slip on AVX-512 is put there."""
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(3))
    layer = bnb.nn.Linear4bit(96, 32, bias=False, quant_type="nf4", compress_statistics=False)
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    layer.to("cpu")

    def slipped(data: torch.Tensor, state) -> torch.Tensor:
        magnitudes = state.absmax.roll(1).repeat_interleave(64).reshape(state.shape)
        own = state.absmax.repeat_interleave(64).reshape(state.shape)
        return stored_weight(layer) / own * magnitudes

    monkeypatch.setattr(bnb.functional, "dequantize_4bit", slipped)
    with pytest.raises(ModelError, match="rows of 96 weights, blocks of 64"):
        base_weight(layer)
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *_: stored_weight(layer))
    assert torch.equal(base_weight(layer), stored_weight(layer))


def test_failures_say_what_to_do(monkeypatch):
    ruined = tiny("llama")
    ruined.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj"):
        bitsandbytes_base(ruined)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="pip install bitsandbytes"):
        bitsandbytes_base(tiny("llama"))
