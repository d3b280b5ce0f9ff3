"""Run a notebook with every exercise solved: its checks pass, and nothing else changes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbformat import NotebookNode

from labkit.course.solving import solve_cell
from labkit.notebooks.cleaning import clean, text_of
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.running import run
from labkit.notebooks.source import Pair, notebook_from

EXERCISE_TAG = re.compile(r"exercise-(\d\d\.\d{1,2})")
SHOWS_PROGRESS = "course_progress("
"""The one call whose output is meant to change when an exercise is solved."""


@dataclass(frozen=True)
class SolvedCheck:
    """One exercise of a solved notebook and the verdict printed below it."""

    exercise_id: str
    verdict: str

    @property
    def passed(self) -> bool:
        """Whether the verdict is that the exercise is passed."""
        return bool(re.search(rf"^{re.escape(self.exercise_id)} .*: passed$", self.verdict, re.M))


def tags(cell: NotebookNode) -> list[str]:
    """The cell's tags."""
    return list(cell.metadata.get("tags", []))


def exercise_of(cell: NotebookNode) -> str | None:
    """The exercise that a cell holds, by its tag, or None."""
    return next((match[1] for tag in tags(cell) if (match := EXERCISE_TAG.fullmatch(tag))), None)


def solve(pair: Pair, other_cpu: bool = False) -> NotebookNode:
    """The notebook, run with each stub replaced by its declared solution; nothing is written.

    Raises:
        NotebookError: a cell failed, or an exercise cell does not hold its stub word for word.
    """
    notebook = notebook_from(pair.source)
    for cell in notebook.cells:
        exercise_id = exercise_of(cell)
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
    run(notebook, pair.notebook.parent, f"{pair.name}, solved", other_cpu)
    return clean(notebook)


def checks(solved: NotebookNode) -> list[SolvedCheck]:
    """The verdicts printed in a solved notebook."""
    return [
        SolvedCheck(exercise_id, "".join(map(text_of, cell.outputs)))
        for cell in solved.cells
        if (exercise_id := exercise_of(cell))
    ]


def changed(solved: NotebookNode, committed: NotebookNode) -> list[str]:
    """Cells other than exercises that say something else in the solved run than as committed.

    A later cell that uses the learner's function shows up here, and so does an output that
    depends on the machine, where the two runs were made on different ones.
    """
    found = []
    for number, (now, before) in enumerate(zip(solved.cells, committed.cells, strict=True)):
        if now.cell_type != "code" or exercise_of(now) or SHOWS_PROGRESS in now.source:
            continue
        if "nbval-ignore-output" not in tags(now) and _words(now) != _words(before):
            found.append(f"cell {number}: {_words(before)} became {_words(now)}")
    return found


def _words(cell: NotebookNode) -> list[str]:
    return [text_of(output) for output in cell.outputs if output.get("name") != "stderr"]
