"""Every exercise of the course holds: stub, reference, solution, and each mutant's own message."""

from __future__ import annotations

import pytest

from labkit.course.registry import chapter_modules, exercises_of, select
from labkit.course.source import compile_function
from labkit.course.verify import verify

EXERCISES = select()


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_it_holds(exercise):
    proof = verify(exercise)
    assert proof.holds, "\n".join(proof.problems)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_its_solution_stands_alone(exercise):
    assert "labkit" not in exercise.solution
    assert compile_function(exercise.solution, "<s>", exercise.namespace).__name__ == exercise.name


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_its_cases_are_small_and_differ_from_seed_to_seed(exercise):
    import numpy as np

    from labkit.course.values import same, size

    first, second = (list(exercise.generate(np.random.default_rng(seed))) for seed in (0, 1))
    assert 3 <= len(first) <= 60
    assert max(map(size, first)) <= 20_000
    assert not same(first, second)


def test_chapters_have_exercises_of_their_own_number():
    for number in chapter_modules():
        assert exercises_of(number)
