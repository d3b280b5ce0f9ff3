"""`labkit bench memory`: it measures what it says, and a loaded model is as small as its file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labkit.bench import bench_command, memory_models, memory_rows
from labkit.bench.memory_rows import MemoryRow
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import Effort
from labkit.core.errors import ModelError
from labkit.evaluate import resident
from labkit.models.packed import load_packed
from labkit.nn.quant_linear import QuantLinear

ROW = MemoryRow("GPTQ", "its file", 10**6, 600_000, 630_000, 700_000, 650_000)
LABELS = {
    "int4": "int4",
    "int3": "int3",
    "W8A8": "int8",
    "FP8": "fp8",
    "NF4": "nf4",
    "int8": "int8",
}


@pytest.mark.parametrize("name", list(memory_models.WRITERS))
def test_every_format_is_written_and_loaded(name, tmp_path):
    path = memory_models.place(tmp_path, name)
    memory_models.WRITERS[name](path, memory_rows.TINY)
    model, _ = load_packed(path)
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    label = next((LABELS[word] for word in LABELS if word in name), name.split()[-1])
    assert sum(label in layer.weight.form.label for layer in layers) >= 7
    held = {id(b): b.nbytes for b in model.buffers()} | {
        id(p): p.nbytes for p in model.parameters()
    }
    # Scales and slots of very small rows weigh more than they do in a model.
    assert 0.8 < sum(held.values()) / memory_models.file_bytes(path) < 1.35


def test_ratios_and_the_table():
    assert ROW.resident_ratio == pytest.approx(1.05) and ROW.ratio == pytest.approx(1 / 1.05)
    assert ROW.as_dict()["resident_ratio"] == ROW.resident_ratio
    table = memory_rows.table([ROW, MemoryRow("x", "its file", 1, 1, 1, None, 1)], 1)
    assert list(table.columns[6].cells) == ["1.05", "1.00"]
    assert list(table.columns[4].cells) == ["1", ""]


def test_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_rows, "measure", lambda name, shape, threads: ROW)
    words = ["memory", "--quick", "--save", str(tmp_path / "m.json")]
    done = CliRunner().invoke(bench_command.app, words)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert len(rows) == 3 and rows[0]["file_bytes"] == 600_000


def test_where_memory_cannot_be_read_it_says_so(monkeypatch):
    monkeypatch.setattr(resident, "available", lambda: False)
    assert [type(row) for row in memory_rows.rows(Effort())] == [str]


def test_a_process_that_fails_is_an_error(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no room")
    monkeypatch.setattr(memory_rows.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(ModelError, match="no room"):
        memory_rows.measure("GGUF Q4_0", memory_rows.TINY)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    "name", ["GPTQ int4 group 128", "compressed-tensors W8A8", "bitsandbytes int8", "GGUF Q4_K"]
)
def test_a_loaded_model_is_as_small_as_its_file(name):
    shape = LlamaShape(1024, 16, 4096, 16, 8, 8192, 512)
    row = memory_rows.measure(name, shape)
    assert row.file_bytes > 100e6
    assert row.resident_ratio <= 1.15
    assert row.peak_bytes < 1.5 * row.file_bytes  # not two copies
