"""`labkit course`: status, verify and reset as a learner and CI call them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from labkit.course import command, progress
from labkit.course.verify import verify


@pytest.fixture
def run():
    return lambda *arguments, **options: CliRunner().invoke(command.app, arguments, **options)


def test_status_lists_every_exercise_and_its_state(run):
    progress.store().record("00.1", "failed")
    progress.store().record("00.1", "hint")
    progress.store().record("00.1", "passed")
    result = run("status", env={"COLUMNS": "120"})
    assert result.exit_code == 0
    row = next(line for line in result.output.splitlines() if "00.1" in line)
    assert "passed" in row
    assert "Passed 1 of " in result.output


def test_verify_prints_json_in_the_promised_form(run):
    result = run("verify", "00", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "exercises": [
            {
                "id": "00.1",
                "stub_not_attempted": True,
                "reference_passes": True,
                "mutants": 7,
                "killed": 7,
            }
        ]
    }


def test_verify_prints_a_table(run):
    result = run("verify", "00.1", env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "7 of 7" in result.output


def test_verify_fails_under_a_hundred_per_cent(run, exercise, monkeypatch):
    loose = dataclasses.replace(exercise, bounds=(lambda trial: None,))
    monkeypatch.setattr(command.registry, "select", lambda which: [loose])
    result = run("verify", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["exercises"]
    assert row["killed"] < row["mutants"]
    table = run("verify")
    assert table.exit_code == 1
    assert "mutant 1 (You truncate....): passed" in table.output


def test_verify_keeps_no_progress(run):
    run("verify", "00")
    assert progress.store().events() == []


def test_a_stub_that_answers_is_found(exercise):
    answered = dataclasses.replace(
        exercise, stub="def to_codes(x, scale):\n    return x.int()\n", solution=exercise.solution
    )
    # The stub is recognised by its text, so it stays an unattempted one even if it answers.
    assert verify(answered).stub_not_attempted


def test_a_wrong_reference_is_found(exercise):
    wrong = dataclasses.replace(exercise, reference=lambda x, scale: (x / scale).int())
    proof = verify(wrong)
    assert not proof.reference_passes
    assert not proof.holds


def test_two_mutants_that_act_alike_are_found(exercise):
    twin = dataclasses.replace(exercise.mutants[0], message="You cut off the fraction.")
    proof = verify(dataclasses.replace(exercise, mutants=(*exercise.mutants, twin)))
    assert proof.killed == proof.mutants - 1
    assert "is taken for mutant 1" in proof.problems[0]


def test_reset_asks_first(run):
    progress.store().record("00.1", "passed")
    refused = run("reset", input="n\n")
    assert refused.exit_code == 1
    assert len(progress.store().events()) == 1
    agreed = run("reset", input="y\n")
    assert agreed.exit_code == 0
    assert progress.store().events() == []


def test_reset_of_one_exercise_leaves_the_others(run):
    progress.store().record("00.1", "passed")
    progress.store().record("01.1", "passed")
    assert run("reset", "00.1", "--yes").exit_code == 0
    assert [e.exercise_id for e in progress.store().events()] == ["01.1"]


@pytest.mark.parametrize("name", ["status", "verify", "reset"])
def test_commands_explain_themselves(run, name):
    assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("which", ["88", "00.7"])
def test_an_unknown_exercise_is_an_error_with_those_there_are(run, which):
    result = run("verify", which)
    assert result.exit_code == 2
    assert "00" in result.output
