"""Importance of columns: the sums of what the linears of the whole model see."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens
from torch import nn

from labkit.core.errors import CalibrationError, ModelError, NonFiniteError
from labkit.formats.gguf.names import naming_of
from labkit.models.importance import importance_matrix
from labkit.models.to_gguf import to_gguf
from labkit.models.walking import linear_layers
from labkit.peers.llama_imatrix import squared_inputs

RUN = [family for family in FAMILIES if family != "opt"]


@torch.no_grad()
def sums_of_whole_model(model: nn.Module, ids: torch.Tensor) -> dict[str, np.ndarray]:
    naming = naming_of(model.config.model_type)
    found: dict[str, np.ndarray] = {}

    def see(name: str, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found[name] = args[0].flatten(0, -2).double().square().sum(0).numpy()

    handles = [
        layer.register_forward_pre_hook(partial(see, naming.to_gguf(f"{name}.weight")))
        for name, layer in linear_layers(model).items()
    ]
    model(ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", RUN)
def test_block_by_block_is_the_whole_model(family: str) -> None:
    model, ids = tiny(family), tokens(7, 16)
    expected = sums_of_whole_model(model, ids)
    found = importance_matrix(model, ids, batch_size=3, datasets=("random",))
    assert found.sums.keys() == expected.keys()
    for name, sums in found.sums.items():
        assert sums.dtype == np.float32
        np.testing.assert_allclose(sums, expected[name], rtol=1e-4)
    assert set(found.counts.values()) == {7 * 16}
    assert (found.chunk_count, found.chunk_size, found.datasets) == (7, 16, ("random",))


def test_a_folder_gives_what_the_model_gives(tmp_path: Path) -> None:
    model, ids = tiny("llama_gqa_tied"), tokens(4, 16)
    model.save_pretrained(tmp_path / "model")
    done: list[tuple[str, int, int]] = []
    ours = importance_matrix(tmp_path / "model", ids, progress=lambda *said: done.append(said))
    theirs = importance_matrix(model, ids)
    for name, sums in theirs.sums.items():
        assert np.array_equal(ours.sums[name], sums)
    assert done == [("model.layers.0", 1, 2), ("model.layers.1", 2, 2)]


@pytest.mark.parametrize("family", ["llama_gqa_tied", "qwen3", "gemma2", "gpt2", "phi3"])
def test_llama_cpp_sums_the_same(family: str, tmp_path: Path) -> None:
    model, ids = tiny(family), tokens(3, 16)
    path = to_gguf((model, None), tmp_path / "model.gguf", "F32").path
    theirs = squared_inputs(path, ids.tolist())
    ours = importance_matrix(model, ids).sums
    assert theirs.keys() == ours.keys()
    tolerance = 1e-4 if family in ("llama_gqa_tied", "qwen3", "phi3") else 5e-3  # GELU by a table
    for name, sums in ours.items():
        np.testing.assert_allclose(sums, theirs[name], rtol=tolerance)


def test_q_k_and_v_read_one_tensor() -> None:
    sums = importance_matrix(tiny("llama"), tokens(2, 8)).sums
    assert np.array_equal(sums["blk.1.attn_q.weight"], sums["blk.1.attn_v.weight"])
    assert not np.array_equal(sums["blk.1.attn_q.weight"], sums["blk.1.attn_output.weight"])
    assert "output.weight" not in sums and "token_embd.weight" not in sums


def test_the_model_is_left_as_it_was() -> None:
    model, ids = tiny("llama"), tokens(2, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    importance_matrix(model, ids)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_wrong_token_ids_and_models_are_refused() -> None:
    with pytest.raises(CalibrationError, match="outside"):
        importance_matrix(tiny("llama"), tokens(2, 8) + 128)
    with pytest.raises(CalibrationError):
        importance_matrix(tiny("llama"), torch.empty(0, 8, dtype=torch.int64))
    with pytest.raises(ModelError, match="no OPT"):
        importance_matrix(tiny("opt"), tokens(2, 8))


def test_inputs_that_are_not_finite_name_the_layer() -> None:
    model = tiny("llama")
    model.model.layers[0].mlp.up_proj.weight[3, :] = 1e30
    model.model.layers[0].mlp.gate_proj.weight[3, :] = 1e30
    with pytest.raises(NonFiniteError, match=r"layers\.0\.mlp\.down_proj"):
        importance_matrix(model, tokens(2, 8))
