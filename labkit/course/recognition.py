"""Which misconception does a wrong answer look like?

A mutant is recognised when it and the learner's function do the same on every case. Failing that,
when it is the only mutant that goes wrong in the same way on every case the learner failed: the
learner may have got an edge case right that the mutant does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.running import Case, Runner


def recognise(exercise: Exercise, cases: list[Case], call: Callable[..., Any]) -> int | None:
    """Index of the mutant that the learner's outcomes give away, or None."""
    failing = [case for case in cases if case.problem]
    for index, mutant in enumerate(exercise.mutants):
        if mutant.recognise is not None and _has_symptom(exercise, mutant, failing, call):
            return index
    runners = [Runner(function, exercise.time_limit) for function in exercise.mutant_functions]
    for index, runner in enumerate(runners):
        if all(runner.run(case.arguments).agrees_with(case.outcome) for case in cases):
            return index
    alike = [index for index, runner in enumerate(runners) if _fails_alike(runner, failing)]
    return alike[0] if len(alike) == 1 else None


def _has_symptom(
    exercise: Exercise, mutant: Mutant, failing: list[Case], call: Callable[..., Any]
) -> bool:
    answered = [case for case in failing if case.outcome.error is None]
    return bool(answered) and all(
        mutant.recognise(Trial(exercise.bind(c.arguments), c.outcome.value, c.expected.value, call))
        for c in answered
    )


def _fails_alike(runner: Runner, failing: list[Case]) -> bool:
    outcomes = ((runner.run(case.arguments), case) for case in failing)
    return all(o.agrees_with(c.outcome) and not o.agrees_with(c.expected) for o, c in outcomes)
