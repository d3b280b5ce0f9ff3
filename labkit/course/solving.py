"""Solve a notebook's exercises: swap each declared stub in its cells for the declared solution."""

from __future__ import annotations

from labkit.course.exercise import Exercise
from labkit.course.registry import get, select


def solved_source(exercise: Exercise | str) -> str:
    """Source of a cell that answers the exercise: standalone, so it passes the check."""
    return (get(exercise) if isinstance(exercise, str) else exercise).solution


def stubs_in(cell: str) -> list[Exercise]:
    """The exercises whose stub this cell's source holds, word for word."""
    return [exercise for exercise in select() if exercise.stub.strip() in cell]


def solve_cell(cell: str) -> str:
    """The cell's source with every stub replaced by its solution; other cells are unchanged."""
    for exercise in stubs_in(cell):
        cell = cell.replace(exercise.stub.strip(), exercise.solution.strip())
    return cell
