"""The driver with bad input: an error that names the layer, or a report that says what was done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import (
    CalibrationError,
    GroupSizeError,
    ModelError,
    NonFiniteError,
    SchemeError,
)
from labkit.core.scheme import QuantScheme
from labkit.models.apply import quantize_model
from labkit.models.block import Block
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Gptq, Rtn
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport
from labkit.models.walking import linear_layers

INT4 = QuantScheme(4, granularity="group", group_size=32, narrow_range=False)
GPTQ = Gptq(INT4, loop="plain")


@dataclass(frozen=True)
class Probe(Settings):
    """Rounds like rtn, with inputs."""

    scheme: QuantScheme = INT4
    name: ClassVar[str] = "probe"
    next_inputs: ClassVar[str] = "quantized"
    needs_inputs: ClassVar[bool] = True

    def quantize_block(self, block: Block) -> list[LayerReport]:
        return Rtn(self.scheme).quantize_block(block)


def test_kept_layers_stay_and_are_reported() -> None:
    model = tiny("llama")
    result = quantize_blockwise(model, GPTQ, tokens(), keep=["*.down_proj", "*.0.self_attn.q_*"])
    kept = {report.name: report for report in result.reports if report.method == "kept"}
    assert set(kept) == {
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.0.self_attn.q_proj",
    }
    assert len(result.reports) == len(linear_layers(model))
    for name, report in kept.items():
        assert report.note and report.quantized is None and name not in result.layers
        assert torch.equal(result.tensors[f"{name}.weight"], model.state_dict()[f"{name}.weight"])
    with pytest.raises(ModelError, match=r"no layer is named 'lm_head'.*model\.layers\.0\."):
        quantize_blockwise(model, Rtn(INT4), keep=["lm_head"])


def test_a_method_that_skips_a_layer_in_silence_is_refused() -> None:
    @dataclass(frozen=True)
    class Forgetful(Probe):
        def quantize_block(self, block: Block) -> list[LayerReport]:
            return super().quantize_block(block)[1:]

    with pytest.raises(ModelError, match=r"model\.layers\.0: the method said nothing about"):
        quantize_blockwise(tiny("llama"), Forgetful(), tokens())


def test_a_group_size_that_does_not_divide_names_the_layer() -> None:
    scheme = QuantScheme(4, granularity="group", group_size=48)
    for method in (Rtn(scheme), Gptq(scheme, loop="plain")):
        with pytest.raises(GroupSizeError) as caught:
            quantize_blockwise(tiny("llama"), method, tokens())
        assert any("model.layers.0." in note for note in caught.value.__notes__)


def test_fewer_tokens_than_columns_is_reported() -> None:
    result = quantize_blockwise(tiny("llama"), GPTQ, tokens(2, 16))
    assert all("32 calibration tokens for" in report.note for report in result.reports)
    assert {report.tokens for report in result.reports} == {32}
    enough = quantize_blockwise(tiny("llama"), GPTQ, tokens(16, 16))
    assert all(not report.note for report in enough.reports)


def test_calibration_is_asked_for_and_checked() -> None:
    model = tiny("llama")
    with pytest.raises(CalibrationError, match="gptq needs calibration text"):
        quantize_blockwise(model, GPTQ)
    with pytest.raises(CalibrationError, match=r"outside of 0\.\.127"):
        quantize_blockwise(model, GPTQ, tokens(vocabulary=4000))
    with pytest.raises(CalibrationError, match="positions"):
        quantize_blockwise(model, GPTQ, tokens(1, 65))


def test_activations_that_are_not_finite_name_the_place() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
    with pytest.raises(NonFiniteError, match="embeddings of calibration batch 0"):
        quantize_blockwise(model, GPTQ, torch.full((1, 4), 7))
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e30)
        model.model.layers[0].mlp.gate_proj.weight.fill_(1e30)
    with pytest.raises(NonFiniteError) as caught:
        quantize_blockwise(model, Gptq(INT4, loop="plain", true_sequential=False), tokens())
    assert "in layer model.layers.0.mlp.down_proj" in caught.value.__notes__


def test_outputs_that_are_not_finite_name_the_block() -> None:
    @dataclass(frozen=True)
    class Loud(Probe):
        def quantize_block(self, block: Block) -> list[LayerReport]:
            reports = super().quantize_block(block)
            for linear in block.linears:
                block.write(linear, block.weight(linear) * 1e20)
            return reports

    with pytest.raises(NonFiniteError, match=r"outputs of model\.layers\.0, calibration batch 0"):
        quantize_blockwise(tiny("llama"), Loud(), tokens())


def test_a_weight_that_is_not_finite_names_the_layer() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[2, 3] = float("inf")
    with pytest.raises(NonFiniteError) as caught:
        quantize_blockwise(model, Rtn(INT4))
    assert "in layer model.layers.1.self_attn.o_proj" in caught.value.__notes__


def test_a_folder_wants_a_work_folder(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="Pass work="):
        quantize_blockwise(tmp_path / "model", Rtn(INT4))


def test_quantize_model_still_refuses_an_unknown_method() -> None:
    with pytest.raises(SchemeError, match="no method"):
        quantize_model(tiny("llama"), INT4, method="magic")
