"""Killed, interrupted, out of disk: what was finished stays, the run goes on to the same bits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny, tokens

from labkit.core.errors import FormatError, ResumeError, StorageError
from labkit.core.scheme import QuantScheme
from labkit.models.blockwise import quantize_blockwise
from labkit.models.methods import Awq, Gptq, Nf4, Rtn, SmoothQuant
from labkit.models.resume import WorkFolder

INT4 = QuantScheme(4, granularity="group", group_size=32)
METHOD = Gptq(INT4, loop="plain")
IDS = tokens(5, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("llama", num_hidden_layers=3).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    return tmp_path / "model"


def same(one, other) -> bool:
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(one.layers[name].codes, other.layers[name].codes)
        and torch.equal(one.layers[name].scale, other.layers[name].scale)
        for name in one.layers
    )


def test_sigkill_at_any_point(folder: Path, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    paths, inherited = [tests, tests.parent], os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, tests / "models" / "resume_script.py", folder, tmp_path / "runs"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), inherited])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "39 killed runs resumed to the same bits" in done.stdout


class StopError(Exception):
    """Raised in the middle of a run."""


def stop_at(layer: int, error: BaseException):
    def tick(name: str, done: int, total: int) -> None:
        if done == layer:
            raise error

    return tick


def test_ctrl_c_leaves_a_state_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    whole = quantize_blockwise(folder, METHOD, IDS, work=tmp_path / "whole")
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        quantize_blockwise(
            folder, METHOD, IDS, work=work, progress=stop_at(17, KeyboardInterrupt())
        )
    assert {path.name for path in work.iterdir()} == {
        "run.json",
        "block-00000.safetensors",
        "block-00001.safetensors",
        "inputs-00002",
    }
    told = []
    again = quantize_blockwise(
        folder, METHOD, IDS, work=work, progress=lambda *tick: told.append(tick)
    )
    assert same(whole, again)
    # Two finished blocks are told at once, and only the third is worked on.
    assert [done for _, done, _ in told] == [7, 14, *range(15, 22)]


def test_a_model_in_memory_resumes_too(tmp_path: Path) -> None:
    model, work = tiny("llama", num_hidden_layers=3), tmp_path / "work"
    whole = quantize_blockwise(model, METHOD, IDS)
    with pytest.raises(StopError):
        quantize_blockwise(model, METHOD, IDS, work=work, progress=stop_at(8, StopError()))
    again = quantize_blockwise(model, METHOD, IDS, work=work)
    assert same(whole, again)
    assert torch.equal(whole.model(IDS).logits, again.model(IDS).logits)
    finished = quantize_blockwise(model, METHOD, IDS, work=work)
    assert same(whole, finished)
    assert torch.equal(whole.model(IDS).logits, finished.model(IDS).logits)
    assert all(report.quantized is finished.layers[report.name] for report in finished.reports)


@pytest.mark.parametrize(
    "method",
    [Awq(INT4, steps=3, first_tokens=32), SmoothQuant(), Nf4()],
    ids=lambda method: method.name,
)
def test_methods_that_change_norms_too(folder: Path, tmp_path: Path, method) -> None:
    """Folded norms and biases are part of what a finished block leaves."""
    model = tiny("llama", num_hidden_layers=3)
    whole = quantize_blockwise(model, method, IDS)
    logits = whole.model(IDS).logits
    for source, work in ((model, tmp_path / "memory"), (folder, tmp_path / "disk")):
        with pytest.raises(StopError):
            quantize_blockwise(source, method, IDS, work=work, progress=stop_at(15, StopError()))
        assert (work / "block-00001.safetensors").is_file()
        again = quantize_blockwise(source, method, IDS, work=work)
        assert whole.tensors.keys() == again.tensors.keys()
        assert all(torch.equal(whole.tensors[n], again.tensors[n]) for n in whole.tensors)
        for name, quantized in whole.layers.items():
            assert torch.equal(quantized.dequantize(), again.layers[name].dequantize())
        if again.model is not None:
            assert torch.equal(again.model(IDS).logits, logits)


def test_other_settings_are_refused_and_named(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    quantize_blockwise(folder, METHOD, IDS, work=work)
    changed = [
        (replace(METHOD, damp=0.05), IDS, {}, r"settings\.damp was 0\.01 and is 0\.05"),
        (replace(METHOD, scheme=QuantScheme(3)), IDS, {}, r"settings\.scheme\.bits was 4 and is 3"),
        (Rtn(INT4), None, {}, r"settings\.method was 'gptq' and is 'rtn'"),
        (METHOD, IDS.flip(0), {}, r"calibration\.sha256 was"),
        (METHOD, IDS, {"batch_size": 3}, r"batch_size was 8 and is 3"),
        (METHOD, IDS, {"keep": ["*.0.mlp.up_proj"]}, r"keep was \[\] and is"),
    ]
    for method, ids, more, message in changed:
        with pytest.raises(ResumeError, match=message):
            quantize_blockwise(folder, method, ids, work=work, **more)
    other = tiny("llama", num_hidden_layers=3, seed=5)
    other.config.rms_norm_eps = 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ResumeError, match="model was"):
        quantize_blockwise(tmp_path / "other", METHOD, IDS, work=work)


def test_another_model_in_memory_is_refused(tmp_path: Path) -> None:
    quantize_blockwise(tiny("llama"), METHOD, IDS, work=tmp_path / "work")
    with pytest.raises(ResumeError, match="model was"):
        quantize_blockwise(tiny("llama", seed=1), METHOD, IDS, work=tmp_path / "work")


def test_a_folder_with_other_things_is_not_written_into(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "thesis.tex").write_text("")
    with pytest.raises(ResumeError, match="holds something else"):
        quantize_blockwise(folder, METHOD, IDS, work=work)
    with pytest.raises(ResumeError, match="holds something else"):
        quantize_blockwise(folder, METHOD, IDS, work=work / "thesis.tex")
    assert [path.name for path in work.iterdir()] == ["thesis.tex"]


def test_a_place_without_room_for_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        WorkFolder(tmp_path / "file" / "work", {"bits": 4})


def test_two_runs_do_not_share_a_folder(folder: Path, tmp_path: Path) -> None:
    work, seen = tmp_path / "work", []

    def second(name: str, done: int, total: int) -> None:
        with pytest.raises(ResumeError, match="another process is at work here"):
            quantize_blockwise(folder, METHOD, IDS, work=work)
        seen.append(name)

    whole = quantize_blockwise(folder, METHOD, IDS, work=work, progress=second)
    assert len(seen) == len(whole.layers)
    assert same(quantize_blockwise(folder, METHOD, IDS, work=work), whole)  # freed at the end


def test_a_full_disk_leaves_no_half_file_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    """No file may grow beyond 20 kB: the kernel refuses the write, as on a full disk."""
    whole = quantize_blockwise(folder, METHOD, IDS, work=tmp_path / "whole")
    work = tmp_path / "work"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="Nothing half-written was left"):
            quantize_blockwise(folder, METHOD, IDS, work=work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in work.iterdir() if path.name.startswith("block")]
    assert not [path for path in work.iterdir() if path.suffix == ".partial"]
    assert same(whole, quantize_blockwise(folder, METHOD, IDS, work=work))


def test_a_disk_that_fills_up_later(folder: Path, tmp_path: Path, monkeypatch) -> None:
    import labkit.formats.writing as writing

    whole = quantize_blockwise(folder, METHOD, IDS, work=tmp_path / "whole", batch_size=2)
    work, real = tmp_path / "work", writing.save_file

    def fill_at(name: str):
        def full(tensors, path, metadata):
            real(tensors, path, metadata)
            if name in str(path):
                path.write_bytes(path.read_bytes()[:100])
                raise OSError(28, "No space left on device")

        return full

    # The second block, after the inputs of the third; then those inputs, in their second batch.
    for name, left in (
        ("block-00001", ["inputs-00001", "inputs-00002"]),
        ("00001.safetensors.", ["inputs-00001"]),
    ):
        monkeypatch.setattr(writing, "save_file", fill_at(name))
        with pytest.raises(StorageError, match=rf"{name}.*No space left"):
            quantize_blockwise(folder, METHOD, IDS, work=work, batch_size=2)
        assert [path.name for path in sorted(work.glob("block*"))] == ["block-00000.safetensors"]
        assert [path.name for path in sorted(work.glob("inputs*"))] == left
        assert not list(work.glob(".*"))
    monkeypatch.setattr(writing, "save_file", real)
    assert same(whole, quantize_blockwise(folder, METHOD, IDS, work=work, batch_size=2))


def test_a_damaged_work_file_is_said(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    quantize_blockwise(folder, METHOD, IDS, work=work)
    block = work / "block-00001.safetensors"
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r"block-00001"):
        quantize_blockwise(folder, METHOD, IDS, work=work)


def test_a_lost_or_foreign_inputs_file_is_said(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    work = tmp_path / "work"
    with pytest.raises(StopError):
        quantize_blockwise(folder, METHOD, IDS, work=work, progress=stop_at(8, StopError()))
    inputs = work / "inputs-00001" / "00000.safetensors"
    save_file({"x": torch.ones(2)}, inputs)
    with pytest.raises(FormatError, match="not the inputs of a block"):
        quantize_blockwise(folder, METHOD, IDS, work=work)
    inputs.write_bytes(b"cut off")
    with pytest.raises(FormatError, match=r"inputs-00001.00000"):
        quantize_blockwise(folder, METHOD, IDS, work=work)
    inputs.unlink()
    with pytest.raises(FormatError, match="inputs-00001"):
        quantize_blockwise(folder, METHOD, IDS, work=work)
