"""A wrongly declared exercise says so when its chapter is imported."""

from __future__ import annotations

import dataclasses

import pytest

from labkit.core.errors import ExerciseError
from labkit.course.exercise import Mutant


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "2.1"}, "must look like"),
        ({"difficulty": 6}, "1 to 5"),
        ({"minutes": 0}, "minutes"),
        ({"hints": ("one",)}, "two hints"),
        ({"bounds": ()}, "at least one bound"),
        ({"stub": "def other(x, scale): ..."}, "differ in name"),
        ({"stub": "def to_codes(x): ..."}, "differ in arguments"),
        ({"stub": "x = 1"}, "define a function"),
    ],
)
def test_rules_of_a_declaration(exercise, change, words):
    with pytest.raises(ExerciseError, match=words):
        dataclasses.replace(exercise, **change)


def test_the_number_of_mutants_is_checked(exercise):
    with pytest.raises(ExerciseError, match="4 mutants"):
        dataclasses.replace(exercise, mutants=exercise.mutants[:4])


def test_two_mutants_need_two_messages(exercise):
    twin = dataclasses.replace(exercise.mutants[0], swap=("-7, 7", "-7, 6"))
    with pytest.raises(ExerciseError, match="share a message"):
        dataclasses.replace(exercise, mutants=(*exercise.mutants, twin))


@pytest.mark.parametrize("old", ["nowhere", "x"])
def test_a_swap_must_fit_once(exercise, old):
    with pytest.raises(ExerciseError, match="must occur once"):
        Mutant("You ...", swap=(old, "y")).text(exercise.solution)


def test_a_swap_ignores_the_docstring_and_may_be_several(exercise):
    text = Mutant("You ...", swap=(("-7", "-8"), ("7)", "6)"))).text(exercise.solution)
    assert "torch.round(x / scale), -8, 6)" in text
    assert "Codes of x" not in text


def test_arguments_are_bound_by_name(exercise):
    assert exercise.name == "to_codes"
    assert exercise.bind((1, 2)) == {"x": 1, "scale": 2}
