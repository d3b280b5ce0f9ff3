"""`labkit qat`: from a folder to a folder, killed and resumed, and one line for what is wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from typer.testing import CliRunner

from labkit import formats
from labkit.data import load_corpus
from labkit.evaluate.perplexity import perplexity
from labkit.formats import writing
from labkit.models import bundled_folder
from labkit.models.loading import load
from labkit.training import qat_run
from labkit.training.divergence import diverged
from labkit.training.qat_command import app

STEPS = 24
SMALL = ["--rows", 2, "--length", 16, "--sequences", 4, "--evaluate-tokens", 64, "--save-every", 1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A random model with the bundled tokenizer, and a text beside it."""
    folder = tmp_path_factory.mktemp("source")
    tiny("llama", vocab_size=4096).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_bytes((bundled_folder() / name).read_bytes())
    lines = [f"Line {i} of the text says {i * i} and then {i * 7 % 13}." for i in range(200)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    return folder


def words(source: Path, out: Path, *more: object) -> list[str]:
    fixed = [source / "model", "--out", out, "--corpus", source / "text.txt", *SMALL]
    return [str(word) for word in (*fixed, "--steps", STEPS, *more)]


def run(source: Path, out: Path, *more: object):
    return CliRunner().invoke(app, words(source, out, *more))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A run that nothing stopped: its folder and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = run(source, out)
    assert done.exit_code == 0, done.output
    return out, done.output


def heldout(source: Path, folder: Path) -> float:
    model, tokenizer = load(str(folder))
    text = load_corpus(str(source / "text.txt"), "heldout").text
    return perplexity(model, tokenizer, text, 16, max_tokens=64).value


def test_a_folder_becomes_a_trained_folder(source, whole):
    out, said = whole
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert formats.detect(out) == "gptq" and len(formats.load(out).layers) == 14
    figures = [float(word) for word in said.replace("│", " ").split() if word.count(".") == 1
               and word.replace(".", "").isdigit()]  # fmt: skip
    before, start, trained = figures[-3:]
    assert before == pytest.approx(heldout(source, source / "model"), abs=1e-3)
    assert trained == pytest.approx(heldout(source, out), abs=1e-3)
    assert start != trained


def test_a_killed_run_goes_on_to_the_same_bits(source, whole, tmp_path):
    out = tmp_path / "out"
    program = "import sys; from labkit.training.qat_command import app; app(args=sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words(source, out)],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    checkpoint = tmp_path / "out.work" / "training" / "training.safetensors"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint in five minutes"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    refused = run(source, out)
    assert refused.exit_code == 1 and "unfinished run" in refused.output
    other = run(source, out, "--resume", "--lr", "0.002")
    assert other.exit_code == 1 and "settings.lr was 0.001" in " ".join(other.output.split())
    done = run(source, out, "--resume")
    assert done.exit_code == 0, done.output
    for file in whole[0].iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rounded_inputs_go_to_compressed_tensors(source, tmp_path):
    out = tmp_path / "out"
    done = run(source, out, "--bits", 4, "--activations", 8, "--start", "rtn", "--steps", 2)
    assert done.exit_code == 0, done.output
    assert formats.detect(out) == "compressed-tensors"
    assert len(formats.load(out).inputs) == 14
    again = run(source, out, "--bits", 4, "--granularity", "group", "--group-size", 32,
                "--steps", 2, "--force")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert formats.detect(out) == "gptq"
    assert formats.load(out).layers["model.layers.0.mlp.up_proj"].scheme.group_size == 32


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bits", 12], "12 bits"),
        (["--bits", 5], "GPTQ holds 2, 3, 4 or 8 bits"),
        (["--granularity", "row"], "Choose channel or group"),
        (["--group-size", 32], "Add --granularity group"),
        (["--granularity", "group", "--group-size", 48], "in layer model.layers.0"),
        (["--activations", 4], "Choose 8"),
        (["--activations", 8, "--format", "gptq"], "holds no rounded inputs"),
        (["--format", "zip"], "no format 'zip'"),
        (["--start", "awq"], "Choose gptq or rtn"),
        (["--optimizer", "sgd"], "one of adamw, muon"),
        (["--steps", 0], "Counts are at least 1"),
        (["--corpus", "/nowhere.txt"], "no corpus named"),
        (["--length", 65], "sequences of 65 tokens for a model of 64 positions"),
        (["--sequences", 100_000], "sequences, no more"),
        (["--resume"], "no run to go on with"),
    ],
)
def test_what_is_wrong_is_said_before_training(source, tmp_path, monkeypatch, more, message):
    monkeypatch.setattr(qat_run, "train", None)
    done = run(source, tmp_path / "out", *more)
    assert done.exit_code == 1, done.output
    assert message in " ".join(done.output.split()) and "Traceback" not in done.output
    assert not list(tmp_path.iterdir())  # nor anything that the corrected command would meet


def test_a_folder_that_is_there_is_left_alone(source, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    done = run(source, tmp_path)
    assert done.exit_code == 1 and "something already" in done.output and "--force" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("option", ["--out", "--work"])
def test_a_place_that_cannot_be_written_to_is_said_at_once(source, tmp_path, option):
    (tmp_path / "file").write_text("x")
    done = run(source, tmp_path / "out", option, tmp_path / "file" / "folder")
    assert done.exit_code == 1
    assert "nothing can be written there" in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_ctrl_c_leaves_nothing_half_and_says_how_to_go_on(source, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(qat_run, "train", interrupted)
    done = run(source, tmp_path / "out", "--start", "rtn")
    assert done.exit_code == 130 and "With --resume" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]


def test_a_run_that_diverges_says_why(source, tmp_path, monkeypatch):
    def wild(*args, **kwargs):
        raise diverged(7, "the loss is nan", 1e-3)

    monkeypatch.setattr(qat_run, "train", wild)
    done = run(source, tmp_path / "out", "--start", "rtn")
    said = " ".join(done.output.split())
    assert done.exit_code == 1 and "training step 7: the loss is nan" in said
    assert "Lower lr" in said and not (tmp_path / "out").exists()


def test_a_full_disk_keeps_the_work_and_leaves_no_folder(source, tmp_path, monkeypatch):
    keep = writing.save_file

    def full(tensors, path, metadata=None):
        # The trial before training has room; what is written behind it has none.
        if "trial" not in str(path) and "training" not in str(path) and "work" not in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return keep(tensors, path, metadata)

    monkeypatch.setattr(writing, "save_file", full)
    settings = ["--start", "rtn", "--steps", 2]
    done = run(source, tmp_path / "out", *settings)
    assert done.exit_code == 1 and "No space left" in " ".join(done.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]
    monkeypatch.setattr(writing, "save_file", keep)
    done = run(source, tmp_path / "out", *settings, "--resume")
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
