"""What `labkit bench` prints and keeps; the measuring itself is not timed here."""

from __future__ import annotations

import importlib
import json

import numba
import pytest
import torch
from typer.testing import CliRunner

from labkit.bench import bench_command, gptq_rows, harness, quantizers
from labkit.bench.chart import ratio_chart
from labkit.bench.rows import BenchRow, Effort, alternate
from labkit.core.errors import FormatError, PeerMissingError, SchemeError

ROW = BenchRow("GPTQ", "AutoGPTQ", 0.5, 4.0, 0.1, 0.2, rounds=2)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def two_sources(monkeypatch):
    """One that has a row, one whose peer is missing."""
    for name, result in (("fine", ROW), ("missing", PeerMissingError("no environment"))):
        module = type("Source", (), {"rows": staticmethod(lambda effort, r=result: _yield(r))})
        monkeypatch.setitem(__import__("sys").modules, f"tests_bench_{name}", module)
    sources = {"fine": "tests_bench_fine", "missing": "tests_bench_missing"}
    monkeypatch.setattr(quantizers, "SOURCES", sources)
    monkeypatch.setattr(bench_command, "SOURCES", sources)


def _yield(result):
    if isinstance(result, Exception):
        raise result
    yield result


def test_a_missing_peer_is_shown_and_the_others_go_on(two_sources, tmp_path):
    saved = tmp_path / "bench.json"
    done = CliRunner().invoke(
        bench_command.app, ["quantizers", "--quick", "--threads", "1", "--save", str(saved)]
    )
    assert done.exit_code == 0, done.output
    assert "8.00" in done.output and "no environment" in done.output
    record = json.loads(saved.read_text())
    assert record["command"] == "labkit bench quantizers --quick --threads 1"
    assert record["rows"][0]["ratio"] == 8.0 and "cpu" in record["made_with"]
    assert record["rows"][0]["threads"] == 1


def test_json_and_a_choice(two_sources):
    done = CliRunner().invoke(bench_command.app, ["quantizers", "--only", "fine", "--json"])
    assert '"ratio": 8.0' in done.output
    assert CliRunner().invoke(bench_command.app, ["quantizers", "--only", "x"]).exit_code == 2


def test_without_a_group_it_says_what_there_is():
    done = CliRunner().invoke(bench_command.app, [])
    assert done.exit_code == 0
    commands = {command.name or command.callback.__name__ for command in app_commands()}
    assert commands == set(bench_command.GROUPS)
    for name in bench_command.GROUPS:
        assert f" {name} " in done.output
    assert "labkit bench gguf --rounds 5" in done.output  # the record that is there


def app_commands():
    return bench_command.app.registered_commands


@pytest.mark.parametrize("group", bench_command.GROUPS)
def test_every_group_has_the_same_options(group):
    help_text = CliRunner().invoke(bench_command.app, [group, "--help"], terminal_width=100).output
    for option in ("--quick", "--rounds", "--threads", "--json", "--save", "--chart"):
        assert option in help_text, option


def test_options_that_cannot_be_meant(two_sources, tmp_path):
    for words in (["--threads", "0"], ["--save", str(tmp_path / "no" / "x.json")]):
        done = CliRunner().invoke(bench_command.app, ["quantizers", "--only", "fine", *words])
        assert done.exit_code == 2, words


def test_what_was_quick_says_so_and_is_no_record_of_the_course(two_sources, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path.resolve())
    words = ["quantizers", "--only", "fine", "--quick"]
    for place in (tmp_path, tmp_path / "x.json"):
        done = CliRunner().invoke(bench_command.app, [*words, "--save", str(place)])
        assert done.exit_code == 2 and "without --quick" in done.output
    assert not list(tmp_path.iterdir())
    assert "Quick: small problems" in CliRunner().invoke(bench_command.app, words).output
    shown = CliRunner().invoke(bench_command.app, [*words, "--json"]).stdout
    assert json.loads(shown)["quick"] is True
    done = CliRunner().invoke(bench_command.app, [*words[:-1], "--save", str(tmp_path)])
    assert done.exit_code == 0 and "Quick" not in done.output
    assert (tmp_path / "bench-quantizers.json").is_file()


