from __future__ import annotations

import nbformat
import pytest

from labkit.notebooks.__main__ import main
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.solving import SolvedCheck, changed, exercise_of, solve


def test_with_the_solution_in_place_the_check_passes_and_nothing_else_changes(sample, capsys):
    before = sample.notebook.read_bytes()
    assert main(["solve", "--folder", str(sample.notebook.parent), "--other-cpu"]) == 0
    assert capsys.readouterr().out == "00.1 Memory of the weights: passed\n"
    assert sample.notebook.read_bytes() == before


def test_a_cell_that_does_not_hold_the_stub_is_refused(sample):
    text = sample.source.read_text().replace("    ...\n", "    pass\n")
    sample.source.write_text(text)
    with pytest.raises(NotebookError, match=r"00\.1 does not hold its stub"):
        solve(sample)


@pytest.mark.parametrize(
    ("verdict", "passed"),
    [
        ("00.1 Memory of the weights: passed\n", True),
        ("00.1 Memory of the weights: not attempted\n", False),
        ("00.1 Memory of the weights: not yet\n  why       not passed\n", False),
        ("", False),
    ],
)
def test_only_a_passed_check_counts(verdict, passed):
    assert SolvedCheck("00.1", verdict).passed is passed


def code_cell(text, *tags, source="print(answer)"):
    output = nbformat.v4.new_output("stream", name="stdout", text=text)
    return nbformat.v4.new_code_cell(source, outputs=[output], metadata={"tags": list(tags)})


@pytest.mark.parametrize(
    ("tags", "source", "seen"),
    [
        ((), "print(answer)", True),
        (("nbval-ignore-output",), "print(answer)", False),
        (("exercise-00.1",), "check()", False),
        ((), "course_progress()", False),
    ],
)
def test_an_output_that_depends_on_the_answer_is_seen(tags, source, seen):
    before, after = (
        nbformat.v4.new_notebook(cells=[code_cell(text, *tags, source=source)])
        for text in ("None\n", "42\n")
    )
    assert changed(before, before) == []
    assert bool(changed(after, before)) is seen


def test_the_exercise_is_read_from_the_tag():
    assert exercise_of(code_cell("", "nbval-ignore-output", "exercise-02.1")) == "02.1"
    assert exercise_of(code_cell("", "exercise-text")) is None
