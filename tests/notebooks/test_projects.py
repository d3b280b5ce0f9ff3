"""Projects: notebooks in a folder of their own, without exercises; all other rules hold."""

from __future__ import annotations

import shutil

import pytest

from labkit.notebooks.__main__ import main
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.lint import lint, lint_source
from labkit.notebooks.source import differences, pairs, source_of


@pytest.fixture
def course(project_folder, tmp_path):
    """A copy of the course folder with a project."""
    return shutil.copytree(project_folder, tmp_path / "notebooks")


def test_both_folders_are_found_chapters_first(course):
    found = pairs(folder=course)
    assert [(pair.name, pair.is_project) for pair in found] == [
        ("00_sample", False),
        ("p9_sample", True),
    ]
    assert {pair.course for pair in found} == {course}
    assert all(source_of(pair.notebook) == pair.source for pair in found)
    for name in ("p9", "p9_sample", "notebooks/projects/p9_sample.ipynb"):
        assert [pair.name for pair in pairs([name], course)] == ["p9_sample"]
    with pytest.raises(NotebookError, match=r"no notebook 'p7'.*p9_sample"):
        pairs(["p7"], course)


def test_a_project_is_built_beside_the_others_and_runs_in_its_folder(course):
    (project,) = pairs(["p9"], course)
    assert project.notebook == course / "projects" / "p9_sample.ipynb"
    assert differences(project) == []
    assert project.read().cells[1].outputs[0].text == "runs in projects\n"


def test_a_project_needs_no_exercise_and_links_to_chapters(course):
    (project,) = pairs(["p9"], course)
    assert not (course / "00_sample.ipynb").exists()  # its source does: it will be built
    assert lint(project) == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("# P9 ·", "# 09 ·", "header"),
        ("[a sample](../00_sample.ipynb)\n\n# %%", "[a sample](00_sample.ipynb)\n\n# %%", "link"),
        ("Question 3", "Question 3\n# # Title", "title"),
        ("## What to read", "## Reading", "last-sections"),
        ('tags=["interview"]\n# **Question 1', "\n# **Question 1", "interview"),
    ],
)
def test_every_other_rule_holds_for_a_project(course, old, new, rule):
    (project,) = pairs(["p9"], course)
    text = project.source.read_text(encoding="utf-8")
    assert old in text
    project.source.write_text(text.replace(old, new), encoding="utf-8")
    assert rule in {finding.rule for finding in lint_source(project)}


def test_a_changed_project_is_seen_by_nbval(course, capfd):
    (project,) = pairs(["p9"], course)
    assert main(["check", "p9", "--folder", str(course)]) == 0
    assert main(["solve", "p9", "--folder", str(course)]) == 0
    text = project.notebook.read_text(encoding="utf-8")
    project.notebook.write_text(text.replace("runs in projects", "runs in"), encoding="utf-8")
    assert main(["check", "p9", "--folder", str(course)]) == 1
    assert "1 failed" in capfd.readouterr().out
