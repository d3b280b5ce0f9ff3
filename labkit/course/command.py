"""`labkit course`: where the learner stands, and proof that the exercises can be trusted."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.core.errors import ExerciseError
from labkit.course import progress, registry
from labkit.course.exercise import Exercise

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Progress, and proof that the exercises can be trusted.",
)
Which = Annotated[
    str, typer.Argument(help='A chapter ("02") or an exercise ("02.1"); all without it.')
]


@app.command()
def status() -> None:
    """Show every exercise and what you have done with it."""
    from labkit.course.standing import course_standing

    standings = course_standing(progress.store().events())
    table = Table("exercise", "title", "difficulty", "min", "state", "attempts", "hints")
    for standing in standings:
        for row in standing.exercises:
            exercise = row.exercise
            cells = (row.exercise.id, exercise.title, "*" * exercise.difficulty, exercise.minutes)
            table.add_row(*map(str, (*cells, row.state, row.attempts or "", row.hints or "")))
        table.add_section()
    console = Console()
    console.print(table)
    passed, total = sum(s.passed for s in standings), sum(len(s.exercises) for s in standings)
    left = sum(s.minutes_left for s in standings)
    console.print(f"Passed {passed} of {total} exercises; about {left} minutes left.")


@app.command()
def verify(
    which: Which = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Prove every exercise: stubs are not attempts, references pass, mutants die. 1 if not."""
    from labkit.course.verify import verify as prove

    proofs = [prove(exercise) for exercise in _selected(which)]
    if as_json:
        print(json.dumps({"exercises": [proof.as_json() for proof in proofs]}, indent=2))
    else:
        table = Table("exercise", "stub not attempted", "reference passes", "mutants killed")
        for proof in proofs:
            table.add_row(
                proof.exercise_id,
                "yes" if proof.stub_not_attempted else "NO",
                "yes" if proof.reference_passes else "NO",
                f"{proof.killed} of {proof.mutants}",
            )
        Console().print(table)
        for proof in proofs:
            for problem in proof.problems:
                print(f"{proof.exercise_id}: {problem}")
    if not all(proof.holds for proof in proofs):
        raise typer.Exit(1)


@app.command()
def reset(
    which: Which = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget your progress, in all or in part. Asks first."""
    exercises = _selected(which)
    what = f"{len(exercises)} exercises of {which}" if which else "the whole course"
    store = progress.store()
    if not yes:
        typer.confirm(f"Forget the progress in {what} ({store.path})?", abort=True)
    if not store.reset([exercise.id for exercise in exercises] if which else None):
        raise typer.Exit(1)
    print(f"Forgotten: {what}.")


def _selected(which: str) -> list[Exercise]:
    try:
        return registry.select(which)
    except ExerciseError as error:
        print(error)
        raise typer.Exit(2) from None
