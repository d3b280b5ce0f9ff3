"""Every mix of a whole model: the bytes are those that llama_model_quantize writes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny, tokens
from torch import nn

from labkit.core.errors import CalibrationError, NonFiniteError
from labkit.formats.gguf import imatrix
from labkit.formats.gguf.imatrix import ImportanceMatrix
from labkit.formats.gguf.mix import FILE_TYPES
from labkit.formats.gguf.reader import GgufFile
from labkit.models.importance import importance_matrix
from labkit.models.loading import load
from labkit.models.to_gguf import to_gguf
from labkit.peers.llama_cpp import quantize_file

MIXES = [name for name in FILE_TYPES if name != "F32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixes")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
    return tiny("llama_gqa_tied", **changes)


@pytest.fixture(scope="module")
def floats(model: nn.Module, folder: Path) -> Path:
    return to_gguf((model, None), folder / "floats.gguf", "F32").path


@pytest.fixture(scope="module")
def matrix(model: nn.Module) -> ImportanceMatrix:
    return importance_matrix(model, tokens(12, 32), datasets=("random",))


def raw(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    with GgufFile(path) as file:
        for name, info in file.tensors.items():
            yield name, info.type_name, file.raw(name)


def require_same(ours: Path, theirs: Path) -> None:
    expected = {name: (kind, content) for name, kind, content in raw(theirs)}
    for name, kind, content in raw(ours):
        assert kind == expected[name][0], name
        assert np.array_equal(content, expected[name][1]), name
    assert len(expected) == sum(1 for _ in raw(ours))


def means(matrix: ImportanceMatrix) -> dict[str, np.ndarray]:
    return {name: matrix.mean(name, len(sums)) for name, sums in matrix.sums.items()}


@pytest.mark.parametrize("mix", MIXES)
def test_bytes_without_an_importance_matrix(
    mix: str, model: nn.Module, floats: Path, folder: Path
) -> None:
    to_gguf((model, None), folder / "ours.gguf", mix, force=True)
    quantize_file(floats, folder / "theirs.gguf", FILE_TYPES[mix].number)
    require_same(folder / "ours.gguf", folder / "theirs.gguf")


@pytest.mark.parametrize("mix", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ4_NL", "Q4_0"])
def test_bytes_with_an_importance_matrix(
    mix: str, model: nn.Module, matrix: ImportanceMatrix, floats: Path, folder: Path
) -> None:
    imatrix.write(folder / "imatrix.gguf", matrix, force=True)
    to_gguf((model, None), folder / "ours.gguf", mix, folder / "imatrix.gguf", force=True)
    number = FILE_TYPES[mix].number
    theirs = folder / "theirs.gguf"
    quantize_file(floats, theirs, number, importance=means(matrix))
    require_same(folder / "ours.gguf", theirs)


@pytest.mark.parametrize("mix", ["MXFP4_MOE", "IQ4_XS", "Q5_1"])
def test_bytes_of_one_type_for_all(mix: str, model: nn.Module, floats: Path, folder: Path) -> None:
    to_gguf((model, None), folder / "ours.gguf", mix, pure=True, force=True)
    number = FILE_TYPES[mix].number
    quantize_file(floats, folder / "theirs.gguf", number, pure=True)
    require_same(folder / "ours.gguf", folder / "theirs.gguf")


@pytest.mark.parametrize("sizes", [(96, 160), (40, 100)])
def test_fall_backs_of_rows_that_fit_no_super_block(sizes: tuple[int, int], folder: Path) -> None:
    small = tiny("llama", hidden_size=sizes[0], intermediate_size=sizes[1])
    done = to_gguf((small, None), folder / "ours.gguf", "Q4_K_M", force=True)
    to_gguf((small, None), folder / "float.gguf", "F32", force=True)
    quantize_file(folder / "float.gguf", folder / "theirs.gguf", FILE_TYPES["Q4_K_M"].number)
    require_same(folder / "ours.gguf", folder / "theirs.gguf")
    assert len(done.fallbacks) >= 14
    assert all(str(fallback.shape[-1]) in fallback.reason for fallback in done.fallbacks)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_bytes_of_every_family(family: str, folder: Path) -> None:
    sizes: dict[str, int] = {"hidden_size": 256, "intermediate_size": 512}
    if family.startswith("gemma"):
        sizes["head_dim"] = 64
    if family in ("gemma2", "gemma3_text"):
        sizes["query_pre_attn_scalar"] = 64
    model = tiny(family, **sizes)
    to_gguf((model, None), folder / "float.gguf", "F32", force=True)
    for mix in ("Q4_K_M", "Q2_K"):
        to_gguf((model, None), folder / "ours.gguf", mix, force=True)
        quantize_file(folder / "float.gguf", folder / "theirs.gguf", FILE_TYPES[mix].number)
        require_same(folder / "ours.gguf", folder / "theirs.gguf")


def test_the_bundled_model_as_q4_k_m(folder: Path) -> None:
    model, _ = load()
    ids = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
    matrix = importance_matrix(model, ids)
    to_gguf((model, None), folder / "float.gguf", "F32", force=True)
    for importance, known in ((None, None), (matrix, means(matrix))):
        to_gguf((model, None), folder / "ours.gguf", "Q4_K_M", importance, force=True)
        theirs = folder / "theirs.gguf"
        number = FILE_TYPES["Q4_K_M"].number
        quantize_file(folder / "float.gguf", theirs, number, importance=known)
        require_same(folder / "ours.gguf", theirs)


def test_half_precision_weights_give_the_same_file(model: nn.Module, folder: Path) -> None:
    half = copy.deepcopy(model).bfloat16()
    to_gguf((half, None), folder / "half.gguf", "Q4_K_M", force=True)
    to_gguf((half.float(), None), folder / "float.gguf", "Q4_K_M", force=True)
    require_same(folder / "half.gguf", folder / "float.gguf")


def test_another_models_importance_is_refused(model: nn.Module, folder: Path) -> None:
    columns = np.ones(64, np.float32)
    wrong = ImportanceMatrix({"blk.0.attn_q.weight": columns}, {"blk.0.attn_q.weight": 1})
    with pytest.raises(CalibrationError, match="64 columns for a weight of 256") as caught:
        to_gguf((model, None), folder / "wrong.gguf", "Q4_K_M", wrong)
    assert "in tensor blk.0.attn_q.weight" in caught.value.__notes__
    strange = ImportanceMatrix({"blk.0.ffn_gate_exps.weight": columns}, {})
    with pytest.raises(CalibrationError, match="none of the model's tensors"):
        to_gguf((model, None), folder / "wrong.gguf", "Q4_K_M", strange)
    assert not (folder / "wrong.gguf").exists()


def test_tensors_that_calibration_did_not_see_are_said(
    model: nn.Module, matrix: ImportanceMatrix, folder: Path
) -> None:
    unseen = "blk.2.ffn_up.weight"
    part = {name: sums for name, sums in matrix.sums.items() if name != unseen}
    done = to_gguf(
        (model, None), folder / "part.gguf", "Q4_K_M", ImportanceMatrix(part, matrix.counts)
    )
    assert done.notes == (f"no importance for {unseen}",)


def test_weights_that_are_not_finite_are_refused_by_name(folder: Path) -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        to_gguf((model, None), folder / "nan.gguf", "Q8_0")
    assert "in tensor blk.1.ffn_up.weight" in caught.value.__notes__
    assert not any(path.name.startswith((".nan", "nan")) for path in folder.iterdir())
