"""What a learner calls in a notebook: check, hint and reveal. Each prints plain text.

The checker, and torch with it, is imported by the first check: `labkit course status` needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.course import hints, progress, registry


def check(exercise_id: str, function: Callable[..., Any]) -> None:
    """Judge `function` as the answer to an exercise, print the verdict and record it.

    Every call tries new random inputs. Raises ExerciseError if there is no such exercise.
    """
    from labkit.course.checking import evaluate

    verdict = evaluate(registry.get(exercise_id), function)
    print(verdict.text())
    if verdict.status != "not attempted":
        progress.store().record(exercise_id, verdict.status, verdict.misconception)


def hint(exercise_id: str) -> None:
    """Print the next hint. Raises ExerciseError if there is no such exercise."""
    print(hints.next_hint(registry.get(exercise_id)))
    progress.store().record(exercise_id, "hint")


def reveal(exercise_id: str) -> None:
    """Print an answer, and the library's own with its file and line.

    A pass that comes after this is shown as such. Raises ExerciseError if there is no such
    exercise.
    """
    print(hints.revealed(registry.get(exercise_id)))
    progress.store().record(exercise_id, "reveal")
