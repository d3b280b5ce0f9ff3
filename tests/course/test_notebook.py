"""What a learner calls: printed text is fixed, progress is kept, hints climb, reveal tells all."""

from __future__ import annotations

import pytest

import labkit.course
from labkit.core.errors import ExerciseError
from labkit.course import check, hint, progress, reveal
from labkit.course.registry import get
from labkit.course.solving import solve_cell, solved_source, stubs_in
from labkit.course.source import compile_function
from labkit.course.standing import course_standing, exercise_standing, standing_text
from labkit.course.widgets_progress import course_progress


def right(billions, bits):
    return billions * 1e9 * bits / 8 / 2**30


def gigabytes(billions, bits):
    return billions * bits / 8


def stub(billions, bits): ...


def states():
    events = progress.store().events()
    return exercise_standing(get("00.1"), events)


def test_three_verdicts_and_what_is_kept_of_them(capsys):
    check("00.1", stub)
    assert capsys.readouterr().out == "00.1 Memory of the weights: not attempted\n"
    assert progress.store().events() == []
    check("00.1", gigabytes)
    assert "You gave GB" in capsys.readouterr().out
    assert states().state == "tried"
    check("00.1", right)
    assert capsys.readouterr().out == "00.1 Memory of the weights: passed\n"
    assert states().state == "passed"
    check("00.1", gigabytes)
    assert states().state == "passed"
    assert states().attempts == 3


def test_hints_climb_and_stay_at_the_last(capsys):
    exercise = get("00.1")
    for number in (1, 2, 3, 3):
        hint("00.1")
        out = capsys.readouterr().out
        assert f"hint {number} of 3" in out
        assert exercise.hints[number - 1] in out
        assert ("reveal" in out) is (number == 3)
    assert states().hints == 4


def test_reveal_shows_the_answer_with_its_place_and_marks_a_later_pass(capsys):
    reveal("00.1")
    out = capsys.readouterr().out
    assert get("00.1").solution in out
    assert "labkit/course/chapters/ch00_start_here.py, line " in out
    assert "def weight_gibibytes" in out
    check("00.1", right)
    assert states().state == "passed after reveal"


def test_a_pass_before_the_reveal_stays_a_pass():
    check("00.1", right)
    reveal("00.1")
    check("00.1", right)
    assert states().state == "passed"


@pytest.mark.parametrize("name", ["00.9", "77.1", "nonsense", ""])
def test_an_unknown_exercise_is_named_with_those_there_are(name):
    for call in (lambda: check(name, right), lambda: hint(name), lambda: reveal(name)):
        with pytest.raises(ExerciseError, match=r"Chapters: 00|Exercises of chapter 00: 00\.1"):
            call()


def test_a_home_that_cannot_be_written_does_not_stop_a_check(monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_HOME", "/dev/null/home")
    check("00.1", right)
    check("00.1", right)
    captured = capsys.readouterr()
    assert captured.out.count("passed") == 2
    assert captured.err.count("progress cannot be saved") == 1
    assert states().state == "passed"


def test_solving_a_cell():
    exercise = get("00.1")
    cell = exercise.stub + '\n\ncheck("00.1", weight_gib)'
    assert stubs_in(cell) == [exercise]
    solved = solve_cell(cell)
    assert solved_source("00.1").strip() in solved
    assert solved.endswith('check("00.1", weight_gib)')
    assert stubs_in(solved) == []
    assert solve_cell("print(1)") == "print(1)"


def test_a_solved_cell_passes(capsys):
    check("00.1", compile_function(solved_source("00.1"), "<cell>"))
    assert capsys.readouterr().out == "00.1 Memory of the weights: passed\n"


def test_progress_as_text_for_a_fresh_learner_and_after():
    fresh = standing_text(course_standing([]))
    first, last = fresh.splitlines()[0], fresh.splitlines()[-1]
    assert first.startswith("00_start_here")
    assert "0 of 1 exercises" in first
    assert last.startswith("Passed 0 of ")
    check("00.1", right)
    after = standing_text(course_standing(progress.store().events()))
    assert "1 of 1 exercises" in after.splitlines()[0]
    assert after.splitlines()[1:-1] == fresh.splitlines()[1:-1]


def test_the_widget_shows_the_same_and_can_be_refreshed():
    view = course_progress()
    bundle = view._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/plain"] == repr(view) == standing_text(course_standing([]))
    bar = view._rows.children[0].children[1]
    assert (bar.value, bar.max) == (0, 1)
    check("00.1", right)
    view._button.click()
    bar = view._rows.children[0].children[1]
    assert (bar.value, bar.max) == (1, 1)
    assert "1 of 1 exercises" in view.text


def test_the_package_offers_what_a_notebook_needs():
    assert set(labkit.course.__all__) == {"check", "hint", "reveal"}
