"""What a task is made of: turns of a session, and the single question asked in an evaluation."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Turn:
    """A piece of prompt and the exact text that must follow it (empty: nothing is asked here)."""

    prompt: str
    answer: str = ""
    kind: str = ""
    distance: int = 0  # lines between the question and the line that answers it


@dataclass(frozen=True)
class TaskItem:
    """One evaluation question: a model that continues `prompt` must write `answer`.

    `answer` ends with a newline; a continuation is right when it begins with it. `kind` names the
    sub-skill, `distance` the lines between the question and the line that answers it.
    """

    prompt: str
    answer: str
    kind: str
    distance: int = 0


class Session(Protocol):
    """A generator of turns; with `heldout`, its last turn asks what training never shows."""

    def __call__(self, rng: random.Random, *, heldout: bool) -> list[Turn]: ...


def is_held_out(expression: str) -> bool:
    """True for one expression in sixteen, chosen by its hash: kept for evaluation alone."""
    return hashlib.sha256(expression.encode()).digest()[0] < 16


def item_of(turns: list[Turn]) -> TaskItem:
    """The last turn of a session as a question, with everything before it as its context."""
    last = turns[-1]
    context = "".join(turn.prompt + turn.answer for turn in turns[:-1])
    return TaskItem(context + last.prompt, last.answer, last.kind, last.distance)
