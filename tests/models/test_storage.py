"""Finished blocks on disk: any Quantized comes back exactly; a file cannot name code to run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from labkit.core.errors import FormatError
from labkit.core.quantized import Quantized
from labkit.core.scheme import QuantScheme
from labkit.formats.inputs import InputQuantization
from labkit.models.storage import FinishedBlock, read_block, write_block
from labkit.quantize import hqq, nf4, rtn

WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


def round_trip(path: Path, quantized: Quantized) -> Quantized:
    write_block(path, FinishedBlock({"mlp.up_proj": quantized}, {}))
    return read_block(path).layers["mlp.up_proj"]


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    size=st.sampled_from([None, 8, 64]),
    ordered=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_quantized_tensor_comes_back(
    tmp_path_factory, bits: int, symmetric: bool, size: int | None, ordered: bool
) -> None:
    granularity = "group" if size else "channel"
    quantized = rtn.quantize(WEIGHT, QuantScheme(bits, symmetric, granularity, size))
    if ordered and size:
        g_idx = torch.arange(64, dtype=torch.int32) // size
        quantized = type(quantized)(
            quantized.codes, quantized.scale, quantized.zero_point, quantized.scheme, g_idx.flip(0)
        )
    again = round_trip(tmp_path_factory.mktemp("b") / "block.safetensors", quantized)
    assert isinstance(again, Quantized) and again.scheme == quantized.scheme
    assert torch.equal(again.codes, quantized.codes) and again.codes.dtype == quantized.codes.dtype
    assert torch.equal(again.dequantize(), quantized.dequantize())
    assert again.nbytes == quantized.nbytes


@pytest.mark.parametrize("nested", [False, True])
def test_a_codebook_tensor_comes_back(tmp_path: Path, nested: bool) -> None:
    quantized = nf4.quantize(WEIGHT, double_quantization=nested)
    again = round_trip(tmp_path / "block.safetensors", quantized)
    assert isinstance(again, Quantized) and again.shape == quantized.shape
    assert isinstance(again.shape, torch.Size)
    assert torch.equal(again.dequantize(), quantized.dequantize())
    assert again.nbytes == quantized.nbytes


def test_a_tensor_with_float_zeros_comes_back(tmp_path: Path) -> None:
    quantized = hqq.quantize(WEIGHT, bits=4, group_size=32)
    again = round_trip(tmp_path / "block.safetensors", quantized)
    assert isinstance(again, Quantized)
    assert torch.equal(again.dequantize(), quantized.dequantize())


def test_tensors_inputs_and_reports_come_back(tmp_path: Path) -> None:
    how = InputQuantization("int", "tensor", torch.tensor([0.25]))
    figures = [{"name": "a", "sqnr_db": float("inf"), "loss": None, "note": "ä"}]
    block = FinishedBlock({}, {"norm.weight": torch.randn(4)}, {"mlp.up_proj": how}, figures)
    path = tmp_path / "block.safetensors"
    write_block(path, block)
    again = read_block(path)
    assert torch.equal(again.tensors["norm.weight"], block.tensors["norm.weight"])
    assert again.reports == figures and again.inputs["mlp.up_proj"].kind == "int"
    assert again.inputs["mlp.up_proj"].scale == 0.25


def forge(path: Path, about: object) -> None:
    tensors = load_file(path)
    tensors["about"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "labkit.core.errors:LabkitError",
        "labkit.core.affine:quantize",
        "subprocess:Popen",
    ],
)
def test_a_class_that_holds_no_numbers_is_never_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "block.safetensors"
    write_block(path, FinishedBlock({}, {}))
    node = {"class": name, "fields": {"command": "touch owned"}}
    forge(path, {"layers": {"dict": {"a": node}}, "tensors": {"dict": {}}})
    with pytest.raises(FormatError):
        read_block(path)


@pytest.mark.parametrize("about", [[], 3, {"layers": {"tensor": "nowhere"}}, {"other": 1}, {}])
def test_what_is_no_finished_block_is_refused(tmp_path: Path, about: object) -> None:
    path = tmp_path / "block.safetensors"
    write_block(path, FinishedBlock({}, {}))
    forge(path, about)
    with pytest.raises(FormatError, match=r"block\.safetensors"):
        read_block(path)


def test_what_cannot_be_stored_is_said(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Path cannot be stored \(at layers\.a\)"):
        write_block(tmp_path / "block.safetensors", FinishedBlock({"a": Path("x")}, {}))
    assert not list(tmp_path.iterdir())
