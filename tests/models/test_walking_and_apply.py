"""Walking decoders of several families, and replacing their weights by quantized ones."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

from labkit.core.errors import GroupSizeError, ModelError, SchemeError
from labkit.core.scheme import QuantScheme
from labkit.evaluate.size import bytes_on_disk, model_size, parameter_count
from labkit.models import bundled_folder
from labkit.models.apply import map_weights, quantize_model
from labkit.models.walking import capture_inputs, linear_layers, weight_matrix

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "hidden_size": 32}
CONFIGS = {
    "llama": (LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2), 7),
    "qwen2": (Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2), 7),
    "gpt2": (GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=64), 4),
    "opt": (OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32), 6),
}


@pytest.fixture(params=CONFIGS)
def family(request):
    config, per_block = CONFIGS[request.param]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval(), per_block


def test_every_linear_layer_of_every_block_is_found(family):
    model, per_block = family
    layers = linear_layers(model)
    assert len(layers) == 2 * per_block
    assert not any("head" in name or "embed" in name for name in layers)


def test_captured_inputs_reproduce_the_outputs(family):
    model, _ = family
    ids = torch.arange(12).reshape(2, 6)
    names = list(linear_layers(model))
    inputs = capture_inputs(model, ids, names)
    layer = linear_layers(model)[names[0]]
    outputs = []
    handle = layer.register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    matrix = weight_matrix(layer)
    assert inputs[names[0]].shape == (12, matrix.shape[1])
    with torch.no_grad():
        expected = inputs[names[0]] @ matrix.T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(expected, outputs[0].reshape(12, -1), atol=1e-5, rtol=1e-5)


def test_quantizing_leaves_the_original_alone_and_reports_each_layer(family):
    model, _ = family
    before = {name: layer.weight.detach().clone() for name, layer in linear_layers(model).items()}
    copy, reports = quantize_model(model, QuantScheme(4, granularity="channel"))
    for name, layer in linear_layers(model).items():
        assert torch.equal(layer.weight, before[name])
    assert [report.name for report in reports] == list(before)
    for report in reports:
        stored = weight_matrix(linear_layers(copy)[report.name])
        assert torch.equal(stored, report.quantized.dequantize())
        assert 5 < report.sqnr_db < 40
    others = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") not in before}
    copied = dict(copy.named_parameters())
    assert others and all(torch.equal(copied[name], value) for name, value in others.items())


def test_identity_changes_nothing(family):
    model, _ = family
    copy = map_weights(model, lambda name, weight: weight)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, copy(input_ids=ids).logits)


def test_errors_name_the_layer():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"][0])
    with pytest.raises(GroupSizeError) as caught:
        quantize_model(model, QuantScheme(4, granularity="group", group_size=24))
    assert any("q_proj" in note for note in caught.value.__notes__)
    with pytest.raises(SchemeError, match="rtn"):
        quantize_model(model, QuantScheme(4), method="magic")
    with pytest.raises(ModelError, match="no layer"):
        capture_inputs(model, torch.arange(4), ["nowhere"])
    with pytest.raises(ModelError, match="decoder blocks"):
        linear_layers(torch.nn.Linear(2, 2))


def test_size_counts_every_byte_once():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"][0])
    _, reports = quantize_model(model, QuantScheme(4, granularity="channel"))
    size = model_size(model, reports)
    weights = sum(layer.weight.numel() for layer in linear_layers(model).values())
    rows = sum(layer.weight.shape[0] for layer in linear_layers(model).values())
    assert size.total_bytes == weights // 2 + 2 * rows + 2 * (parameter_count(model) - weights)
    assert size.bits_per_weight == pytest.approx(4 + 16 * rows / weights)


def test_the_bundled_file_is_as_big_as_its_parameters():
    from labkit.models import load

    model, _ = load("reference-lm")
    header = 16_384
    assert 0 <= bytes_on_disk(bundled_folder()) - model_size(model, []).total_bytes < header
