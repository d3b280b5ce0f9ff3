"""What a check found out, and how it is printed: plain text, the same on every machine."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

from labkit.course.exercise import Exercise
from labkit.course.values import show

Status = Literal["passed", "failed", "not attempted"]
LABEL_WIDTH, TEXT_WIDTH = 10, 84
PRINTED_LINES = 10


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    `mutant` is the index of the recognised misconception; `inputs` the smallest failing input.
    """

    exercise: Exercise
    status: Status
    reason: str = ""
    inputs: dict[str, Any] = field(default_factory=dict)
    expected: str = ""
    got: str = ""
    printed: str = ""
    mutant: int | None = None

    @property
    def misconception(self) -> str:
        """The recognised misconception's message, or ""."""
        return "" if self.mutant is None else self.exercise.mutants[self.mutant].message

    def text(self) -> str:
        """The verdict as printed under the learner's cell."""
        headline = f"{self.exercise.id} {self.exercise.title}"
        if self.status == "passed":
            return f"{headline}: passed"
        if self.status == "not attempted":
            return f"{headline}: not attempted" + (f" ({self.reason})" if self.reason else "")
        rows = [
            ("input", "\n".join(_argument(name, value) for name, value in self.inputs.items())),
            ("expected", self.expected),
            ("got", self.got),
            ("printed", _head(self.printed)),
            ("why", _wrapped(self.reason)),
            ("likely", _wrapped(self.misconception)),
            ("next", f'hint("{self.exercise.id}")'),
        ]
        lines = [_row(label, text) for label, text in rows if text]
        return "\n".join([f"{headline}: not yet", *lines])


def _argument(name: str, value: Any) -> str:
    text = show(value)
    if "\n" not in text:
        return f"{name} = {text}"
    return f"{name} = " + text.replace("\n", "\n    ")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.fill(line, TEXT_WIDTH) for line in text.splitlines())


def _head(printed: str) -> str:
    lines = printed.splitlines()
    return "\n".join([*lines[:PRINTED_LINES], *(["..."] if len(lines) > PRINTED_LINES else [])])


def _row(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}" + text.replace("\n", "\n" + " " * (LABEL_WIDTH + 2))
