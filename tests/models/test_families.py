"""Families: every linear of a block is known, groups share an input, folds keep the function."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens
from torch import nn

from labkit.core.errors import ModelError
from labkit.models.block import Block
from labkit.models.capture import capture
from labkit.models.families import Family, family
from labkit.models.folding import fold as apply_fold
from labkit.models.walking import decoder_blocks, linear_layers


def first_block(model: nn.Module) -> Block:
    prefix, blocks = decoder_blocks(model)
    captured = capture(model, list(blocks), tokens(), 4)
    calls = captured.calls(0, captured.hidden)
    return Block(f"{prefix}.0", 0, blocks[0], family(model), calls)


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_name_every_linear_once(name: str) -> None:
    model = tiny(name)
    prefix, blocks = decoder_blocks(model)
    names = [linear for group in family(model).groups(blocks[0]) for linear in group]
    walked = [n for n in linear_layers(model) if n.startswith(f"{prefix}.0.")]
    assert sorted(f"{prefix}.0.{linear}" for linear in names) == sorted(walked)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_linears_of_a_group_read_one_tensor(name: str) -> None:
    block = first_block(tiny(name))
    seen: dict[str, list[torch.Tensor]] = {linear: [] for linear in block.linears}
    block.collect(seen, lambda linear, x: seen[linear].append(x.clone()))
    for group in block.groups():
        for linear in group[1:]:
            assert all(map(torch.equal, seen[linear], seen[group[0]]))
    first, last = block.groups()[0][0], block.groups()[-1][0]
    assert seen[first][0].shape != seen[last][0].shape or not torch.equal(
        seen[first][0], seen[last][0]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_random_scales_keeps_the_function(name: str) -> None:
    block = first_block(tiny(name))
    before = list(block.run())
    weights = {linear: block.weight(linear) for linear in block.linears}
    assert block.folds()
    for fold in block.folds():
        modules = [block.module.get_submodule(linear) for linear in fold.linears]
        columns = block.weight(fold.linears[0]).shape[1]
        scales = torch.rand(columns, generator=torch.Generator().manual_seed(3)) * 3 + 0.3
        source = block.module.get_submodule(fold.source)
        offset = block.family.norm_offset(source)
        apply_fold(source, modules, scales, norm_offset=offset, rows=fold.rows)
    for was, now in zip(before, block.run(), strict=True):
        torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-4)
    changed = {linear for fold in block.folds() for linear in fold.linears}
    assert all(not torch.equal(block.weight(linear), weights[linear]) for linear in changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_fold_and_reason_are_two_sides_of_one_table(name: str) -> None:
    """Whatever linear is not the target of a fold is the target of a reason."""
    block = first_block(tiny(name))
    folded = {linear for fold in block.folds() for linear in fold.linears}
    reasons = " ".join(block.skipped_folds())
    assert all(linear in folded or linear in reasons for linear in block.linears)


def test_the_module_that_a_fold_inspects_exists_and_contains_its_linears() -> None:
    for name in FAMILIES:
        block = first_block(tiny(name))
        for fold in block.folds():
            inside = dict(block.module.get_submodule(fold.inspect).named_modules())
            prefix = f"{fold.inspect}."
            for linear in fold.linears:
                assert linear == fold.inspect or linear.removeprefix(prefix) in inside


def test_grouped_query_attention_leaves_the_value_fold_out_and_says_so() -> None:
    block = first_block(tiny("llama_gqa_tied"))
    assert all(fold.source != "self_attn.v_proj" for fold in block.folds())
    (reason,) = block.skipped_folds()
    assert "self_attn.v_proj -> self_attn.o_proj" in reason
    assert "32 outputs feed 64 inputs" in reason


def test_fused_values_of_phi3_with_grouped_queries_are_left_out() -> None:
    block = first_block(tiny("phi3", num_key_value_heads=2))
    assert [reason for reason in block.skipped_folds() if "qkv_proj" in reason]


def test_opt_with_norms_behind_the_sum_folds_no_norm() -> None:
    block = first_block(tiny("opt", do_layer_norm_before=False))
    assert all(fold.kind == "linear" for fold in block.folds())
    assert sum("behind the sum" in reason for reason in block.skipped_folds()) == 2


def test_opt_without_relu_does_not_fold_fc1() -> None:
    block = first_block(tiny("opt", activation_function="gelu"))
    assert all(fold.source != "fc1" for fold in block.folds())
    assert any("fc1 -> fc2: a factor does not pass" in reason for reason in block.skipped_folds())


def test_gemma_norms_add_one_and_others_do_not() -> None:
    gemma, llama = first_block(tiny("gemma")), first_block(tiny("llama"))
    assert gemma.family.norm_offset(gemma.module.input_layernorm) == 1.0
    assert gemma.family.norm_offset(gemma.module.mlp.up_proj) == 0.0
    assert llama.family.norm_offset(llama.module.input_layernorm) == 0.0


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    model = tiny("llama")
    model.config.model_type = "mamba"
    with pytest.raises(ModelError, match=r"'mamba'.*Supported: llama, mistral, .*gpt_neox"):
        family(model)
    with pytest.raises(ModelError, match="None"):
        family(nn.Linear(2, 2))


def test_a_matrix_that_labkit_does_not_know_is_refused_by_name() -> None:
    model = tiny("llama")
    block = decoder_blocks(model)[1][0]
    block.self_attn.adapter = nn.Linear(64, 64)
    with pytest.raises(ModelError, match=r"has self_attn\.adapter, which"):
        family(model).groups(block)
    del block.self_attn.adapter
    block.mlp.experts = nn.Parameter(torch.zeros(2, 4, 4))
    with pytest.raises(ModelError, match=r"has mlp\.experts\b"):
        family(model).groups(block)


def test_a_convolution_with_weights_is_refused_by_name() -> None:
    model = tiny("llama")
    block = decoder_blocks(model)[1][0]
    block.mixer = nn.Conv1d(4, 4, 3)
    with pytest.raises(ModelError, match=r"mixer\.weight"):
        family(model).groups(block)


def test_a_block_that_lacks_a_linear_is_refused_by_name() -> None:
    model = tiny("llama")
    block = decoder_blocks(model)[1][0]
    block.mlp.gate_proj = None
    with pytest.raises(ModelError, match=r"lacks mlp\.gate_proj"):
        family(model).groups(block)


def test_no_two_families_share_a_name() -> None:
    from labkit.models.families_table import FAMILIES as TABLE

    assert all(isinstance(entry, Family) and entry.name == key for key, entry in TABLE.items())
    assert len(TABLE) == 11
