"""`labkit bench gguf`: its rows and what it prints; times are not judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from labkit.bench import bench_command, gguf_rows
from labkit.core.errors import SchemeError
from labkit.peers import ggml


def test_rows_of_a_small_weight():
    found = list(gguf_rows.rows(["Q4_0", "Q8_0", "Q4_K"], 256, 1, [1, 2]))
    tasks = [(row.type_name, row.task) for row in found if row.threads == 2]
    assert tasks == [
        ("Q4_0", "encode"),
        ("Q4_0", "encode with importance"),
        ("Q4_0", "decode"),
        ("Q8_0", "encode"),
        ("Q8_0", "decode"),
        ("Q4_K", "encode"),
        ("Q4_K", "encode with importance"),
        ("Q4_K", "decode"),
    ]
    assert all(row.equal and row.seconds > 0 and row.peer_seconds > 0 for row in found)


def test_other_bytes_are_seen(monkeypatch):
    wrong = lambda blocks, *rest, **more: np.zeros(1, np.float32)  # noqa: E731
    monkeypatch.setattr(gguf_rows.gguf, "dequantize", wrong)
    found = {row.task: row.equal for row in gguf_rows.rows(["Q8_0"], 256, 1, [1])}
    assert found == {"encode": True, "decode": False}


def test_rows_shared_over_threads_are_all_there():
    x = np.random.default_rng(0).standard_normal((13, 256), np.float32)
    for threads in (1, 2, 5):
        blocks = gguf_rows._shared_quantize(x, "Q6_K", None, threads)
        np.testing.assert_array_equal(blocks, ggml.quantize(x, "Q6_K"))
        weights = gguf_rows._shared_dequantize(blocks, "Q6_K", threads)
        np.testing.assert_array_equal(weights, ggml.dequantize(blocks, "Q6_K"))


def test_a_type_that_is_not_there():
    with pytest.raises(SchemeError, match="F32"):
        next(gguf_rows.rows(["F32"], 256, 1, [1]))
    done = CliRunner().invoke(bench_command.app, ["gguf", "--only", "Q9"])
    assert done.exit_code == 1


@pytest.fixture
def few_rows(monkeypatch):
    def rows(names, size, rounds, threads):
        for count in threads:
            for task, peer in (("encode", 0.5), ("decode", 0.1)):
                yield gguf_rows.GgufRow("Q4_K", task, size, count, 0.1, peer, rounds, True)

    monkeypatch.setattr(gguf_rows, "rows", rows)


def test_a_table_for_each_number_of_threads(few_rows, tmp_path):
    saved = tmp_path / "gguf.json"
    command = ["gguf", "--quick", "--threads", "1,2", "--save", str(saved)]
    done = CliRunner().invoke(bench_command.app, command)
    assert done.exit_code == 0, done.output
    assert "1 thread each" in done.output and "2 threads each" in done.output
    assert "5.00" in done.output and "equal" in done.output
    record = json.loads(saved.read_text())
    assert record["command"] == "labkit bench gguf --quick --threads 1,2"
    assert [row["ratio"] for row in record["rows"]] == [5.0, 1.0, 5.0, 1.0]
    assert "cpu" in record["made_with"] and "ggml" in record["rows"][0]["peer"]


def test_json_and_thread_counts(few_rows):
    done = CliRunner().invoke(bench_command.app, ["gguf", "--json", "--threads", "1"])
    assert '"type_name": "Q4_K"' in done.output
    for words in ("0", "two", "", "1,,2"):
        bad = CliRunner().invoke(bench_command.app, ["gguf", "--threads", words])
        assert bad.exit_code == 2
