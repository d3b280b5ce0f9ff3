"""Records of studies: whole or not at all, with their command; a missing one says what makes it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from labkit.core.errors import FormatError
from labkit.study import results, study_command


def test_a_record_holds_command_machine_and_figures(tmp_path):
    path = tmp_path / "study-x.json"
    results.save(path, "labkit study x", {"runs": [1.5]})
    record = json.loads(path.read_text())
    assert record["command"] == "labkit study x"
    assert record["runs"] == [1.5]
    assert record["made_with"]["cpu"]
    assert [p.name for p in tmp_path.iterdir()] == ["study-x.json"]


def test_a_figure_that_is_no_number_is_not_recorded(tmp_path):
    path = tmp_path / "study-x.json"
    path.write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.save(path, "labkit study x", {"loss": float("nan")})
    assert path.read_text() == "before"


@pytest.mark.parametrize("text", [None, "{"])
def test_a_missing_or_broken_record_says_what_makes_it(tmp_path, monkeypatch, text):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    if text is not None:
        (tmp_path / "study-qat.json").write_text(text)
    with pytest.raises(FormatError, match="labkit study qat --save"):
        results.load("qat")


def test_an_unknown_study_is_named():
    found = CliRunner().invoke(study_command.app, ["nothing"])
    assert found.exit_code == 2
    assert "no study 'nothing'" in found.output


def test_every_study_can_be_run_and_shown():
    from importlib import import_module

    for name in study_command.STUDIES:
        module = import_module(f"labkit.study.{name}")
        assert callable(module.run)
        assert callable(module.readme_block)
