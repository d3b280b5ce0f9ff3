"""The notebooks of the course themselves: built from their sources, within the rules, solvable."""

from __future__ import annotations

import re

import pytest

from labkit.course.catalogue import CHAPTERS, PROJECTS
from labkit.notebooks.lint import lint
from labkit.notebooks.solving import changed, checks, solve
from labkit.notebooks.source import differences, pairs

COURSE = pairs()
each_notebook = pytest.mark.parametrize("pair", COURSE, ids=lambda pair: pair.name)


def test_chapters_are_numbered_without_a_gap():
    chapters = [pair for pair in COURSE if not pair.is_project]
    assert [pair.name[:2] for pair in chapters] == [f"{n:02}" for n in range(len(chapters))]


def test_projects_have_a_number_and_a_place_in_the_catalogue():
    projects = {pair.name for pair in COURSE if pair.is_project}
    assert all(re.match(r"p\d_", name) for name in projects)
    assert projects == {project.name for project in PROJECTS} & projects


@each_notebook
def test_notebook_is_in_step_with_its_source(pair):
    assert differences(pair) == []


@each_notebook
def test_notebook_keeps_the_rules(pair):
    assert [str(finding) for finding in lint(pair)] == []


@each_notebook
def test_the_catalogue_says_the_notebooks_time(pair):
    chapter = next(known for known in (*CHAPTERS, *PROJECTS) if known.name == pair.name)
    assert f"**Time:** {chapter.minutes} minutes" in pair.source.read_text(encoding="utf-8")


def test_no_notebook_is_without_a_source():
    folder = COURSE[0].course
    built = {*folder.glob("*.ipynb"), *folder.glob("projects/*.ipynb")}
    assert built == {pair.notebook for pair in COURSE}


@pytest.mark.slow
@each_notebook
def test_solved_on_another_machine_every_check_passes_and_nothing_else_changes(pair):
    solved = solve(pair, other_cpu=True)
    assert checks(solved) or pair.is_project
    assert [check.exercise_id for check in checks(solved) if not check.passed] == []
    assert changed(solved, pair.read()) == []
