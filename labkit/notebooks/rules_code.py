"""Rules for what is run: short cells, plain Python, exercises as they were declared."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from nbformat import NotebookNode

from labkit.course.registry import chapter_modules, exercises_of
from labkit.notebooks.findings import Finding, Subject
from labkit.notebooks.solving import exercise_of, tags

CODE_LINES = 20
FEWEST_EXERCISES = 4
MAGIC = re.compile(r"^\s*(%|!|\?)|^\s*[\w.]+\?\??\s*$|get_ipython\(|=\s*!|=\s*%[a-z]", re.MULTILINE)
NBVAL_COMMENT = re.compile(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE)", re.MULTILINE)


def length(subject: Subject) -> Iterator[Finding]:
    """A code cell does one thing."""
    for number, cell in subject.cells("code"):
        count = len(cell.source.splitlines())
        if count > CODE_LINES:
            yield subject.finding(number, "code-length", f"{count} lines; {CODE_LINES} at most")
        if not cell.source.strip():
            yield subject.finding(number, "code-length", "an empty code cell")


def plain_python(subject: Subject) -> Iterator[Finding]:
    """No magic, no shell, nothing that nbval would let pass when it goes wrong."""
    for number, cell in subject.cells("code"):
        if magic := MAGIC.search(cell.source):
            yield subject.finding(number, "magic", f"{magic[0].strip()!r}: plain Python only")
            continue
        if NBVAL_COMMENT.search(cell.source):
            yield subject.finding(number, "nbval-comment", "use a tag, not a comment")
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield subject.finding(number, "magic", f"not Python: {error.msg}")
            continue
        if cell.source.rstrip().endswith(";"):
            yield subject.finding(number, "semicolon", "end without `;`: show a result or print")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func) for call in calls}
        if bad := names & {"interact", "interactive", "clear_output", "widgets.Output"}:
            yield subject.finding(
                number, "widget", f"{min(bad)}: draw into ipywidgets.HTML with figures.to_html"
            )


def ignored_outputs(subject: Subject) -> Iterator[Finding]:
    """Where nbval does not compare, this cell or the next one asserts."""
    code = list(subject.cells("code"))
    for place, (number, cell) in enumerate(code):
        if "nbval-ignore-output" not in tags(cell):
            continue
        if not any("assert " in other.source for _, other in code[place : place + 2]):
            yield subject.finding(
                number, "ignored-output", "the output is not compared: assert here or in the next"
            )


def _checked(cell: NotebookNode) -> list[str]:
    return re.findall(r"""^check\(\s*["']([\d.]+)["']""", cell.source, re.MULTILINE)


def exercises(subject: Subject) -> Iterator[Finding]:
    """Each exercise of the chapter stands there: its text, then its stub and check in one cell."""
    present = []
    cells = subject.notebook.cells
    for number, cell in subject.cells("code"):
        exercise_id, checked = exercise_of(cell), _checked(cell)
        if checked != ([exercise_id] if exercise_id else []):
            yield subject.finding(
                number, "exercise", f"tag for {exercise_id}, check of {', '.join(checked) or None}"
            )
        elif exercise_id:
            present.append(exercise_id)
            yield from _as_declared(subject, number, cell, exercise_id)
            if number == 0 or "exercise-text" not in tags(cells[number - 1]):
                yield subject.finding(number, "exercise", "no cell tagged exercise-text above it")
    declared = list(exercises_of(subject.chapter)) if subject.chapter in chapter_modules() else []
    if missing := [exercise_id for exercise_id in declared if exercise_id not in present]:
        yield subject.finding(None, "exercise", f"declared but not here: {', '.join(missing)}")
    if subject.needs_exercises and len(set(present)) < FEWEST_EXERCISES:
        yield subject.finding(
            None, "exercise", f"{len(set(present))} exercises; {FEWEST_EXERCISES} at least"
        )


def _as_declared(
    subject: Subject, number: int, cell: NotebookNode, exercise_id: str
) -> Iterator[Finding]:
    declared = (exercises_of(subject.chapter) if subject.chapter in chapter_modules() else {}).get(
        exercise_id
    )
    if declared is None:
        yield subject.finding(number, "exercise", f"{exercise_id} is declared nowhere")
        return
    wanted = f'{declared.stub.strip()}\n\n\ncheck("{exercise_id}", {declared.name})'
    if cell.source.strip() != wanted:
        yield subject.finding(
            number, "exercise", "the cell is not the declared stub, two blank lines, the check"
        )


RULES = (length, plain_python, ignored_outputs, exercises)
