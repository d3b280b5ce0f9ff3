"""The rules of vLLM's loaders, restated: which folders they refuse, and by which rule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from formats.checkpoints import bare, random_layer, scheme
from labkit.core.errors import FormatError
from labkit.core.float8_tensor import Float8Tensor
from labkit.formats import Checkpoint, InputQuantization, awq, compressed_tensors, gptq
from labkit.formats.vllm_rules import verdict

NAME = "model.layers.0.mlp.up_proj"


def gptq_verdict(tmp_path, bits, symmetric, group, rows=64, columns=256):
    gptq.save(bare(random_layer(rows, columns, scheme(bits, symmetric, group))), tmp_path / "m")
    return verdict(tmp_path / "m")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
def test_marlin_takes_4_and_8_bits_symmetric(tmp_path, bits, group):
    found = gptq_verdict(tmp_path, bits, True, group)
    assert (found.kernel, found.loads, found.remarks) == ("gptq_marlin", True, ())


@pytest.mark.parametrize(
    ("bits", "symmetric", "group", "why"),
    [
        (2, True, 32, "2 bits"),
        (3, False, 32, "3 bits"),
        (4, False, 32, "sym=False"),
        (4, True, 16, "groups of -1, 32, 64, 128"),
        (8, True, 256, "256"),
    ],
)
def test_the_rest_goes_the_slow_way(tmp_path, bits, symmetric, group, why):
    found = gptq_verdict(tmp_path, bits, symmetric, group)
    assert found.kernel == "gptq" and found.loads and why in found.remarks[0]


@pytest.mark.parametrize(("rows", "columns"), [(32, 256), (64, 64), (96, 128)])
def test_shapes_that_marlin_refuses(tmp_path, rows, columns):
    found = gptq_verdict(tmp_path, 4, True, 32, rows, columns)
    assert not found.loads and f"[{rows}, {columns}]" in found.refusals[0]


def test_what_vllm_fuses_is_counted_together(tmp_path):
    layer = random_layer(32, 128, scheme(4, True, 32))
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers = {f"model.layers.0.self_attn.{name}": layer for name in names}
    gptq.save(Checkpoint({"model_type": "llama"}, {}, layers), tmp_path / "m")
    refusals = verdict(tmp_path / "m").refusals
    assert ["q_proj+k_proj+v_proj: [96, 128]" in refusals[0], "o_proj" in refusals[1]] == [True] * 2


def test_a_key_that_is_missing(tmp_path):
    gptq_verdict(tmp_path, 4, True, 32)
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]["desc_act"]
    file.write_text(json.dumps(config))
    assert verdict(tmp_path / "m").refusals == ("config.json lacks 'desc_act'",)


@pytest.mark.parametrize(
    ("rows", "columns", "group", "kernel", "loads"),
    [
        (64, 128, 32, "awq_marlin", True),
        (64, 128, None, "awq_marlin", True),
        (64, 64, 16, "awq", True),
        (40, 64, 32, "awq", True),
        (40, 64, None, "awq", False),
    ],
)
def test_awq(tmp_path, rows, columns, group, kernel, loads):
    awq.save(bare(random_layer(rows, columns, scheme(4, False, group))), tmp_path / "m")
    found = verdict(tmp_path / "m")
    assert (found.kernel, found.loads) == (kernel, loads)


def _compressed(tmp_path, layer, inputs=None):
    checkpoint = bare(layer)
    if inputs:
        checkpoint = replace(checkpoint, inputs={NAME: inputs})
    compressed_tensors.save(checkpoint, tmp_path / "m")
    return verdict(tmp_path / "m")


def test_compressed_tensors(tmp_path):
    token, static = (
        InputQuantization("int"),
        InputQuantization("int", "tensor", torch.tensor([0.1])),
    )
    by_tensor = InputQuantization("int", "tensor")
    cases = [
        (random_layer(64, 128, scheme(4, True, 32)), None, ""),
        (random_layer(64, 128, scheme(4, False, 32)), None, ""),
        (random_layer(64, 128, scheme(8, True, None)), None, ""),
        (random_layer(64, 128, scheme(8, False, None)), None, "zero-points for 4 alone"),
        (random_layer(64, 128, scheme(4, True, 16)), None, "groups of 16"),
        (random_layer(64, 64, scheme(4, True, 32)), None, "[64, 64]"),
        (random_layer(64, 64, scheme(8, True, None)), token, ""),
        (random_layer(64, 64, scheme(8, True, None)), static, ""),
        (random_layer(64, 64, scheme(8, True, None)), by_tensor, "measured beforehand"),
        (random_layer(64, 64, scheme(8, False, None)), token, "symmetric"),
        (Float8Tensor.quantize(torch.ones(64, 64)), InputQuantization("float"), ""),
        (Float8Tensor.quantize(torch.ones(64, 64)), None, ""),
    ]
    for number, (layer, inputs, why) in enumerate(cases):
        found = _compressed(tmp_path / str(number), layer, inputs)
        assert found.loads == (not why) and why in "".join(found.refusals), number


def test_what_there_are_no_rules_for(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FormatError):
        verdict(tmp_path)