def test_two_numbers_of_threads_and_a_chart(two_sources, tmp_path):
    chart, saved = tmp_path / "chart.png", tmp_path / "bench.json"
    words = ["--threads", "1,2", "--chart", str(chart), "--save", str(saved), "--only", "fine"]
    done = CliRunner().invoke(bench_command.app, ["quantizers", *words])
    assert done.exit_code == 0, done.output
    assert "1 thread each" in done.output and "2 threads each" in done.output
    assert chart.read_bytes().startswith(b"\x89PNG")
    record = json.loads(saved.read_text())
    assert record["command"] == "labkit bench quantizers --only fine --rounds 5 --threads 1,2"
    assert [row["threads"] for row in record["rows"]] == [1, 2]


def test_a_group_that_fails_says_why(two_sources, monkeypatch, tmp_path):
    def compare(names, effort):
        raise SchemeError("no such grid")
        yield

    monkeypatch.setattr(bench_command, "compare", compare)
    saved = tmp_path / "bench.json"
    done = CliRunner().invoke(bench_command.app, ["quantizers", "--save", str(saved)])
    assert done.exit_code == 1 and "no such grid" in done.output
    assert not saved.exists()


@pytest.mark.parametrize("group", sorted(bench_command.MODULES))
def test_groups_of_one_module_are_shown_and_kept(group, monkeypatch, tmp_path):
    module = importlib.import_module(bench_command.MODULES[group])
    row = ROW
    if group == "memory":
        row = module.MemoryRow("GGUF Q4_K", "its file", 1000, 100, 110, 150, 120)
    monkeypatch.setattr(module, "rows", lambda effort: iter(["a peer is missing", row]))
    saved, chart = tmp_path / "x.json", tmp_path / "x.png"
    words = [group, "--quick", "--threads", "2", "--save", str(saved), "--chart", str(chart)]
    done = CliRunner().invoke(bench_command.app, words)
    assert done.exit_code == 0, done.output
    assert "a peer is missing" in done.output and row.what in done.output
    record = json.loads(saved.read_text())
    assert record["command"] == f"labkit bench {group} --quick --threads 2"
    assert record["rows"] == [{"threads": 2} | row.as_dict()]
    assert chart.stat().st_size > 1000


def test_bars_say_which_side_is_ahead():
    rows = [ROW, BenchRow("NF4", "bitsandbytes", 2.0, 1.0, None, None, rounds=1)]
    axes = ratio_chart(rows, "quantizers", "times as fast").axes[0]
    assert [round(bar.get_x() + bar.get_width(), 6) for bar in axes.patches] == [8.0, 0.5]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "GPTQ  |  AutoGPTQ",
        "NF4  |  bitsandbytes",
    ]
    with pytest.raises(FormatError, match="no rows"):
        ratio_chart([], "quantizers", "times as fast")


def test_both_sides_take_turns():
    turns = []

    def theirs():
        turns.append("theirs")
        return 2.0

    _, peer = alternate(lambda: turns.append("ours"), theirs, rounds=2)
    assert turns == ["theirs", "ours", "ours"] * 2 and peer == 2.0


def test_relative_error_is_that_of_the_outputs():
    generator = torch.Generator().manual_seed(0)
    x, weight, noise = (torch.randn(n, 8, generator=generator) for n in (50, 4, 4))
    hessian = 2 / 50 * x.T @ x
    expected = float((x @ noise.T).norm() / (x @ weight.T).norm())
    found = gptq_rows.relative_error(weight, weight - noise, hessian)
    assert found == pytest.approx(expected, rel=1e-4)


def test_rows_of_gptq_name_a_missing_peer(monkeypatch, tmp_path):
    from labkit.peers import environments

    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.delenv("LABKIT_PEERS", raising=False)
    monkeypatch.setattr(gptq_rows, "problem", lambda size: PROBLEM(64))
    with pytest.raises(PeerMissingError, match="make card-env"):
        next(iter(gptq_rows.rows(Effort(quick=True, rounds=1))))


PROBLEM = gptq_rows.problem
