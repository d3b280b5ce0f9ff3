"""`labkit gguf inspect`: tables to read, JSON for programs, and no trust in what a file says."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from formats.gguf.files import METADATA, TENSORS, write_example
from labkit.formats.gguf.inspect_command import inspect
from labkit.formats.gguf.values import Kind, Value, array, f32, string

app = typer.Typer()
app.command()(inspect)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tables(tmp_path, run):
    path = write_example(tmp_path / "a.gguf")
    result = run(path)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    size = path.stat().st_size
    assert f"{size:,} bytes, 4 tensors, 293 weights of 14.580 bits" in " ".join(lines)
    assert "general.architecture string llama" in lines
    assert "scores array of float32 2: 0.5, -1" in lines
    assert "Q8_0 1 192 204 " + f"{204 / size:.2%} 8.5" in lines
    begin = size - 32 - 64 - 224 - 256
    assert f"norm.weight F32 64 256 {begin} {256 / size:.2%} 32" in lines
    assert f"half.weight F16 2 x 3 x 5 60 {begin + 480:,} {60 / size:.2%} 16" in lines


def test_a_narrow_terminal_cuts_no_number(tmp_path, run, monkeypatch):
    path = write_example(tmp_path / "a.gguf", {"epsilon": f32(1e-5)})
    wide = run(path).output
    monkeypatch.setenv("COLUMNS", "40")
    assert run(path).output.split() == wide.split()
    assert "float32 1e-05" in " ".join(wide.split())


def test_json(tmp_path, run):
    path = write_example(tmp_path / "a.gguf")
    found = json.loads(run(path, "--json").output)
    assert found["nbytes"] == path.stat().st_size
    assert (found["version"], found["alignment"], found["tensor_count"]) == (3, 32, 4)
    assert list(found["metadata"]) == list(METADATA)
    assert found["metadata"]["answer"] == {"kind": "int32", "value": -42}
    assert found["metadata"]["tokens"]["count"] == 5
    assert found["metadata"]["tokens"]["first"] == METADATA["tokens"].value
    for row, declared in zip(found["tensors"], TENSORS, strict=True):
        assert (row["name"], tuple(row["shape"]), row["type"]) == (
            declared.name,
            declared.shape,
            declared.type_name,
        )
    assert found["weights"] == sum(row["weights"] for row in found["types"]) == 293
    stored = sum(row["nbytes"] for row in found["tensors"])
    assert found["bits_per_weight"] == stored * 8 / 293
    assert sum(row["share"] for row in found["types"]) == pytest.approx(stored / found["nbytes"])


def test_a_long_array_is_cut(tmp_path, run):
    many = {"tokens": array(Kind.STRING, [f"t{i}" for i in range(1000)])}
    path = write_example(tmp_path / "a.gguf", many)
    assert "1,000: t0, t1, t2, t3, t4, t5, t6, t7, ..." in run(path).output
    assert len(json.loads(run(path, "--json").output)["metadata"]["tokens"]["first"]) == 8


def test_what_could_steer_the_terminal_is_escaped(tmp_path, run):
    evil = {"name": string("\x1b[31mred\x07\r\n[bold]not bold[/bold]"), "\x1b]0;title": f32(1)}
    output = run(write_example(tmp_path / "a.gguf", evil)).output
    assert "\x1b" not in output and "\x07" not in output and "\r" not in output
    assert r"\x1b[31mred\x07\r\n[bold]not bold[/bold]" in output
    assert r"\x1b]0;title" in output


def test_numbers_that_json_does_not_have(tmp_path, run):
    odd = {"nan": f32(float("nan")), "inf": array(Kind.FLOAT64, [float("-inf")])}
    path = write_example(tmp_path / "a.gguf", odd)
    found = json.loads(run(path, "--json").output, parse_constant=pytest.fail)
    assert found["metadata"]["nan"]["value"] == "nan"
    assert found["metadata"]["inf"]["first"] == ["-inf"]


def test_a_file_without_tensors(tmp_path, run):
    from labkit.formats.gguf.writer import GgufWriter

    with GgufWriter(tmp_path / "a.gguf", {"k": Value(Kind.BOOL, True)}, []):
        pass
    found = json.loads(run(tmp_path / "a.gguf", "--json").output)
    assert found["bits_per_weight"] == 0 and found["types"] == []
    assert run(tmp_path / "a.gguf").exit_code == 0


def test_a_damaged_file(tmp_path, run):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF[red]" + bytes(20))
    result = run(path)
    assert result.exit_code == 1 and not isinstance(result.exception, FileNotFoundError)
    assert "not a valid GGUF file" in result.stderr
    assert run(tmp_path / "none.gguf").exit_code == 1
