"""The benches of a card, without one: the same code with kernels interpreted, or on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from labkit.bench import bench_command, devices, gpu_peers, gpu_rows, race, vram_rows
from labkit.bench.random_gguf import LlamaShape
from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import PeerMissingError, SchemeError
from labkit.evaluate import resident

without_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (optional)")
def test_both_sides_of_every_row_compute_the_product():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("gpu_rows_script.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    missing = [row["missing"] for row in rows if "missing" in row]
    rows = [row for row in rows if "what" in row]
    pairs = {(row["what"].split(",")[0], row["peer"].split(", ")[-1]) for row in rows}
    assert pairs - {("W4A16 group 128", "int4 weight-only")} == {
        ("W4A16 group 128", "bfloat16 matmul"),
        ("W4A16 group 128", "copy bandwidth"),
        ("NF4 block 64", "gemv_4bit"),
        ("NF4 block 64", "copy bandwidth"),
        ("FP8", "_scaled_mm"),
        ("FP8", "copy bandwidth"),
        ("W8A8", "scaled"),
    }
    tokens = [row["what"].split(", ")[2] for row in rows if row["peer"].endswith("matmul")]
    assert tokens == ["1 token", "2 tokens", "4 tokens", "8 tokens", "16 tokens"]
    assert all("torchao" in reason for reason in missing) and len(missing) <= 1
    for row in rows:
        assert row["seconds"] > 0 and row["peer_seconds"] > 0
        assert row["error"] < (1e-6 if "W8A8" in row["what"] else 0.005), row  # bfloat16's own
        assert row["peer_error"] is None or row["peer_error"] < 0.005, row


@without_card
@pytest.mark.parametrize("group", sorted(bench_command.CARD_MODULES))
def test_without_a_card_it_says_so(group, tmp_path):
    words = [group, "--device", "cuda", "--quick", "--save", str(tmp_path)]
    done = CliRunner().invoke(bench_command.app, words)
    assert done.exit_code == 1 and "no CUDA device" in done.output
    assert not list(tmp_path.iterdir())
    done = CliRunner().invoke(bench_command.app, [group, "--device", "tpu"])
    assert done.exit_code == 1 and "Choose from cpu, cuda" in done.output


def test_the_record_is_named_after_the_card(monkeypatch, tmp_path):
    row = BenchRow("W4A16", "copy bandwidth", 1.0, 0.5, None, None, 1)
    monkeypatch.setattr(gpu_rows, "rows", lambda effort, device: iter([row]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA A10 (24 GB)")
    words = ["kernels", "--device", "cuda", "--save", str(tmp_path)]
    done = CliRunner().invoke(bench_command.app, words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "bench-kernels-nvidia-a10-24-gb.json").read_text())
    assert record["command"] == "labkit bench kernels --device cuda --rounds 5 --threads 2"
    assert record["rows"][0]["ratio"] == 0.5
    monkeypatch.setattr("labkit.bench.kernel_rows.rows", lambda effort: iter([row]))
    done = CliRunner().invoke(bench_command.app, ["kernels", "--save", str(tmp_path)])
    assert done.exit_code == 0 and (tmp_path / "bench-kernels.json").is_file(), done.output


def test_a_copy_counts_for_the_bytes_that_were_asked_for():
    """Twice the buffer goes over the bus, and the weight is read once."""
    copy = gpu_peers.copying(500, CPU, buffer=1000)
    copied = copy.calls[0]()
    assert copied.numel() == 1000 and bool((copied == 1).all())
    ours = race.Contestant("", [lambda: torch.ones(1)], None)
    (row,) = race.race("x", ours, [copy], 500, 3, lambda calls: [8.0])
    assert row.peer_seconds == 8.0 * 500 / 2000 and row.ratio == 0.25


def test_time_of_the_card_is_that_between_two_events(monkeypatch):
    """A card that takes notes: it sleeps until all calls are queued, then runs them."""
    notes: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            notes.append("event")

        def synchronize(self) -> None:
            notes.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 6.0

    card = SimpleNamespace(
        Event=Event,
        synchronize=lambda: notes.append("wait"),
        _sleep=lambda cycles: notes.append("sleep") if cycles > 0 else None,
    )
    monkeypatch.setattr(race.torch, "cuda", card)
    calls = [lambda n=n: notes.append(f"call {n}") for n in range(3)]
    assert race.on_the_card(calls) == [pytest.approx(0.002)]
    three = ["call 0", "call 1", "call 2"]
    assert notes == [*three, "wait", "sleep", "event", *three, "event", "wait"]


def test_an_old_card_has_no_fp8(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    x = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(PeerMissingError, match="no FP8"):
        gpu_peers.scaled_mm(None, x, 1)


def test_devices():
    assert devices.found("cpu") == CPU and devices.slug("cpu") == "cpu"
    with pytest.raises(SchemeError, match="cpu, cuda"):
        devices.found("mps")


@pytest.mark.skipif(not resident.available(), reason="memory is read from /proc")
def test_a_model_is_built_layer_by_layer_and_generates(monkeypatch):
    monkeypatch.setattr(vram_rows, "PROMPT", 8)
    monkeypatch.setattr(vram_rows, "NEW", 4)
    made = []
    layer = vram_rows._layer
    monkeypatch.setattr(vram_rows, "_layer", lambda *a: made.append(a[:2]) or layer(*a))
    shape = LlamaShape(256, 2, 512, 4, 2, 512, 512)
    row = vram_rows.measure(shape, CPU)
    assert len(made) == 14  # each once
    linear = sum(rows * columns for rows, columns in made)
    tables = 2 * 512 * 256 + 5 * 256
    assert row.parameters == linear + 2 * 512 * 256
    # Codes, scales in groups of 128, and the order of the columns; tables in bfloat16.
    order = sum(4 * columns for _, columns in made)
    assert row.file_bytes == linear // 2 + linear // 128 * 2 + order + 2 * tables
    assert row.peak_bytes >= row.resident_bytes and "8 + 4 tokens, cpu" in row.what
    assert vram_rows.table([row], 1).row_count == 1
    monkeypatch.setattr(vram_rows, "QUICK", shape)
    (quick,) = vram_rows.rows(Effort(quick=True, rounds=1, threads=1), "cpu")
    assert quick.file_bytes == row.file_bytes


def test_the_whole_model_is_a_7b():
    shapes = []
    real, vram_rows.measure = vram_rows.measure, lambda shape, device: shapes.append(shape)
    try:
        list(vram_rows.rows(Effort(), "cpu"))
    finally:
        vram_rows.measure = real
    assert 6.7e9 < shapes[0].parameters < 6.8e9 and shapes[0].context == 512 + 64
