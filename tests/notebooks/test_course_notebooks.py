"""The notebooks of the course themselves: built from their sources, within the rules, solvable."""

from __future__ import annotations

import pytest

from labkit.notebooks.comparing import compare
from labkit.notebooks.lint import lint
from labkit.notebooks.solving import solve
from labkit.notebooks.source import differences, pairs

COURSE = pairs()
each_notebook = pytest.mark.parametrize("pair", COURSE, ids=lambda pair: pair.name)


def test_chapters_are_numbered_without_a_gap():
    assert [pair.name[:2] for pair in COURSE] == [f"{n:02}" for n in range(len(COURSE))]


@each_notebook
def test_notebook_is_in_step_with_its_source(pair):
    assert differences(pair) == []


@each_notebook
def test_notebook_keeps_the_rules(pair):
    assert [str(finding) for finding in lint(pair)] == []


def test_no_notebook_is_without_a_source():
    built = {path.stem for path in COURSE[0].notebook.parent.glob("*.ipynb")}
    assert built == {pair.name for pair in COURSE}


@each_notebook
def test_every_check_passes_once_every_exercise_is_solved(pair):
    checks = solve(pair)
    assert checks
    assert [check.exercise_id for check in checks if not check.passed] == []


@pytest.mark.slow
@each_notebook
def test_outputs_are_the_same_on_a_smaller_machine(pair):
    assert compare([pair], other_cpu=True) == 0
