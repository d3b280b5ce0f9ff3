"""`labkit gguf`: what it writes, what it says, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from labkit.formats.gguf import imatrix
from labkit.formats.gguf.reader import GgufFile
from labkit.models.gguf_command import app
from labkit.models.loading import load


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "model.gguf"
    result = run("convert", "--type", "q4_0", "--out", path)
    assert result.exit_code == 0, result.output
    assert "Q4_0: 33 F32" not in result.output
    assert "bits a weight" in result.output
    return path


def test_convert_writes_the_bundled_model_with_its_tokenizer(written: Path) -> None:
    with GgufFile(written) as file:
        assert file.metadata["general.name"] == "reference-lm"
        assert file.metadata["general.file_type"] == 2
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 4096
        assert file.tensors["blk.7.ffn_down.weight"].type_name == "Q4_0"


def test_convert_refuses_to_overwrite_without_force(written: Path, tmp_path: Path) -> None:
    before = written.read_bytes()
    result = run("convert", "--type", "F16", "--out", written)
    assert result.exit_code == 1
    assert "already" in result.output and "--force" in result.output
    assert written.read_bytes() == before
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(b"old")
    assert run("convert", "--type", "BF16", "--out", copy, "--force").exit_code == 0
    with GgufFile(copy) as file:
        assert file.metadata["general.file_type"] == 32


def test_convert_says_what_is_wrong(tmp_path: Path) -> None:
    result = run("convert", "--type", "Q4_K_XXL", "--out", tmp_path / "x.gguf")
    assert result.exit_code == 1 and "Q4_K_M" in result.output
    result = run("convert", tmp_path / "nowhere", "--out", tmp_path / "x.gguf")
    assert result.exit_code == 1 and "no such folder" in " ".join(result.output.split())
    result = run("convert", "--imatrix", tmp_path / "none.gguf", "--out", tmp_path / "x.gguf")
    assert result.exit_code == 1 and "no such file" in " ".join(result.output.split())
    assert not any(tmp_path.iterdir())


def test_fall_backs_are_said(tmp_path: Path) -> None:
    from tiny_models import tiny

    model = tiny("llama", vocab_size=4096)
    model.save_pretrained(tmp_path / "model")
    load()[1].save_pretrained(tmp_path / "model")
    result = run("convert", tmp_path / "model", "--out", tmp_path / "model.gguf")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "fell back to Q5_0" in said and "multiple of 256" in said


def test_imatrix_then_convert(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    result = run("imatrix", "--out", path, "--sequences", 3, "--length", 32)
    assert result.exit_code == 0, result.output
    matrix = imatrix.read(path)
    assert len(matrix.sums) == 8 * 7
    assert set(matrix.counts.values()) == {96}
    assert matrix.datasets == ("stdlib-code",)
    assert run("imatrix", "--out", path).exit_code == 1
    out = tmp_path / "model.gguf"
    result = run("convert", "--type", "IQ4_NL", "--imatrix", path, "--out", out)
    assert result.exit_code == 0, result.output
    with GgufFile(out) as file:
        assert file.metadata["quantize.imatrix.entries_count"] == 56


def test_unpack_writes_a_folder_that_loads(written: Path, tmp_path: Path) -> None:
    result = run("unpack", written, "--out", tmp_path / "back", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    model, tokenizer = load(str(tmp_path / "back"))
    assert model.config.num_hidden_layers == 8
    assert tokenizer("def f():")["input_ids"] == load()[1]("def f():")["input_ids"]
    assert run("unpack", written, "--out", tmp_path / "back").exit_code == 1


def test_inspect_shows_the_tensors(written: Path) -> None:
    result = run("inspect", written)
    assert result.exit_code == 0, result.output
    assert "blk.7.ffn_down.weight" in result.output
