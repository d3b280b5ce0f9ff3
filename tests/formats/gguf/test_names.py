"""Names and row orders: nothing is lost on the way, and llama.cpp's own tables agree."""

from __future__ import annotations

import gguf as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.errors import ModelError
from labkit.formats.gguf.names import NAMINGS, Naming, naming_for, naming_of
from labkit.formats.gguf.permute import inverse, row_order
from labkit.models.families_table import FAMILIES

_ARCHITECTURES = {name: number for number, name in peer.MODEL_ARCH_NAMES.items()}


def hugging_face_names(naming: Naming) -> list[str]:
    inner = [f"{naming.prefix}.{layer}.{name}" for layer in (0, 11) for name in naming.block]
    return [f"{name}.weight" for name in [*naming.outer, *inner]]


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_llama_cpp_maps_the_same_names(naming: Naming) -> None:
    table = peer.get_tensor_name_map(_ARCHITECTURES[naming.architecture], 12)
    for name in hugging_face_names(naming):
        assert table.get_name(name, try_suffixes=(".weight",)) == naming.to_gguf(name)


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_there_and_back(naming: Naming) -> None:
    heads = {"lm_head.weight", "embed_out.weight"}  # GPT-NeoX spells its head in two ways
    for name in hugging_face_names(naming):
        back = naming.to_hugging_face(naming.to_gguf(name))
        assert back == name or {back, name} == heads


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS)
def test_every_linear_that_labkit_quantizes_has_a_name(naming: Naming) -> None:
    for group in FAMILIES[naming.model_type].order:
        for linear in group:
            assert naming.to_gguf(f"{naming.prefix}.0.{linear}.weight").startswith("blk.0.")


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.lora_A.weight", "model.layers.x.mlp", "a", ""]
)
def test_a_tensor_without_a_place_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match="no place"):
        naming_of("llama").to_gguf(name)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_inp.weight", "blk.0.attn_q.scale", "blk.1.attn_q", "output", ""]
)
def test_a_tensor_that_no_model_has_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no such tensor"):
        naming_of("llama").to_hugging_face(name)


def test_opt_is_refused_and_the_reason_said() -> None:
    with pytest.raises(ModelError, match="no OPT"):
        naming_of("opt")


def test_unknown_architectures_are_refused_and_the_known_named() -> None:
    with pytest.raises(ModelError, match="qwen3"):
        naming_of("mamba")
    with pytest.raises(ModelError, match="gemma3"):
        naming_for("mamba")


def test_opt_is_the_only_family_without_gguf() -> None:
    assert set(FAMILIES) - set(NAMINGS) == {"opt"}


def test_one_head_of_eight_rows() -> None:
    order = row_order("rope_q", 8, heads=1, kv_heads=1)
    assert order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_fused_rows_of_two_heads() -> None:
    # each head: q0 q1 k0 k1 v0 v1
    order = row_order("qkv_by_head", 12, heads=2, kv_heads=2)
    assert order.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


@given(heads=st.integers(1, 8), pairs=st.integers(1, 16), grouping=st.integers(1, 4))
def test_orders_are_llama_cpps_and_can_be_undone(heads: int, pairs: int, grouping: int) -> None:
    rows = heads * pairs * 2
    weight = np.arange(rows)
    theirs = weight.reshape(heads, 2, pairs).swapaxes(1, 2).reshape(rows)  # conversion/llama.py
    ours = row_order("rope_k", rows, heads * grouping, heads)
    assert np.array_equal(weight[ours], theirs)
    assert np.array_equal(weight[ours][inverse(ours)], weight)


@pytest.mark.parametrize("change", ["none", "transpose", "plus_one"])
def test_other_changes_keep_the_order(change: str) -> None:
    assert row_order(change, 8, 2, 2) is None


@pytest.mark.parametrize(("change", "rows"), [("rope_q", 9), ("rope_q", 6), ("qkv_by_head", 8)])
def test_heads_that_do_not_fit_are_refused(change: str, rows: int) -> None:
    with pytest.raises(ModelError, match=f"{rows} rows"):
        row_order(change, rows, heads=2, kv_heads=2)
