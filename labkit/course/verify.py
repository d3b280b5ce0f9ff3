"""Prove the exercises: every stub is not attempted, every reference passes, every mutant dies.

Each is tried on several seeds, because an exercise that holds only by luck does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.course.checking import evaluate, evaluate_reference
from labkit.course.exercise import Exercise
from labkit.course.source import compile_function
from labkit.course.verdict import Verdict

SEEDS = range(5)


@dataclass(frozen=True)
class Proof:
    """What was found out about one exercise. `problems` says what is wrong, in words."""

    exercise_id: str
    stub_not_attempted: bool
    reference_passes: bool
    mutants: int
    killed: int
    problems: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Is everything proven?"""
        return self.stub_not_attempted and self.reference_passes and self.killed == self.mutants

    def as_json(self) -> dict[str, Any]:
        """The row of `labkit course verify --json`."""
        return {
            "id": self.exercise_id,
            "stub_not_attempted": self.stub_not_attempted,
            "reference_passes": self.reference_passes,
            "mutants": self.mutants,
            "killed": self.killed,
        }


def verify(exercise: Exercise) -> Proof:
    """Try the stub, the reference, the solution and every mutant of one exercise."""
    stub = compile_function(exercise.stub, f"<stub of {exercise.id}>", exercise.namespace)
    left_alone = evaluate(exercise, stub).status == "not attempted"
    problems = [] if left_alone else ["the stub counts as an attempt"]
    reference_problems = [p for seed in SEEDS for p in _reference_problems(exercise, seed)]
    alive = {}
    for index, function in enumerate(exercise.mutant_functions):
        for seed in SEEDS:
            verdict = evaluate(exercise, function, np.random.default_rng(seed))
            if verdict.status != "failed" or verdict.mutant != index:
                alive[index] = _survivor(exercise, index, verdict)
                break
    return Proof(
        exercise.id,
        left_alone,
        not reference_problems,
        len(exercise.mutants),
        len(exercise.mutants) - len(alive),
        (*problems, *reference_problems[:1], *alive.values()),
    )


def _reference_problems(exercise: Exercise, seed: int) -> Iterator[str]:
    solution = compile_function(exercise.solution, f"<solution {exercise.id}>", exercise.namespace)
    verdict = evaluate(exercise, solution, np.random.default_rng(seed))
    if verdict.status != "passed":
        yield f"the solution does not pass (seed {seed}):\n{verdict.text()}"
    verdict = evaluate_reference(exercise, np.random.default_rng(seed))
    if verdict.status != "passed":
        yield f"the reference does not pass (seed {seed}):\n{verdict.text()}"


def _survivor(exercise: Exercise, index: int, verdict: Verdict) -> str:
    name = f"mutant {index + 1} ({exercise.mutants[index].message[:60]}...)"
    if verdict.status != "failed":
        return f"{name}: {verdict.status}"
    if verdict.mutant is None:
        return f"{name} is not recognised:\n{verdict.text()}"
    return f"{name} is taken for mutant {verdict.mutant + 1}"
