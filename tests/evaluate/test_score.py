"""`labkit score`: the shape of its answer, the order of its rows, and refusals said aloud."""

import functools
import json

import pytest
from typer.testing import CliRunner

from labkit import models
from labkit.core.scheme import QuantScheme
from labkit.data.tasks import TASKS
from labkit.evaluate import score_command
from labkit.evaluate.score import Effort, Entry, score
from labkit.evaluate.score_chart import score_chart
from labkit.evaluate.score_entries import entries, rtn_entries
from labkit.evaluate.score_row import ScoreRow, recorded_rows
from labkit.evaluate.score_table import score_table
from labkit.models import load
from labkit.models.methods import METHODS

TINY = Effort(tokens=256, questions=4)


@functools.cache
def read_once(name=None):
    return load("reference-lm")


@pytest.fixture(scope="module")
def loaded():
    return read_once()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(models, "load", read_once)  # its tokenizer remembers the held-out text
    monkeypatch.setattr(score_command, "Effort", lambda: TINY)
    chosen = [rtn_entries()[0], rtn_entries()[2], rtn_entries()[-1]]
    monkeypatch.setattr(score_command, "entries", lambda everything: chosen)
    return chosen


def test_round_to_nearest_covers_bits_and_granularities_with_fp32_first():
    labels = [entry.label for entry in rtn_entries()]
    assert labels[0] == "FP32" and len(labels) == 13 == len(set(labels))
    for bits in (8, 4, 3, 2):
        for granularity in ("tensor", "channel", "group 64"):
            assert f"RTN int{bits} sym {granularity}" in labels


def test_every_method_has_a_row_in_the_default_table():
    labels = [entry.label for entry in entries()]
    assert labels[0] == "FP32" and len(labels) == len(set(labels))
    for method in ("RTN", "LLM.int8()", "SmoothQuant", "NF4", "HQQ", "AWQ", "GPTQ", "GGUF"):
        assert any(label.startswith(method) for label in labels), method


def test_all_holds_every_row_and_each_method_of_labkit():
    everything = entries(everything=True)
    labels = [entry.label for entry in everything]
    assert {entry.label for entry in entries()} < set(labels) and len(labels) == len(set(labels))
    methods = {entry.method.name for entry in everything if entry.method is not None}
    assert methods == set(METHODS)


def test_recorded_rows_are_the_rows_of_the_table():
    labels = [row.method for row in recorded_rows()]
    assert labels == [entry.label for entry in entries()]


def test_json(quick, monkeypatch):
    monkeypatch.setenv("LABKIT_MODEL", "reference-lm")
    result = CliRunner().invoke(score_command.app, ["--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["method"] for row in rows] == [entry.label for entry in quick]
    for row in rows:
        assert set(row) == {"method", "bits_per_weight", "megabytes", "perplexity", "tasks"}
        assert set(row["perplexity"]) == {"stdlib-prose", "stdlib-code"}
        assert set(row["tasks"]) == set(TASKS)
    assert rows[0]["bits_per_weight"] == 32
    assert rows[0]["megabytes"] > rows[1]["megabytes"] > rows[2]["megabytes"]


def test_table_and_chart(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_MODEL", "reference-lm")
    path = tmp_path / "chart.png"
    result = CliRunner().invoke(score_command.app, ["--chart", str(path)])
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "FP32" in result.stdout


def test_a_missing_model_is_an_error_not_a_traceback():
    result = CliRunner().invoke(score_command.app, ["--model", "./nowhere"])
    assert result.exit_code == 1 and "nowhere" in result.output


def test_a_refused_method_is_reported_and_the_rest_goes_on(loaded):
    bad = Entry("odd group", QuantScheme(4, granularity="group", group_size=100))
    results = [result for _, result in score(*loaded, [bad, entries()[0]], TINY)]
    assert "100" in str(results[0]) and not isinstance(results[0], ScoreRow)
    assert isinstance(results[1], ScoreRow)


def test_quantization_matters(loaded):
    """What the course is built on: 8 bits a row are harmless, 4 bits a matrix are not."""
    wanted = {"FP32", "RTN int8 sym channel", "RTN int4 sym tensor", "RTN int2 sym channel"}
    chosen = [entry for entry in rtn_entries() if entry.label in wanted]
    rows = {e.label: row for e, row in score(*loaded, chosen, Effort(2048, 256, questions=1))}
    mean = {label: sum(row.perplexity.values()) for label, row in rows.items()}
    assert mean["RTN int8 sym channel"] < 1.01 * mean["FP32"]
    assert mean["RTN int4 sym tensor"] > 1.05 * mean["FP32"]
    assert mean["RTN int2 sym channel"] > 2 * mean["FP32"]


def test_a_gguf_row_counts_every_matrix_and_costs_what_its_bits_say(loaded):
    chosen = [entries()[0], Entry("GGUF Q8_0", gguf="Q8_0"), Entry("GGUF Q2_K", gguf="Q2_K")]
    full, eight, two = (row for _, row in score(*loaded, chosen, TINY))
    assert eight.bits_per_weight == pytest.approx(8.5, abs=0.001)
    assert eight.megabytes == pytest.approx(full.megabytes * 8.5 / 32, rel=0.01)
    for name, value in full.perplexity.items():
        assert eight.perplexity[name] == pytest.approx(value, rel=0.01)
        assert two.perplexity[name] > value * 1.02


def test_the_record_says_how_to_make_it_again(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_MODEL", "reference-lm")
    monkeypatch.setattr(score_command, "THOROUGH", TINY)
    path = tmp_path / "score.json"
    for flags in ([], ["--all"], ["--all", "--thorough"]):
        result = CliRunner().invoke(score_command.app, [*flags, "--save", str(path)])
        assert result.exit_code == 0, result.output
        assert json.loads(path.read_text())["command"] == " ".join(["labkit score", *flags])


def _row(method, bits, value):
    return ScoreRow(method, bits, bits, {"a": value, "b": value}, {"t": 1 / value})


def test_table_shows_differences_from_the_first_row():
    rows = [_row("FP32", 32, 2.0), _row("RTN int4 sym channel", 4, 2.5)]
    table = score_table(rows, "title")
    cells = list(table.columns[3].cells)
    assert cells == ["2.00", "2.50 +0.50"]
    assert list(table.columns[5].cells) == ["50 %", "40 % -10"]


def test_chart_draws_each_row_at_its_bits():
    rows = [_row("FP32", 32, 2.0), _row("RTN int4 sym channel", 4.5, 2.5)]
    left = score_chart(rows).axes[0]
    assert left.lines[0].get_xydata().tolist() == [[4.5, 2.5]]
