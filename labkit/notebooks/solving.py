"""Run a notebook with every exercise solved, and hear what its checks say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.course.solving import solve_cell
from labkit.notebooks.cleaning import text_of
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.running import run
from labkit.notebooks.source import Pair, notebook_from

EXERCISE_TAG = re.compile(r"exercise-(\d\d\.\d{1,2})")


@dataclass(frozen=True)
class SolvedCheck:
    """One exercise of a solved notebook and the verdict printed below it."""

    exercise_id: str
    verdict: str

    @property
    def passed(self) -> bool:
        """Whether the last word of the check is that the exercise is passed."""
        return (
            re.search(rf"^{re.escape(self.exercise_id)} .*: passed$", self.verdict, re.M)
            is not None
        )


def exercise_of(tags: list[str]) -> str | None:
    """The exercise that a cell with these tags holds, or None."""
    return next((match[1] for tag in tags if (match := EXERCISE_TAG.fullmatch(tag))), None)


def solve(pair: Pair) -> list[SolvedCheck]:
    """Run the notebook with each stub replaced by its declared solution; nothing is written.

    Raises:
        NotebookError: a cell failed, or an exercise cell does not hold its stub word for word.
    """
    notebook = notebook_from(pair.source)
    for cell in notebook.cells:
        exercise_id = exercise_of(cell.metadata.get("tags", []))
        if exercise_id is None:
            continue
        solved = solve_cell(cell.source)
        if solved == cell.source:
            raise NotebookError(
                f"the cell of exercise {exercise_id} does not hold its stub word for word",
                pair.name,
                "Copy the stub from labkit/course/chapters/.",
            )
        cell.source = solved
    run(notebook, pair.notebook.parent, f"{pair.name}, solved")
    return [
        SolvedCheck(exercise_id, "".join(text_of(output) for output in cell.outputs))
        for cell in notebook.cells
        if (exercise_id := exercise_of(cell.metadata.get("tags", [])))
    ]
