"""Folders of quantized models become models: what the integers say, and nothing made up."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from formats.checkpoints import scheme, tiny_checkpoint
from tiny_models import tiny

from labkit import formats
from labkit.core.errors import FormatError, ModelError
from labkit.core.float8_tensor import Float8Tensor
from labkit.formats import InputQuantization, awq, bitsandbytes, compressed_tensors, gptq
from labkit.formats.checkpoint import Lazy
from labkit.formats.reading import LazyTensors, open_tensors
from labkit.formats.writing import save_tensors
from labkit.models import bundled_folder, load
from labkit.models.apply import quantize_model
from labkit.models.quantized import checkpoint_from, model_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import nf4, rtn

TOKENS = torch.arange(40).reshape(2, 20)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", ["llama", "llama_gqa_tied", "gpt2", "opt", "qwen2", "gemma"])
def test_a_folder_gives_the_model_that_was_saved(tmp_path, family):
    what = scheme(4, False, 32)
    model = tiny(family)
    wanted, reports = quantize_model(model, what)
    layers = {report.name: report.quantized for report in reports}
    gptq.save(checkpoint_from(model, layers), tmp_path / "m", version="gptq_v2")
    read = model_from(gptq.load(tmp_path / "m"))
    assert not read.training and not hasattr(read.config, "quantization_config")
    for name, layer in linear_layers(read).items():
        assert torch.equal(weight_matrix(layer), layers[name].dequantize())
    assert torch.equal(logits(read), logits(wanted))


def test_load_takes_the_bundled_model_in_every_format(tmp_path):
    model, tokenizer = load("reference-lm")
    found = {}
    for name, fmt, what in (
        ("gptq", gptq, scheme(4, True, 64)),
        ("awq", awq, scheme(4, False, 64)),
        ("ct", compressed_tensors, scheme(8, True, None)),
    ):
        wanted, reports = quantize_model(model, what)
        layers = {report.name: report.quantized for report in reports}
        fmt.save(checkpoint_from(model, layers, tokenizer), tmp_path / name)
        read, reader = load(str(tmp_path / name))
        assert reader("12")["input_ids"] == tokenizer("12")["input_ids"]
        found[name] = torch.equal(logits(read), logits(wanted))
    assert found == {"gptq": True, "awq": True, "ct": True}
    whole = sum(path.stat().st_size for path in bundled_folder().glob("*.safetensors"))
    packed = sum(path.stat().st_size for path in (tmp_path / "gptq").glob("*.safetensors"))
    assert packed < whole  # bfloat16 embeddings went to float32, linear layers to 4 bits


@pytest.mark.parametrize(
    ("fmt", "what"),
    [
        (gptq, scheme(4, False, 32)),
        (awq, scheme(4, False, 32)),
        (compressed_tensors, scheme(8, True, None)),
        (bitsandbytes, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_is_read_or_unpacked_twice(tmp_path, monkeypatch, family, fmt, what):
    model = tiny(family)
    layers = {
        name: nf4.quantize(weight_matrix(layer)) if what is None
        else rtn.quantize(weight_matrix(layer), what)
        for name, layer in linear_layers(model).items()
    }  # fmt: skip
    fmt.save(checkpoint_from(model, layers), tmp_path / "m")
    checkpoint, seen = formats.load(tmp_path / "m"), Counter()
    for kind in (LazyTensors, Lazy):
        read = kind.__getitem__
        monkeypatch.setattr(
            kind,
            "__getitem__",
            lambda self, name, read=read, kind=kind: (
                seen.update([(kind.__name__, name)]) or read(self, name)
            ),
        )
    model_from(checkpoint)
    assert {name for kind, name in seen if kind == "Lazy"} == set(layers)
    assert set(seen.values()) == {1}, [name for name, times in seen.items() if times > 1]


def test_inputs_are_rounded_where_the_checkpoint_says_so():
    model = tiny("llama")
    layers = {
        name: Float8Tensor.quantize(weight_matrix(layer))
        for name, layer in linear_layers(model).items()
    }
    inputs = {name: InputQuantization("float") for name in layers}
    plain = logits(model_from(checkpoint_from(model, layers)))
    rounded = logits(model_from(checkpoint_from(model, layers, inputs=inputs)))
    assert 0 < (plain - rounded).abs().mean() < 0.1 * plain.abs().mean()


def _saved(path):
    gptq.save(tiny_checkpoint(scheme(4, True, 32)), path)
    return path


def _restate(path, **changes):
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 128}, "by config.json"),
        ({"hidden_size": 10**7, "head_dim": 16}, "by config.json"),
        ({"vocab_size": 10**12}, "by config.json"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and there are tensors for 2"),
        ({"num_hidden_layers": 10**12}, "tensors for 2 blocks"),
        ({"num_hidden_layers": 1}, "tensors for 2 blocks"),
        ({"num_attention_heads": 0}, "model"),
        ({"hidden_size": "wide"}, "model"),
        ({"hidden_act": "no such thing"}, "model"),
        ({"model_type": "no-such-model"}, "no such model"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": "gpt2"}, "GPT2"),
        ({"attention_bias": True}, "no tensor for"),
    ],
)
def test_config_that_disagrees_with_the_tensors(tmp_path, changes, message):
    path = _saved(tmp_path / "m")
    _restate(path, **changes)
    with pytest.raises(FormatError, match=message):
        model_from(gptq.load(path))


def test_tensors_are_neither_missing_nor_left_over(tmp_path):
    path = _saved(tmp_path / "m")
    whole = dict(open_tensors(path))
    less = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    save_tensors(path / "model.safetensors", less)
    with pytest.raises(FormatError, match=r"no tensor for 'model\.norm\.weight'"):
        load(str(path))
    save_tensors(path / "model.safetensors", whole | {"model.extra.weight": torch.ones(2)})
    with pytest.raises(FormatError, match="belongs nowhere"):
        load(str(path))
    part = {n: t for n, t in whole.items() if "layers.1.mlp.down_proj" not in n}
    save_tensors(path / "model.safetensors", part)
    with pytest.raises(FormatError, match="down_proj"):
        load(str(path))


def test_biases_of_zero_for_layers_without(tmp_path):
    """AutoGPTQ writes one for every layer; any other number would be lost, and is refused."""
    path = _saved(tmp_path / "m")
    whole = dict(open_tensors(path))
    name = "model.layers.0.mlp.up_proj.bias"
    save_tensors(path / "model.safetensors", whole | {name: torch.zeros(128)})
    assert torch.isfinite(logits(model_from(gptq.load(path)))).all()
    save_tensors(path / "model.safetensors", whole | {name: torch.ones(128)})
    with pytest.raises(FormatError, match="belongs nowhere"):
        model_from(gptq.load(path))


def test_no_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer"):
        load(str(_saved(tmp_path / "m")))


def test_layers_that_the_model_does_not_have():
    model = tiny("llama")
    layer = rtn.quantize(torch.ones(64, 64), scheme(4, True, 32))
    with pytest.raises(FormatError, match=r"no layer 'model\.nothing'"):
        checkpoint_from(model, {"model.nothing": layer})
    with pytest.raises(FormatError, match="The model's is"):
        checkpoint_from(model, {"model.layers.0.mlp.up_proj": layer})
