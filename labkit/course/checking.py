"""Check a learner's function: run it on fresh random cases, hold the results against the bounds.

Only the learner's function is judged. The reference says what was expected, and the mutants say
which misconception a wrong answer looks like.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from labkit.course.exercise import Exercise, Trial
from labkit.course.guard import AnswerKeyOpened, Guard, module_of
from labkit.course.peeking import names_that_peek
from labkit.course.recognition import recognise
from labkit.course.running import (
    Case,
    LearnerRaised,
    Outcome,
    Runner,
    TimeLimitReached,
    place_of_error,
)
from labkit.course.source import is_stub
from labkit.course.structure import non_finite_problem, structure_problem
from labkit.course.values import fields_of, show, size
from labkit.course.verdict import Verdict

REPEATED_CASES = 3


def evaluate(
    exercise: Exercise, function: Callable[..., Any], rng: np.random.Generator | None = None
) -> Verdict:
    """Judge one function. Prints and records nothing; `rng` is for tests.

    A KeyboardInterrupt passes through; whatever else the function does ends in a verdict.
    """
    if not callable(function):
        return _failed(exercise, "give the function itself to check, not what it returns")
    if is_stub(function, exercise.stub):
        return Verdict(exercise, "not attempted")
    guard = Guard(exercise.allow, exercise.forbid)
    peeks = names_that_peek(function, guard)
    if peeks:
        return _answer_key(exercise, peeks)
    runner = Runner(function, exercise.time_limit, guard)
    try:
        return _judge(exercise, runner, list(exercise.generate(rng or np.random.default_rng())))
    except AnswerKeyOpened as offence:
        return _answer_key(exercise, str(offence))
    except TimeLimitReached:
        return _failed(
            exercise,
            f"it did not finish within {exercise.time_limit:g} seconds: is there a loop that "
            f"never ends?",
        )


def evaluate_reference(exercise: Exercise, rng: np.random.Generator) -> Verdict:
    """Judge the answer key itself as if a learner had written it (it may use labkit, then)."""
    runner = Runner(exercise.reference, exercise.time_limit)
    return _judge(exercise, runner, list(exercise.generate(rng)))


def _judge(exercise: Exercise, runner: Runner, inputs: list[tuple[Any, ...]]) -> Verdict:
    outcomes = [runner.run(arguments) for arguments in inputs]
    if all(_is_blank(outcome) for outcome in outcomes):
        return Verdict(exercise, "not attempted", "it returns nothing: is a return missing?")
    again = [runner.run(arguments) for arguments in inputs[:REPEATED_CASES]]
    if not all(a.agrees_with(b, 1e-6, 1e-12) for a, b in zip(again, outcomes, strict=False)):
        return _failed(exercise, "called twice with the same input, it gives two answers")
    expected = [_run_reference(exercise, arguments) for arguments in inputs]
    cases = [Case(*triple) for triple in zip(inputs, outcomes, expected, strict=True)]
    cases = [replace(case, problem=_problem(exercise, runner, case)) for case in cases]
    failing = [case for case in cases if case.problem]
    if failing:
        return _verdict_on(exercise, runner, cases, min(failing, key=lambda c: size(c.arguments)))
    if _is_constant(outcomes) and not _is_constant(expected):
        return _failed(exercise, "it gives the same answer for every input")
    return Verdict(exercise, "passed")


def _run_reference(exercise: Exercise, arguments: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(exercise.reference(*copy.deepcopy(arguments)))
    except ValueError as error:  # refusing an input is an answer, and labkit's refusals are these
        return Outcome(error=error)


def _is_blank(outcome: Outcome) -> bool:
    if outcome.error is not None:
        return isinstance(outcome.error, NotImplementedError)
    parts = fields_of(outcome.value) or {"": outcome.value}
    return all(part is None or part is Ellipsis for part in parts.values())


def _is_constant(outcomes: list[Outcome]) -> bool:
    if len(outcomes) < 2 or any(outcome.error is not None for outcome in outcomes):
        return False
    return all(outcomes[0].agrees_with(outcome, 0.0, 0.0) for outcome in outcomes)


def _problem(exercise: Exercise, runner: Runner, case: Case) -> str | None:
    outcome, expected = case.outcome, case.expected
    if outcome.changed:
        names = list(exercise.signature.parameters)
        changed = ", ".join(names[index] for index in outcome.changed)
        return f"it changes its input {changed} in place: work on a copy, or use x = x + 1"
    if expected.error is not None:
        wanted = _builtin_of(expected.error)
        if isinstance(outcome.error, wanted):
            return None
        return f"it should refuse this input: raise {wanted.__name__} ({expected.error})"
    if outcome.error is not None:
        return "it stops with an error"
    problem = structure_problem(outcome.value, expected.value)
    return (
        problem
        or non_finite_problem(outcome.value, expected.value)
        or _broken_bound(
            exercise,
            Trial(exercise.bind(case.arguments), outcome.value, expected.value, runner.call),
        )
    )


def _builtin_of(error: BaseException) -> type[BaseException]:
    return next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")


def _broken_bound(exercise: Exercise, trial: Trial) -> str | None:
    for bound in exercise.bounds:
        try:
            problem = bound(trial)
        except LearnerRaised as raised:
            problem = f"tried on a further input, it stops with {_error_text(raised.error)}"
        if problem:
            rule = (bound.__doc__ or "").strip().split("\n")[0].rstrip(".")
            return f"{rule}: {problem}" if rule else problem
    return None


def _verdict_on(exercise: Exercise, runner: Runner, cases: list[Case], worst: Case) -> Verdict:
    mutant = recognise(exercise, cases, runner.call)
    reason = worst.problem or ""
    right_kind = structure_problem(worst.outcome.value, worst.expected.value) is None
    if mutant is None and right_kind and _is_constant([case.outcome for case in cases]):
        reason = "it gives the same answer for every input"
    return Verdict(
        exercise,
        "failed",
        reason,
        inputs=exercise.bind(worst.arguments),
        expected=_shown(worst.expected),
        got=_shown(worst.outcome, runner.function),
        printed=worst.outcome.printed,
        mutant=mutant,
    )


def _shown(outcome: Outcome, function: Callable[..., Any] | None = None) -> str:
    return show(outcome.value) if outcome.error is None else _error_text(outcome.error, function)


def _error_text(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = "" if function is None else place_of_error(error, module_of(function))
    return f"{text}\nat {place}" if place else text


def _failed(exercise: Exercise, reason: str) -> Verdict:
    return Verdict(exercise, "failed", reason)


def _answer_key(exercise: Exercise, what: str) -> Verdict:
    return _failed(
        exercise,
        f"this answer leans on the answer key: {what}.\n"
        f"Write the computation out yourself; afterwards, compare it with the library's.",
    )
