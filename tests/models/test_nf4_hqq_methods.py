"""NF4, FP4 and HQQ through the block-by-block driver: whole models, and folders that resume."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.core.errors import GroupSizeError, NonFiniteError
from labkit.core.float_zero import FloatZeroTensor
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import METHODS, Hqq, Nf4
from labkit.models.walking import linear_layers, weight_matrix
from labkit.quantize import hqq, nf4


@pytest.mark.parametrize("family", ["llama_gqa_tied", "gpt2", "gpt_neox"])
@pytest.mark.parametrize(
    ("method", "quantize"),
    [
        (Nf4(), lambda weight: nf4.quantize(weight, double_quantization=True)),
        (Nf4("fp4", 32, False), lambda w: nf4.quantize(w, quant_type="fp4", block_size=32)),
        (Hqq(3, 32), lambda weight: hqq.quantize(weight, 3, 32)),
    ],
)
def test_every_linear_becomes_what_its_matrix_becomes(family, method, quantize):
    model = tiny(family)
    result = quantize_blockwise(model, method)
    before, after = linear_layers(model), linear_layers(result.model)
    assert sorted(result.layers) == sorted(before) == sorted(r.name for r in result.reports)
    for name, layer in before.items():
        expected = quantize(weight_matrix(layer).detach().contiguous()).dequantize()
        assert torch.equal(result.layers[name].dequantize(), expected)
        assert torch.equal(weight_matrix(after[name]), expected)
    assert all(report.sqnr_db > 5 and not report.note for report in result.reports)


@pytest.mark.parametrize("method", [Nf4(), Hqq()])
def test_a_folder_gives_the_same_layers_and_keeps_them(tmp_path, method):
    model = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    memory = quantize_blockwise(model, method)
    quantize_blockwise(tmp_path / "model", method, work=tmp_path / "work")
    again = quantize_blockwise(tmp_path / "model", method, work=tmp_path / "work")
    for name, expected in memory.layers.items():
        read = again.layers[name]
        assert type(read) is type(expected)
        assert torch.equal(read.dequantize(), expected.dequantize())
        assert read.nbytes == expected.nbytes
        if isinstance(read, CodebookTensor):
            assert isinstance(read.absmax, NestedAbsmax)
            assert torch.equal(read.packed, expected.packed)
        else:
            assert isinstance(read, FloatZeroTensor)


def test_settings_are_plain_values():
    assert METHODS["nf4"]().settings() == {
        "method": "nf4",
        "quant_type": "nf4",
        "block_size": 64,
        "double_quantization": True,
    }
    assert METHODS["hqq"]().settings() == {
        "method": "hqq",
        "bits": 4,
        "group_size": 64,
        "scale_dtype": "float16",
    }


def test_errors_name_the_layer():
    model = tiny("llama")
    with pytest.raises(GroupSizeError) as raised:
        quantize_blockwise(model, Hqq(4, 48))
    assert any("model.layers.0.self_attn" in note for note in raised.value.__notes__)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(NonFiniteError) as raised:
        quantize_blockwise(model, Nf4())
    assert "model.layers.1.mlp.down_proj" in str(raised.value) + str(raised.value.__notes__)
