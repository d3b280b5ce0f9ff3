"""The hint ladder, and the answer key for those who ask for it."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import labkit
from labkit.course.exercise import Exercise

# Where each ladder stands in this kernel: a restart begins at the first rung again.
_shown: Counter[str] = Counter()


def next_hint(exercise: Exercise) -> str:
    """The next hint of an exercise; after the last one, the last one again."""
    count = len(exercise.hints)
    number = min(_shown[exercise.id] + 1, count)
    _shown[exercise.id] = number
    more = "" if number < count else f'\nThat is the last hint; reveal("{exercise.id}") shows more.'
    return (
        f"{exercise.id} {exercise.title}, hint {number} of {count}:\n"
        f"{exercise.hints[number - 1]}{more}"
    )


def revealed(exercise: Exercise) -> str:
    """A short answer, and the library's own function with its file and line."""
    key = inspect.unwrap(exercise.answer_key or exercise.reference)
    return (
        f"{exercise.id} {exercise.title}: one short answer\n\n{exercise.solution}\n"
        f"In the library ({_place(key)}):\n\n{inspect.getsource(key)}"
    )


def _place(function: Any) -> str:
    file = Path(inspect.getsourcefile(function) or "")
    root = Path(labkit.__file__).parent.parent
    shown = file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
    return f"{shown}, line {inspect.getsourcelines(function)[1]}"
