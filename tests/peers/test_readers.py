"""What labkit writes, the real libraries read: the same weights bit by bit, the same logits.

And back: labkit reads what they wrote. vLLM is not among them: `labkit.formats.vllm_rules` says
what is checked of it instead.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from formats.checkpoints import scheme
from tiny_models import tiny

from labkit import formats
from labkit.core.errors import FormatError
from labkit.core.float8_tensor import Float8Tensor
from labkit.core.tensor import QuantizedTensor
from labkit.formats import Checkpoint, InputQuantization, awq, compressed_tensors, gptq
from labkit.models import bundled_folder
from labkit.models.quantized import checkpoint_from, model_from
from labkit.models.walking import linear_layers, weight_matrix
from labkit.peers import call
from labkit.quantize import rtn

pytestmark = pytest.mark.peers

TOKENS = torch.arange(1, 41).reshape(2, 20)


def made(quantize, family="llama", **changes) -> Checkpoint:
    """A tiny model whose other tensors float16 can hold: AutoGPTQ and AutoAWQ read them in it."""
    model = tiny(family, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    layers = {name: quantize(weight_matrix(layer)) for name, layer in linear_layers(model).items()}
    checkpoint = checkpoint_from(model, layers)
    # GPTQModel does not load a folder without a tokenizer.
    names = ("tokenizer.json", "tokenizer_config.json")
    files = {name: (bundled_folder() / name).read_bytes() for name in names}
    return replace(checkpoint, files=files)


def integers(bits, symmetric, group):
    return lambda weight: rtn.quantize(weight, scheme(bits, symmetric, group))


def act_ordered(bits, symmetric, group):
    """Columns spread over the groups, as GPTQ's act-order leaves them."""

    def quantize(weight):
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
        layer = rtn.quantize(weight[:, order], scheme(bits, symmetric, group))
        back = torch.argsort(order)
        g_idx = (torch.arange(weight.shape[1]) // group)[back].to(torch.int32)
        return replace(layer, codes=layer.codes[:, back].contiguous(), g_idx=g_idx)

    return quantize


def no_zero_point_of_zero(quantize):
    """For v1, which cannot hold it: widen the range of such a group downwards by one step."""

    def safe(weight):
        layer = quantize(weight)
        assert isinstance(layer, QuantizedTensor)
        if layer.zero_point is None:
            return layer
        return replace(layer, zero_point=layer.zero_point.clamp(min=1))

    return safe


def logits_of(checkpoint: Checkpoint, dtype=torch.float32):
    model = model_from(checkpoint).to(dtype)
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def require_same(key, checkpoint, theirs, *, weights=True, near=1e-5, dtype=torch.float32):
    if weights:
        for name, layer in checkpoint.layers.items():
            assert torch.equal(theirs[f"{key}/{name}"], layer.dequantize()), (key, name)
    ours = logits_of(checkpoint, dtype)
    distance = (ours - theirs[f"{key}/logits"]).abs().max() / ours.abs().max()
    assert distance <= near, (key, float(distance))


GPTQ_CASES = {
    f"{bits} bits, {'sym' if symmetric else 'asym'}, {group}": made
    for bits in gptq.BITS
    for symmetric in (True, False)
    for group in (None, 32)
    if (bits, group) != (8, 32)
}


def gptq_checkpoints() -> dict[str, Checkpoint]:
    found = {}
    for key in GPTQ_CASES:
        bits, kind, group = key.replace(" bits", "").split(", ")
        size = None if group == "None" else int(group)
        quantize = integers(int(bits), kind == "sym", size)
        found[key] = made(no_zero_point_of_zero(quantize))
    for bits, symmetric in ((4, True), (3, False)):
        quantize = no_zero_point_of_zero(act_ordered(bits, symmetric, 16))
        found[f"{bits} bits, act-order, {symmetric}"] = made(quantize)
    found["biases"] = made(integers(4, True, 32), "qwen2")
    return found


def symmetric(checkpoint) -> bool:
    return all(layer.zero_point is None for layer in checkpoint.layers.values())


def saved(fmt, checkpoints, place, **settings):
    folders = {}
    for key, checkpoint in checkpoints.items():
        folders[key] = str(place / key.replace(" ", ""))
        fmt.save(checkpoint, folders[key], **settings)
    return folders


def test_auto_gptq_reads_gptq_v1(tmp_path, need_peer):
    need_peer("auto_gptq")
    ours = gptq_checkpoints()
    folders = saved(gptq, ours, tmp_path)
    theirs, kinds = call("auto_gptq", "read_auto_gptq", {"tokens": TOKENS}, {"folders": folders})
    for key, checkpoint in ours.items():
        require_same(key, checkpoint, theirs)
    assert {kind[0].rsplit(".", 1)[1] for kind in kinds.values()} == {
        "qlinear_cuda_old",
        "qlinear_cuda",
    }


def test_gptqmodel_reads_gptq_v1_and_v2_and_awq(tmp_path, need_peer):
    need_peer("gptqmodel")
    every = gptq_checkpoints()
    # Asymmetric v1 it reads only if it wrote it.
    first = {key: checkpoint for key, checkpoint in every.items() if symmetric(checkpoint)}
    second = {f"v2, {key}": every[key] for key in every if key not in first}
    second["v2, zero-points of 0"] = made(lambda weight: integers(4, False, 16)(weight.abs()))
    third = {"awq": made(integers(4, False, 32))}
    folders = saved(gptq, first, tmp_path) | saved(gptq, second, tmp_path, version="gptq_v2")
    folders |= saved(awq, third, tmp_path)
    theirs, _ = call("gptqmodel", "read_gptqmodel", {"tokens": TOKENS}, {"folders": folders})
    for key, checkpoint in (first | second).items():
        require_same(key, checkpoint, theirs)
    # Its AWQ kernel computes in float16, its weights too.
    require_same("awq", third["awq"], theirs, weights=False, near=5e-3)
    for name, layer in third["awq"].layers.items():
        assert torch.equal(theirs[f"awq/{name}"], layer.dequantize().half().float())


def test_transformers_reads_gptq_v1(tmp_path, need_peer):
    """transformers 4.51 with optimum and AutoGPTQ, which chooses the same layers as above."""
    need_peer("auto_gptq")
    ours = {"sym": made(integers(4, True, 32)), "order": made(act_ordered(4, True, 16))}
    folders = saved(gptq, ours, tmp_path)
    settings = {"folders": folders, "dtype": "float16"}
    theirs, kinds = call("auto_gptq", "read_transformers", {"tokens": TOKENS}, settings)
    for key, checkpoint in ours.items():
        require_same(key, checkpoint, theirs, weights=False)
        assert "auto_gptq" in kinds[key][0]


def test_auto_awq_reads_awq(tmp_path, need_peer):
    need_peer("awq")
    ours = {
        "32": made(integers(4, False, 32)),
        "channel": made(integers(4, False, None)),
        "symmetric": made(integers(4, True, 16)),
        "biases": made(integers(4, False, 32), "qwen2"),
        "tied": made(integers(4, False, 32), "llama_gqa_tied"),
    }
    folders = saved(awq, ours, tmp_path)
    theirs, _ = call("awq", "read_auto_awq", {"tokens": TOKENS}, {"folders": folders})
    for key, checkpoint in ours.items():
        require_same(key, checkpoint, theirs, near=5e-3, dtype=torch.float16)


def compressed_checkpoints() -> dict[str, Checkpoint]:
    def with_inputs(checkpoint, inputs):
        return replace(checkpoint, inputs=dict.fromkeys(checkpoint.layers, inputs))

    floats = made(Float8Tensor.quantize)
    int8 = made(integers(8, True, None))
    single = made(lambda weight: Float8Tensor.quantize(weight, "tensor"))
    static = torch.tensor([0.03])
    return {
        "int4 group": made(integers(4, True, 32)),
        "int4 asymmetric": made(integers(4, False, 16)),
        "int4 channel": made(integers(4, True, None)),
        "int8": made(integers(8, False, 32)),
        "w8a8": with_inputs(int8, InputQuantization("int")),
        "w8a8 static": with_inputs(int8, InputQuantization("int", "tensor", static)),
        "w8a8 asymmetric": with_inputs(made(integers(8, False, None)), InputQuantization("int")),
        "fp8": with_inputs(floats, InputQuantization("float")),
        "fp8 static": with_inputs(single, InputQuantization("float", "tensor", static)),
        "fp8 alone": floats,
        "biases": made(integers(4, True, 32), "qwen2"),
        "tied": made(integers(4, True, 32), "llama_gqa_tied"),
    }


def test_transformers_reads_compressed_tensors(tmp_path, need_peer):
    need_peer("compressed_tensors")
    ours = compressed_checkpoints()
    folders = saved(compressed_tensors, ours, tmp_path)
    settings = {"folders": folders}
    theirs, kinds = call("compressed_tensors", "read_transformers", {"tokens": TOKENS}, settings)
    for key, checkpoint in ours.items():
        require_same(key, checkpoint, theirs)
        assert kinds[key] == ["decompressed"]


def source_folder(place, **changes):
    checkpoint = made(integers(4, True, 32), **changes)
    model = model_from(checkpoint)
    model.save_pretrained(place)
    for name, content in checkpoint.files.items():
        (place / name).write_bytes(content)
    return str(place)


def read(folder) -> torch.Tensor:
    return logits_of(formats.load(folder))


def near(ours, theirs, bound=1e-5):
    return float((ours - theirs).abs().max() / ours.abs().max()) <= bound


def test_labkit_reads_what_auto_gptq_wrote(tmp_path, need_peer):
    need_peer("auto_gptq")
    wanted = {
        f"{bits}-{sym}-{order}": {
            "folder": str(tmp_path / f"{bits}-{sym}-{order}"),
            "bits": bits,
            "group_size": size,
            "desc_act": order,
            "sym": sym,
        }
        for bits, size, sym, order in (
            (4, 32, True, False),
            (3, -1, False, False),
            (8, -1, True, False),
            (2, 16, False, False),
            (4, 16, True, True),
        )
    }
    settings = {"source": source_folder(tmp_path / "source"), "folders": wanted}
    theirs, _ = call("auto_gptq", "write_auto_gptq", {"tokens": TOKENS}, settings)
    for key in wanted:
        if key != "2-False-False":
            assert near(read(tmp_path / key), theirs[f"{key}/logits"]), key
    # With 4 codes a zero-point of 0 is common, and AutoGPTQ falls into the trap of v1.
    with pytest.raises(FormatError, match="zero-point of 0 and some as 4"):
        read(tmp_path / "2-False-False")
    orders = formats.load(tmp_path / "4-True-True").layers
    assert any(orders[name].g_idx is not None for name in orders)


def test_labkit_reads_what_auto_awq_wrote(tmp_path, need_peer):
    need_peer("awq")
    folder = str(tmp_path / "m")
    settings = {
        "source": source_folder(tmp_path / "source"),
        "folder": folder,
        "group_size": 32,
    }
    theirs, _ = call("awq", "write_auto_awq", {"tokens": TOKENS}, settings)
    layers = formats.load(folder).layers
    assert len(layers) == 14
    for name in layers:
        assert torch.equal(layers[name].dequantize(), theirs[name]), name
    assert torch.isfinite(read(folder)).all()


def test_labkit_reads_what_gptqmodel_wrote(tmp_path, need_peer):
    need_peer("gptqmodel")
    configs = {
        "v1": {"bits": 4, "group_size": 16, "sym": True, "format": "gptq", "desc_act": True},
        "v2": {"bits": 8, "group_size": 32, "sym": False, "format": "gptq_v2"},
    }
    wanted = {
        key: {"folder": str(tmp_path / key), "config": config} for key, config in configs.items()
    }
    settings = {"source": source_folder(tmp_path / "source"), "folders": wanted}
    call("gptqmodel", "write_gptqmodel", {"tokens": TOKENS}, settings)
    folders = {key: wanted[key]["folder"] for key in wanted}
    theirs, _ = call("gptqmodel", "read_gptqmodel", {"tokens": TOKENS}, {"folders": folders})
    for key in folders:
        checkpoint = formats.load(folders[key])
        assert len(checkpoint.layers) == 14
        require_same(key, checkpoint, theirs, near=2e-3)


def test_labkit_reads_what_llm_compressor_wrote(tmp_path, need_peer):
    need_peer("llmcompressor")
    grouped = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    channel = {"num_bits": 8, "type": "int", "strategy": "channel"}
    tokens = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    wanted = {
        "int4": {"weights": grouped | {"symmetric": True}},
        "int4 asymmetric": {"weights": grouped | {"symmetric": False}},
        "w8a8": {"weights": channel, "input_activations": tokens},
        "fp8": {
            "weights": fp8 | {"strategy": "channel"},
            "input_activations": fp8 | {"strategy": "token", "dynamic": True},
        },
    }
    folders = {
        key: {
            "folder": str(tmp_path / key.replace(" ", "")),
            "groups": {"group_0": {"targets": ["Linear"]} | group},
        }
        for key, group in wanted.items()
    }
    settings = {"source": source_folder(tmp_path / "source"), "folders": folders}
    theirs, _ = call("llmcompressor", "write_llmcompressor", {"tokens": TOKENS}, settings)
    for key in wanted:
        assert near(read(folders[key]["folder"]), theirs[f"{key}/logits"]), key
