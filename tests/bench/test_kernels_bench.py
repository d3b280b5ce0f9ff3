"""`labkit bench kernels`: every contestant computes the same product; times are not judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from labkit.bench import bench_command, kernel_rows
from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import PeerError
from labkit.kernels.cpu.read import read
from labkit.peers import ggml
from labkit.peers.ggml_matmul import MatMul
from labkit.quantize import gguf

TYPES = ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
needs_ggml = pytest.mark.skipif(not ggml.available(), reason="llama-cpp-python is not there")


@needs_ggml
def test_both_sides_of_every_row_compute_the_product(monkeypatch):
    monkeypatch.setattr(kernel_rows, "_QUICK_SHAPES", ((64, 256),))
    found = list(kernel_rows.rows(Effort(quick=True, rounds=1, threads=1)))
    assert all(isinstance(row, BenchRow) for row in found)
    whats = {row.what.split(",")[0] for row in found}
    assert whats == {
        *("W4A16 bfloat16 group 128", "W4A16 float32 group 128", "W4A8 group 128", "W8A8"),
        *("NF4 bfloat16 block 64", "NF4 float32 block 64", "FP8"),
        *(f"{name} {form}" for name in TYPES for form in ("panels", "blocks")),
    }
    peers = " ".join(row.peer for row in found)
    for name in ("torch", "onnxruntime", "llama-cpp-python", "bitsandbytes", "reading"):
        assert name in peers
    for row in found:
        assert row.seconds > 0 and row.peer_seconds > 0
        # int8 activations cost about a hundredth of the output, results in bfloat16 a quarter.
        rounded = 0.02 if "A8" in row.what or "panels" in row.what else 1e-5
        assert row.error < (0.004 if "bfloat16" in row.what else rounded), row
        assert row.peer_error is None or row.peer_error < 0.02, row


@needs_ggml
@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("shape", [(64, 256), (5, 512)])
def test_the_product_of_ggml(type_name, shape):
    generator = np.random.default_rng(0)
    blocks = gguf.quantize(generator.standard_normal(shape, np.float32), type_name)
    x = generator.standard_normal((3, shape[1]), np.float32)
    product = MatMul(blocks, type_name, 3, 1)
    product.set(x)
    product.compute()
    expected = x @ gguf.dequantize(blocks, type_name).T
    assert np.linalg.norm(product.get() - expected) < 0.02 * np.linalg.norm(expected)
    with pytest.raises(PeerError, match="x has shape"):
        product.set(x[:1])
    product.close()


def test_reading_reads_every_byte():
    table = np.arange(128 * 1000, dtype=np.int32) % 7
    assert int(read(table.view(np.uint8))) == int(table.sum())


def test_the_command_prints_and_saves(monkeypatch, tmp_path):
    row = BenchRow("W4A16", "torch 2", 0.001, 0.002, 1e-7, None, 3, "8.0 GB/s")
    monkeypatch.setattr(kernel_rows, "rows", lambda effort: iter([row]))
    threads = torch.get_num_threads()
    try:
        path = tmp_path / "kernels.json"
        run = CliRunner().invoke(
            bench_command.app, ["kernels", "--rounds", "3", "--save", str(path)]
        )
    finally:
        torch.set_num_threads(threads)
    assert run.exit_code == 0 and "2.00" in run.stdout
    saved = json.loads(path.read_text())
    assert saved["command"] == "labkit bench kernels --rounds 3 --threads 2"
    assert saved["rows"][0]["ratio"] == 2
