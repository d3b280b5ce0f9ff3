"""The study of scale: what it counts, what it writes, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from labkit.core.errors import ModelError, StorageError
from labkit.core.model_shapes import MODEL_SHAPES, ModelShape
from labkit.evaluate import resident
from labkit.formats.reading import open_tensors
from labkit.models.block import Block
from labkit.models.capture import capture
from labkit.models.sources import FolderSource
from labkit.study import results, scale, scale_checkpoint, scale_cost, scale_measure, study_command

SMALL = ModelShape("small", 3, 128, 256, 4, 2, 32, 96)
on_linux = pytest.mark.skipif(not resident.available(), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "model"
    scale_checkpoint.write_random(folder, SMALL, lambda text: None, shard_bytes=2**17)
    return folder


def test_the_checkpoint_is_the_model_that_its_config_describes(checkpoint):
    assert len(list(checkpoint.glob("*.safetensors"))) > 2
    source = FolderSource(checkpoint)  # refuses whatever does not fit
    assert len(source.blocks) == 3
    tensors = open_tensors(checkpoint)
    assert {tensors.entry(name).dtype for name in tensors} == {torch.float16}
    weights = tensors["model.layers.1.mlp.down_proj.weight"].float()
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", sorted(MODEL_SHAPES))
def test_the_shapes_are_those_of_the_published_model(name):
    shape = replace(MODEL_SHAPES[name], qkv_bias=False)
    shapes = scale_checkpoint.tensor_shapes(shape)
    assert sum(torch.Size(sides).numel() for sides in shapes.values()) == shape.parameters
    every = [linear for group in scale_cost.linears_of(shape) for linear in group]
    block = [s for n, s in shapes.items() if ".layers.0." in n and len(s) == 2]
    assert Counter(every) == Counter(block)


def test_operations_are_those_that_torch_counts(checkpoint):
    """Forward passes as GPTQ makes them, counted where they happen; the Hessians beside them."""
    source = FolderSource(checkpoint)
    source.model.set_attn_implementation("eager")  # products that torch sees
    source.open_outer()
    found = capture(source.model, source.blocks, torch.randint(0, 96, (4, 24)), 2)
    module = source.open_block(0)
    block = Block("block", 0, module, source.family, found.calls(0, found.hidden))
    expected = scale_cost.gptq_operations(SMALL, 4 * 24, 24)
    inputs = []
    with FlopCounterMode(display=False) as counter:
        for group in block.groups():
            block.collect([group[0]], lambda name, x: inputs.append(x))
        list(block.run())
    assert counter.get_total_flops() == expected.forward
    with FlopCounterMode(display=False) as counter:
        for x in inputs:
            x.T @ x
    assert counter.get_total_flops() == expected.hessians
    every = [linear for group in scale_cost.linears_of(SMALL) for linear in group]
    assert expected.repair == sum(out * columns**2 for out, columns in every)


def test_twice_as_wide_is_between_four_and_eight_times_the_work():
    wide = MODEL_SHAPES["llama-2-7b"]
    halves = scale._half(wide)
    assert (halves.hidden, halves.ffn, halves.layers) == (2048, 5504, 2)
    assert 4 < scale_cost.ratio(wide, halves, 2**15, 256) < 8
    assert scale_cost.ratio(wide, wide, 2**15, 256) == 1
    # With hardly any tokens, what grows with the cube is all there is.
    assert scale_cost.ratio(wide, halves, 1, 1) == pytest.approx(8, rel=0.01)


@on_linux
def test_blocks_are_measured_one_by_one_and_the_run_ends_behind_the_last(checkpoint, tmp_path):
    said = []
    found = scale_measure.measure_gptq(checkpoint, tmp_path / "run", 2, 4, 16, said.append)
    assert [part["block"] for part in found["blocks"]] == [0, 1]
    assert len(said) == 3 and "start" in said[0]
    assert found["peak_bytes"] >= max(part["peak_bytes"] for part in found["blocks"]) > 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"block-00000.safetensors", "block-00001.safetensors"}
    assert "block-00002.safetensors" not in names
    every = scale_measure.measure_gptq(checkpoint, tmp_path / "all", 3, 4, 16, said.append)
    assert [part["block"] for part in every["blocks"]] == [0, 1, 2]


@on_linux
def test_conversion_is_measured_part_by_part(checkpoint, tmp_path):
    found = scale_measure.measure_gguf(checkpoint, tmp_path / "model.gguf", lambda text: None)
    names = [part["part"] for part in found["parts"]]
    assert sorted(names) == ["blk.0", "blk.1", "blk.2", "output", "output_norm", "token_embd"]
    assert found["weights"] == SMALL.parameters
    assert found["file_bytes"] == (tmp_path / "model.gguf").stat().st_size


@on_linux
def test_the_peak_is_that_since_the_reset():
    held = torch.ones(2**25)  # 128 MiB
    del held
    if not resident.reset_peak():
        pytest.skip("this system keeps the peak")
    before = resident.peak_bytes()
    held = torch.ones(2**25)
    assert resident.peak_bytes() - before > 100 * 2**20
    assert resident.resident_bytes() <= resident.peak_bytes()
    del held


FIGURES = {
    "model": {"hidden": 4096, "ffn": 11008, "layers": 32, "bytes": 13_476_839_424},
    "calibration": {"sequences": 128, "length": 256},
    "gptq": {
        "before_bytes": 400_000_000,
        "peak_bytes": 4_000_000_000,
        "start": {"seconds": 10.0, "peak_bytes": 10},
        "blocks": [{"seconds": s, "peak_bytes": 4_000_000_000} for s in (120.0, 100.0, 100.0)],
    },
    "gguf": {
        "peak_bytes": 1_500_000_000,
        "weights": 6_738_415_616,
        "parts": [
            {"part": "token_embd", "seconds": 2.0, "peak_bytes": 1},
            *({"part": f"blk.{i}", "seconds": 2.0, "peak_bytes": 1} for i in range(32)),
        ],
    },
    "half_width": {"blocks": [{"seconds": 20.0}, {"seconds": 15.0}]},
}


def test_extrapolation_and_the_table():
    seven, seventy = MODEL_SHAPES["llama-2-7b"], MODEL_SHAPES["llama-2-70b"]
    ahead = scale.extrapolated(FIGURES, seven, seventy)
    # The first block, in which machine code is loaded, is left out.
    assert ahead["gptq_block_seconds"] == 100 and ahead["gptq_seconds"] == 10 + 32 * 100
    times = scale_cost.ratio(seventy, seven, 2**15, 256)
    assert ahead["larger"]["gptq_seconds"] == pytest.approx(80 * 100 * times + 20)
    assert ahead["gguf_seconds"] == pytest.approx(66.0)
    assert ahead["larger"]["gguf_seconds"] == pytest.approx(66.0 * 68.98 / 6.738, rel=1e-3)
    lines = scale.readme_block(FIGURES | {"extrapolated": ahead}).splitlines()
    gptq, gguf = lines[2], lines[3]
    assert "| 3 | 100.0 | 4.00 GB | 54 min |" in gptq and gptq.count("|") == 7
    assert "| 32 | 2.0 | 1.50 GB | 66 s |" in gguf
    text = "\n".join(lines)
    assert (
        "120.0, 220.0, 320.0;" in text
        and "2.0, 4.0, 6.0; after all 32: 64.0" in text
        and "13.5 GB" in text
    )


@pytest.mark.slow
@on_linux
def test_the_quick_study_from_end_to_end(tmp_path):
    figures = scale.run(True, lambda text: None, work=tmp_path)
    assert not list(tmp_path.iterdir())
    assert len(figures["gptq"]["blocks"]) == 3
    assert len([p for p in figures["gguf"]["parts"] if p["part"].startswith("blk.")]) == 4
    # A model of 30 MB: Python and its libraries, and hardly anything more.
    assert max(figures[kind]["peak_bytes"] for kind in ("gptq", "gguf")) < 2e9
    assert figures["gguf"]["types"].keys() == {"F32", "Q4_K", "Q6_K"}
    assert "| GGUF, Q4_K_M | 4 |" in scale.readme_block(figures)


@pytest.mark.skipif(
    not (results.FOLDER / "study-scale.json").is_file(), reason="not recorded in this checkout"
)
def test_what_was_recorded():
    record = results.load("scale")
    assert record["model"]["parameters"] == MODEL_SHAPES["llama-2-7b"].parameters
    assert max(record[kind]["peak_bytes"] for kind in ("gptq", "gguf")) <= 6e9
    gptq = record["gptq"]["blocks"]
    blocks = [part for part in record["gguf"]["parts"] if part["part"].startswith("blk.")]
    assert len(gptq) >= 3 and len(blocks) == 32
    # Linear: no block takes much longer, or more memory, than the one before it.
    assert max(part["peak_bytes"] for part in gptq) < 1.1 * gptq[0]["peak_bytes"]
    assert max(p["seconds"] for p in gptq[1:]) < 1.25 * min(p["seconds"] for p in gptq[1:])
    halves = [sum(part["seconds"] for part in half) for half in (blocks[:16], blocks[16:])]
    assert 0.7 < halves[1] / halves[0] < 1.4


def test_the_whole_of_a_7b_needs_less_than_18_gb():
    seven = MODEL_SHAPES["llama-2-7b"]
    needed = scale._bytes_needed(seven, 3, scale.Calibration())
    assert 17e9 < needed < 18e9
    assert needed > scale._bytes_needed(replace(seven, layers=16), 3, scale.Calibration())


def test_a_system_that_does_not_say_its_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "none")
    with pytest.raises(ModelError, match="Linux"):
        scale.run(True, lambda text: None, work=tmp_path)


def test_too_little_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(StorageError, match="--layers"):
        scale_checkpoint.require_room(tmp_path, 10**18)


def test_nothing_is_left_when_a_measurement_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_QUICK", SMALL)
    monkeypatch.setattr(scale, "_measured", lambda words, tell: _raise(ModelError("it failed")))
    with pytest.raises(ModelError, match="it failed"):
        scale.run(True, lambda text: None, blocks=1, work=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_when_the_run_is_ended(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), scale._own_folder(tmp_path) as folder:
        (folder / "model").mkdir()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        scale._measured(["gguf", str(tmp_path), str(tmp_path / "x.gguf")], lambda text: None)


def test_blocks_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match="--blocks"):
        scale.run(True, lambda text: None, blocks=5, work=tmp_path)


def test_the_command_hands_its_options_on(monkeypatch, tmp_path):
    given = {}

    def run(quick, tell, *, blocks=3, layers=None, sequences=128, work=None):
        given.update(quick=quick, blocks=blocks, layers=layers, work=work)
        return {"fine": True}

    monkeypatch.setattr(scale, "run", run)
    monkeypatch.setattr(scale, "readme_block", lambda figures: "a table")
    saved = tmp_path / "scale.json"
    words = ["scale", "--blocks", "2", "--work", str(tmp_path), "--save", str(saved)]
    done = CliRunner().invoke(study_command.app, words)
    assert done.exit_code == 0 and "a table" in done.output, done.output
    assert given == {"quick": False, "blocks": 2, "layers": None, "work": tmp_path}
    assert json.loads(saved.read_text())["command"] == "labkit study scale --blocks 2"
    other = CliRunner().invoke(study_command.app, ["qat", "--blocks", "2"])
    assert other.exit_code == 2 and "--blocks" in other.output


def _raise(error: Exception) -> None:
    raise error
