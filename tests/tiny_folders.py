"""A tiny model in a folder of every quantized format, and how far apart two models' logits are."""

from __future__ import annotations

import json

import torch
from formats.checkpoints import scheme
from tiny_models import tiny, tokens

from labkit.core.float8_tensor import Float8Tensor
from labkit.formats import InputQuantization, awq, bitsandbytes, compressed_tensors, gptq
from labkit.formats.checkpoint import QUANTIZATION
from labkit.formats.writing import save_tensors
from labkit.models.quantized import checkpoint_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import nf4, rtn

TOKENS = tokens(2, 9)


@torch.no_grad()
def logits(model, ids=TOKENS):
    return model(input_ids=ids).logits.float()


def difference(model, wanted, ids=TOKENS):
    expected = logits(wanted, ids)
    return float((logits(model, ids) - expected).abs().max() / expected.abs().max())


def save(fmt, path, make, family="llama_gqa_tied", inputs=None, **settings):
    """A tiny model in a format; embeddings and norms in bfloat16, as files have them."""
    model = tiny(family).bfloat16()
    layers = {n: make(weight_matrix(m).float()) for n, m in linear_layers(model).items()}
    rounds = dict.fromkeys(layers, inputs) if inputs else None
    fmt.save(checkpoint_from(model, layers, inputs=rounds), path, **settings)
    return path


def integers(bits, symmetric, group):
    return lambda weight: rtn.quantize(weight, scheme(bits, symmetric, group))


def _int8(path):
    """As transformers writes LLM.int8()."""
    model = tiny("llama_gqa_tied")
    tensors = dict(model.state_dict())
    tensors.pop("lm_head.weight")
    for name, layer in linear_layers(model).items():
        peaks = layer.weight.abs().amax(1)
        tensors[f"{name}.weight"] = (layer.weight / peaks[:, None] * 127).round().to(torch.int8)
        tensors |= {f"{name}.SCB": peaks, f"{name}.weight_format": torch.tensor(0).byte()}
    path.mkdir()
    save_tensors(path / "model.safetensors", tensors)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config[QUANTIZATION] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (path / "config.json").write_text(json.dumps(config))
    return path


FOLDERS = {
    "gptq 4": lambda p: save(gptq, p, integers(4, True, 32)),
    "gptq 4 asym": lambda p: save(gptq, p, integers(4, False, 64), version="gptq_v2"),
    "gptq 3": lambda p: save(gptq, p, integers(3, True, 64)),
    "gptq 8": lambda p: save(gptq, p, integers(8, True, 64)),
    "awq": lambda p: save(awq, p, integers(4, False, 32)),
    "compressed 4": lambda p: save(compressed_tensors, p, integers(4, True, 32)),
    "compressed 8": lambda p: save(compressed_tensors, p, integers(8, True, None)),
    "nf4": lambda p: save(bitsandbytes, p, lambda w: nf4.quantize(w, block_size=64)),
    "fp4 nested": lambda p: save(
        bitsandbytes,
        p,
        lambda w: nf4.quantize(w, quant_type="fp4", block_size=64, double_quantization=True),
    ),
    "llm.int8": _int8,
    "W8A8": lambda p: save(
        compressed_tensors, p, integers(8, True, None), inputs=InputQuantization("int")
    ),
    "W8A8 static": lambda p: save(
        compressed_tensors,
        p,
        integers(8, True, None),
        inputs=InputQuantization("int", "tensor", torch.tensor([0.03])),
    ),
    "FP8": lambda p: save(
        compressed_tensors, p, Float8Tensor.quantize, inputs=InputQuantization("float")
    ),
}
