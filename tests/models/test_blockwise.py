"""The driver: the same result from memory and from shards, one block at a time, nothing silent."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.scheme import QuantScheme
from labkit.models.apply import quantize_model
from labkit.models.block import Block
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import METHODS, Gptq, Rtn
from labkit.models.methods.protocol import Settings
from labkit.models.report import LayerReport, layer_report
from labkit.models.sources import FolderSource
from labkit.models.walking import decoder_blocks, linear_layers
from labkit.quantize import rtn

INT4 = QuantScheme(4, granularity="group", group_size=32, narrow_range=False)
GPTQ = Gptq(INT4, loop="plain")


def saved(model, path: Path, shard: str = "60KB") -> Path:
    model.save_pretrained(path, max_shard_size=shard)
    return path


@dataclass(frozen=True)
class Probe(Settings):
    """Rounds like rtn, and keeps what it was shown."""

    shown: list = field(default_factory=list)
    scheme: QuantScheme = INT4
    name: ClassVar[str] = "probe"
    next_inputs: str = "quantized"
    needs_inputs: ClassVar[bool] = True

    def quantize_block(self, block: Block) -> list[LayerReport]:
        self.shown.append([call.hidden for call in block.inputs])
        return Rtn(self.scheme).quantize_block(block)


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_and_shards_give_the_same_bits(name: str, tmp_path: Path) -> None:
    model, ids = tiny(name), tokens(5, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    memory = quantize_blockwise(model, GPTQ, ids, batch_size=2)
    folder = saved(model, tmp_path / "model")
    assert len(list(folder.glob("*.safetensors"))) > 3
    disk = quantize_blockwise(folder, GPTQ, ids, batch_size=2, work=tmp_path / "work")

    assert disk.model is None and memory.model is not None
    assert set(memory.layers) == set(disk.layers) == set(linear_layers(model))
    for layer, quantized in memory.layers.items():
        assert torch.equal(quantized.codes, disk.layers[layer].codes)
        assert torch.equal(quantized.scale, disk.layers[layer].scale)
    assert set(memory.tensors) == set(disk.tensors)
    assert all(torch.equal(memory.tensors[key], disk.tensors[key]) for key in memory.tensors)
    assert [r.figures() for r in memory.reports] == [r.figures() for r in disk.reports]
    # The caller's model is untouched; everything that is no linear of a block is unchanged.
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in memory.tensors.items())
    named = {f"{layer}.weight" for layer in memory.layers} | set(memory.tensors)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert named | tied == set(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_rtn_needs_no_text_and_equals_quantize_model(name: str) -> None:
    model = tiny(name)
    ours = quantize_blockwise(model, Rtn(INT4))
    expected, reports = quantize_model(model, INT4)
    for key, value in expected.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value)
    theirs = {report.name: report.sqnr_db for report in reports}
    assert {report.name: report.sqnr_db for report in ours.reports} == theirs
    logits = ours.model(tokens()).logits
    assert torch.equal(logits, expected(tokens()).logits)


def test_eight_bits_hardly_change_the_model_and_two_bits_do() -> None:
    model, ids = tiny("llama"), tokens(8, 16)
    exact = model(ids).logits
    errors = {
        bits: float((quantize_blockwise(model, Gptq(QuantScheme(bits), loop="plain"), ids)
                     .model(ids).logits - exact).square().mean())
        for bits in (2, 4, 8)
    }  # fmt: skip
    assert errors[8] < errors[4] / 20 and errors[4] < errors[2] / 4
    assert errors[8] < 1e-3 * float(exact.square().mean())


def test_gptq_beats_rounding_on_its_own_calibration() -> None:
    model, ids = tiny("llama"), tokens(16, 16)
    exact = model(ids).logits
    scheme = QuantScheme(3, granularity="group", group_size=32, narrow_range=False)

    def error(method) -> float:
        result = quantize_blockwise(model, method, ids)
        return float((result.model(ids).logits - exact).square().mean())

    assert error(Gptq(scheme, loop="plain")) < error(Rtn(scheme))


@pytest.mark.parametrize("next_inputs", ["quantized", "original"])
def test_next_block_sees_quantized_or_original_outputs(next_inputs: str) -> None:
    model, ids = tiny("llama", num_hidden_layers=3), tokens(4, 16)
    probe = Probe(next_inputs=next_inputs, scheme=QuantScheme(2))
    result = quantize_blockwise(model, probe, ids, batch_size=4)
    wanted = result.model if next_inputs == "quantized" else model
    states = wanted(ids, output_hidden_states=True).hidden_states
    other = (model if next_inputs == "quantized" else result.model)(
        ids, output_hidden_states=True
    ).hidden_states
    for index, (hidden,) in enumerate(probe.shown):
        torch.testing.assert_close(hidden, states[index], rtol=1e-5, atol=1e-5)
        assert index == 0 or not torch.allclose(hidden, other[index], atol=1e-3)


def test_hidden_states_are_in_memory_once() -> None:
    """While outputs are computed, the inputs that were used are let go."""
    alive: list[int] = []

    @dataclass(frozen=True)
    class Counting(Probe):
        def quantize_block(self, block: Block) -> list[LayerReport]:
            states = [weakref.ref(call.hidden) for call in block.inputs]
            reports = Rtn(self.scheme).quantize_block(block)
            # From here on every forward pass is one of those that make the next block's inputs.
            block.module.register_forward_hook(
                lambda *seen: alive.append(sum(state() is not None for state in states))
            )
            return reports

    quantize_blockwise(tiny("llama"), Counting(), tokens(8, 16), batch_size=2)
    assert alive == [4, 3, 2, 1]


def test_true_sequential_collects_anew_after_each_group() -> None:
    model, ids = tiny("llama"), tokens(8, 16)
    anew = quantize_blockwise(model, Gptq(INT4, loop="plain"), ids).layers
    once = quantize_blockwise(model, Gptq(INT4, loop="plain", true_sequential=False), ids).layers
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    assert torch.equal(anew[first].codes, once[first].codes)
    assert not torch.equal(anew[last].codes, once[last].codes)


def test_batch_size_does_not_change_what_is_learnt_much() -> None:
    model, ids = tiny("llama"), tokens(7, 16)
    one = quantize_blockwise(model, GPTQ, ids, batch_size=1).layers
    other = quantize_blockwise(model, GPTQ, ids, batch_size=7).layers
    same = [(one[n].codes == other[n].codes).float().mean() for n in one]
    assert min(same) > 0.97


def test_only_one_block_has_weights(tmp_path: Path) -> None:
    model = tiny("llama", num_hidden_layers=4)
    source = FolderSource(saved(model, tmp_path / "model", "30KB"))
    live: list[int] = []
    seen: list[set[str]] = []

    @dataclass(frozen=True)
    class Looking(Probe):
        def quantize_block(self, block: Block) -> list[LayerReport]:
            with_weights = {
                n for n, p in source.model.named_parameters() if p.device.type != "meta"
            }
            seen.append({name.removeprefix(block.name) for name in with_weights})
            gc.collect()
            found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
            live.append(sum(t.numel() for t in found if t.device.type != "meta"))
            return Rtn(self.scheme).quantize_block(block)

    quantize_blockwise(source, Looking(), tokens(4, 16), work=tmp_path / "work")
    own = {f".{name}" for name, _ in decoder_blocks(model)[1][0].named_parameters()}
    assert seen == [own] * 4
    one_block = sum(p.numel() for p in decoder_blocks(model)[1][0].parameters())
    assert max(live) - min(live) < one_block / 10
    assert all(p.device.type == "meta" for p in source.model.parameters())


def test_the_dtype_of_the_source_comes_back(tmp_path: Path) -> None:
    model = tiny("llama").to(torch.bfloat16)
    memory = quantize_blockwise(model, Rtn(INT4))
    assert {p.dtype for p in memory.model.parameters()} == {torch.bfloat16}
    folder = saved(model, tmp_path / "model")
    disk = quantize_blockwise(folder, Rtn(INT4), work=tmp_path / "work")
    assert {t.dtype for t in disk.tensors.values()} == {torch.bfloat16}
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in disk.tensors.items())
    assert all(torch.equal(disk.layers[n].codes, q.codes) for n, q in memory.layers.items())


def test_a_checkpoint_of_the_bare_model_lacks_the_prefix(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = tiny("gpt2")
    folder = saved(model, tmp_path / "model", "1GB")
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    bare = {key.removeprefix("transformer."): value.contiguous() for key, value in state.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # a mask that old versions saved
    save_file(bare, folder / "model.safetensors")
    disk = quantize_blockwise(folder, Rtn(INT4), work=tmp_path / "work")
    memory = quantize_blockwise(model, Rtn(INT4))
    assert set(disk.layers) == set(memory.layers) and set(disk.tensors) == set(memory.tensors)


def test_progress_tells_every_layer_and_ends_at_the_total() -> None:
    model, told = tiny("llama"), []
    quantize_blockwise(model, Rtn(INT4), keep=["*.0.*up_proj"], progress=lambda *t: told.append(t))
    assert [done for _, done, _ in told] == list(range(1, 14))
    assert {total for _, _, total in told} == {13}
    assert {name for name, _, _ in told} == set(linear_layers(model)) - {
        "model.layers.0.mlp.up_proj"
    }


def test_the_checkpoint_holds_all_that_a_format_needs(tmp_path: Path) -> None:
    folder = saved(tiny("llama_gqa_tied"), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    disk = quantize_blockwise(folder, Rtn(INT4), work=tmp_path / "work").checkpoint()
    assert disk.config["model_type"] == "llama" and disk.files["tokenizer.json"] == b"{}"
    memory = quantize_blockwise(tiny("llama_gqa_tied"), Rtn(INT4)).checkpoint({"a": b"b"})
    assert memory.config["architectures"] == ["LlamaForCausalLM"] and memory.files == {"a": b"b"}
    assert memory.config["model_type"] == "llama"


def test_every_method_states_its_settings_as_json() -> None:
    import json

    for name, kind in METHODS.items():
        fields = {"scheme": INT4} if name in {"rtn", "gptq", "awq"} else {}
        settings = kind(**fields).settings()
        assert json.loads(json.dumps(settings)) == settings
        assert settings["method"] == name == kind.name


def test_report_of_a_layer() -> None:
    weight = torch.randn(8, 32)
    quantized = rtn.quantize(weight, INT4)
    report = layer_report("a", "rtn", weight, quantized, note="n")
    noise = (weight - quantized.dequantize()).square().mean()
    assert report.sqnr_db == pytest.approx(float(10 * (weight.square().mean() / noise).log10()))
    assert "quantized" not in report.figures() and report.figures()["note"] == "n"
