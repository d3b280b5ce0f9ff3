"""`labkit quantize`: words to settings, a folder to a folder, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from labkit.core.errors import SchemeError
from labkit.core.scheme import QuantScheme
from labkit.formats import detect
from labkit.formats import load as load_format
from labkit.models import bundled_folder
from labkit.models.method_settings import method_from_words
from labkit.models.quantize_command import app

TEXT = ["--sequences", "4", "--length", "32"]


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_words_become_settings() -> None:
    method = method_from_words(
        "gptq", ["damp=0.05", "act_order=true", "scale_dtype=float32", "loop=plain"], bits=3
    )
    assert method.damp == 0.05 and method.act_order is True and method.loop == "plain"
    assert method.scale_dtype is torch.float32
    assert method.scheme == QuantScheme(3, True, "group", 128, narrow_range=False)
    assert method_from_words("gptq", ["damp=1"]).damp == 1.0
    assert method_from_words("rtn", group_size=0).scheme.granularity == "channel"
    assert method_from_words("hqq", bits=3, group_size=32).group_size == 32
    assert method_from_words("awq").scheme == QuantScheme(
        4, False, "group", 128, narrow_range=False
    )
    assert method_from_words("smoothquant", ["alpha=null"]).alpha is None


@pytest.mark.parametrize(
    ("name", "settings", "grid", "message"),
    [
        ("magic", [], {}, r"no method 'magic'.*rtn, gptq"),
        ("gptq", ["dampp=1"], {}, r"'dampp=1' is no setting of gptq.*damp, act_order"),
        ("gptq", ["damp"], {}, "no setting"),
        ("gptq", ["scheme=4"], {}, "no setting"),
        ("gptq", ["damp=much"], {}, r"'damp=much' cannot be read"),
        ("gptq", ["damp=true"], {}, "cannot be read"),
        ("gptq", ["act_order=1"], {}, "cannot be read"),
        ("gptq", ["block_size=1.5"], {}, "cannot be read"),
        ("gptq", ["scale_dtype=nn"], {}, "cannot be read"),
        ("gptq", [], {"bits": 99}, "99"),
        ("nf4", [], {"bits": 4}, r"bits given for nf4, whose grid is its own"),
        ("hqq", [], {"symmetric": True}, "symmetric given for hqq"),
    ],
)
def test_wrong_words_are_refused(name: str, settings: list, grid: dict, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        method_from_words(name, settings, **grid)


def test_a_folder_becomes_a_folder(tmp_path: Path) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = run(
        bundled_folder(), "--method", "gptq", "--bits", 4, "--group-size", 128, "--out", out,
        "--format", "gptq", "--report", report, "--set", "damp=0.02", "--set", "loop=plain", *TEXT,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (
        "56 layers, 4.125 bits a weight" in done.output and "128 calibration tokens" in done.output
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "report.json"]
    figures = json.loads(report.read_text())
    assert len(figures) == 56 and figures[0]["damp"] == 0.02
    checkpoint = load_format(out)
    assert len(checkpoint.layers) == 56 and "tokenizer.json" in checkpoint.files
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["damp_percent"] == 0.02 and settings["bits"] == 4


@pytest.mark.parametrize(
    ("method", "form", "settings"),
    [
        ("rtn", "gptq", []),
        ("awq", "awq", ["steps=2", "clip=false"]),
        ("nf4", "bitsandbytes", []),
        ("smoothquant", "compressed-tensors", []),
    ],
)
def test_each_method_is_written_in_its_own_format(
    tmp_path: Path, method: str, form: str, settings: list[str]
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    done = run(bundled_folder(), "--method", method, "--out", tmp_path / "out", *words, *TEXT)
    assert done.exit_code == 0, done.output
    assert detect(tmp_path / "out") == form
    checkpoint = load_format(tmp_path / "out")
    assert len(checkpoint.layers) == 56
    # SmoothQuant is W8A8: whoever reads the folder must quantize the inputs too.
    assert len(checkpoint.inputs) == (56 if method == "smoothquant" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "magic"], "no method 'magic'"),
        (["--method", "hqq"], "no format holds what hqq makes"),
        (["--method", "llm_int8"], "no format holds what llm_int8 makes"),
        (["--format", "zip"], "no format 'zip'"),
        (["--corpus", "/nowhere.txt"], "no corpus named"),
        (["--sequences", "10000000"], "sequences, no more"),
        (["--keep", "lm_head"], "no layer is named 'lm_head'"),
        (["--group-size", "96"], "model.layers.0"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = run(bundled_folder(), "--out", tmp_path / "out", *TEXT, *words)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split()) and "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    done = run(bundled_folder(), "--out", tmp_path)
    assert done.exit_code == 1 and "something already" in done.output
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch) -> None:
    import labkit.models.blockwise as blockwise

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(blockwise, "quantize_blockwise", interrupted)
    done = run(bundled_folder(), "--out", tmp_path / "out", "--method", "rtn")
    assert done.exit_code == 130 and "goes on from" in done.output


def test_the_bar_shows_layer_count_and_time_left() -> None:
    from io import StringIO

    from rich.console import Console

    from labkit.models.progress import layer_progress

    text = StringIO()
    with layer_progress(Console(file=text, force_terminal=True, width=140)) as tick:
        tick("model.layers.0.mlp.up_proj", 3, 14)
    shown = text.getvalue()
    assert "model.layers.0.mlp.up_proj" in shown and "3/14" in shown and "left" in shown
