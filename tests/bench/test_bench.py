"""What `labkit bench` prints and keeps; the measuring itself is not timed here."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from labkit.bench import bench_command, gptq_rows, quantizers
from labkit.bench.rows import BenchRow, Effort, alternate
from labkit.core.errors import PeerMissingError

ROW = BenchRow("GPTQ", "AutoGPTQ", 0.5, 4.0, 0.1, 0.2, rounds=2)


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


def test_json_and_a_choice(two_sources):
    done = CliRunner().invoke(bench_command.app, ["quantizers", "--only", "fine", "--json"])
    assert '"ratio": 8.0' in done.output
    assert CliRunner().invoke(bench_command.app, ["quantizers", "--only", "x"]).exit_code == 2


def test_both_sides_take_turns():
    turns = []

    def theirs():
        turns.append("theirs")
        return 2.0

    _, peer = alternate(lambda: turns.append("ours"), theirs, rounds=2)
    assert turns == ["theirs", "ours", "ours"] * 2 and peer == 2.0


def test_relative_error_is_that_of_the_outputs():
    import torch

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
