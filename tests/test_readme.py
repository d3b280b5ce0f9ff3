"""README.md says what the results files say, and names nothing that is not there."""

import json
import re

from labkit import readme
from labkit.cli import COMMANDS
from labkit.readme import RESULTS, ROOT, bench_block, filled

MADE = {"command": "labkit bench x", "made_with": {"cpu": "a CPU", "torch": "2"}}
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_come_from_the_results():
    assert filled(TEXT) == TEXT


def test_notes_that_differ_have_a_column(monkeypatch, tmp_path):
    row = {"what": "W4A16, 1 token", "peer": "torch", "seconds": 0.001, "peer_seconds": 0.002}
    row |= {"ratio": 2.0, "error": 1e-7, "peer_error": None}

    def block(*notes: str) -> list[str]:
        record = MADE | {"rows": [row | {"note": note} for note in notes]}
        (tmp_path / "bench-x.json").write_text(json.dumps(record))
        return bench_block("x").splitlines()

    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    lines = block("8.0 GB/s", "9.0 GB/s")
    assert lines[2] == "| W4A16, 1 token | torch | 1 ms | 2 ms | 2.0 | 1e-07 |  | 8.0 GB/s |"
    lines = block("patched", "patched", "patched")
    assert lines[2].endswith("| 1e-07 |  |") and "- W4A16: patched." in lines


def test_columns_are_those_that_the_rows_fill(monkeypatch, tmp_path):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    row = {"what": "Q4_0: a token", "peer": "llama.cpp", "seconds": 0.1, "peer_seconds": 0.2}
    row |= {"ratio": 2.0, "error": None, "peer_error": None, "note": ""}
    (tmp_path / "bench-x.json").write_text(json.dumps(MADE | {"rows": [row, row]}))
    assert (
        bench_block("x").splitlines()[2] == "| Q4_0: a token | llama.cpp | 0.10 s | 0.20 s | 2.0 |"
    )
    row = {"what": "GGUF Q4_K", "peer": "its file", "parameters": 3e6, "file_bytes": 2e6}
    row |= {"resident_bytes": 2.2e6, "peak_bytes": None, "running_bytes": 3e6}
    row |= {"resident_ratio": 1.1, "ratio": 0.9}
    (tmp_path / "bench-x.json").write_text(json.dumps(MADE | {"rows": [row]}))
    assert bench_block("x").splitlines()[2] == "| GGUF Q4_K | 3 M | 2 | 2 |  | 3 | 1.10 |"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)", TEXT):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"`labkit ([a-z-]+)", TEXT):
        assert command in COMMANDS, command


def test_every_result_says_how_it_was_made():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert "command" in result or all("command" in row for row in result["rows"]), path


def test_every_chapter_is_on_the_map():
    for path in sorted((ROOT / "notebooks").rglob("[0-9p]*_*.ipynb")):
        assert path.relative_to(ROOT).as_posix() in TEXT, path.name
