"""A block: the same outputs as inside of its model, and every access checked."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens

from labkit.core.errors import LabkitError, ModelError, NonFiniteError, SchemeError, ShapeError
from labkit.core.scheme import QuantScheme
from labkit.models.block import Block
from labkit.models.capture import capture
from labkit.models.families import family
from labkit.models.walking import capture_inputs, decoder_blocks
from labkit.quantize import rtn


def blocks_of(model, ids: torch.Tensor, batch_size: int = 2) -> list[Block]:
    """All blocks, each with the inputs that the original model gives it."""
    prefix, modules = decoder_blocks(model)
    captured = capture(model, list(modules), ids, batch_size)
    hidden, made = captured.hidden, []
    for index, module in enumerate(modules):
        calls = captured.calls(index, hidden)
        made.append(Block(f"{prefix}.{index}", index, module, family(model), calls))
        hidden = list(made[-1].run())
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_what_enters_the_linears_is_what_enters_them_in_the_whole_model(name: str) -> None:
    """Of both blocks, so that masks and positions of each are right (sliding windows too)."""
    model, ids = tiny(name), tokens(5, 16)
    for block in blocks_of(model, ids):
        names = [block.full_name(linear) for linear in block.linears]
        whole = capture_inputs(model, ids, names)
        seen = {linear: [] for linear in block.linears}
        block.collect(seen, lambda linear, x, seen=seen: seen[linear].append(x.clone()))
        for linear, pieces in seen.items():
            expected = whole[block.full_name(linear)]
            torch.testing.assert_close(torch.cat(pieces), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weight_write_and_replace(name: str) -> None:
    block = blocks_of(tiny(name), tokens())[0]
    for linear, module in block.linears.items():
        weight = block.weight(linear)
        outputs = module.weight.shape[1] if name == "gpt2" else module.weight.shape[0]
        assert weight.shape[0] == outputs and weight.dtype == torch.float32
        x = torch.randn(3, weight.shape[1])
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(module(x), x @ weight.T + bias)
        weight += 1  # a copy: the module does not feel it
        assert not torch.equal(block.weight(linear), weight)
        quantized = rtn.quantize(weight, QuantScheme(4))
        block.replace(linear, quantized)
        assert torch.equal(block.weight(linear), quantized.dequantize())
        assert block.quantized[linear] is quantized


def test_a_wrong_name_shape_or_value_is_refused_with_the_layer_named() -> None:
    block = blocks_of(tiny("llama"), tokens())[0]
    with pytest.raises(ModelError, match=r"no linear 'mlp'.*self_attn.k_proj"):
        block.weight("mlp")
    with pytest.raises(ShapeError, match=r"model.layers.0.mlp.up_proj"):
        block.write("mlp.up_proj", torch.zeros(2, 2))
    bad = block.weight("mlp.up_proj")
    bad[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model.layers.0.mlp.up_proj.*\(3, 4\)"):
        block.write("mlp.up_proj", bad)
    with pytest.raises(LabkitError) as caught, block.blaming("mlp.up_proj"):
        raise SchemeError("bad")
    assert caught.value.__notes__ == ["in layer model.layers.0.mlp.up_proj"]


def test_kept_linears_are_neither_offered_nor_writable() -> None:
    model = tiny("llama")
    module = decoder_blocks(model)[1][0]
    block = Block("b", 0, module, family(model), [], kept={"mlp.up_proj", "mlp.down_proj"})
    assert "mlp.up_proj" not in block.linears
    assert [name for group in block.groups() for name in group] == list(block.linears)
    assert [] not in block.groups()
    with pytest.raises(ModelError):
        block.write("mlp.up_proj", torch.zeros(128, 64))


def test_a_module_that_takes_no_part_is_said_and_hooks_are_gone() -> None:
    block = blocks_of(tiny("llama"), tokens())[0]
    block.module.idle = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"idle took no part"):
        block.collect(["mlp.up_proj", "idle"], lambda name, x: None)
    assert not any(module._forward_pre_hooks for module in block.module.modules())


def test_collect_sees_the_weights_as_they_stand() -> None:
    block = blocks_of(tiny("llama"), tokens())[0]
    before, after = [], []
    block.collect(["mlp.down_proj"], lambda name, x: before.append(x.clone()))
    block.write("mlp.up_proj", torch.zeros_like(block.weight("mlp.up_proj")))
    block.collect(["mlp.down_proj"], lambda name, x: after.append(x.clone()))
    assert before[0].abs().max() > 0 and after[0].abs().max() == 0
