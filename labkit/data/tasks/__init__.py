"""Tasks with exact answers, generated from a seed: what perplexity alone would hide."""

from __future__ import annotations

import random

from labkit.core.errors import CorpusError
from labkit.data.tasks import doctest, echo, facts, recall, repl, state, sums
from labkit.data.tasks.item import Session, TaskItem, Turn, item_of

TASKS: dict[str, Session] = {
    "doctest": doctest.session,
    "facts": facts.session,
    "recall": recall.session,
    "repl": repl.session,
}
# What is trained on but never asked.
_TRAINING: dict[str, Session] = {
    **TASKS,
    "echo": echo.session,
    "state": state.session,
    "sums": sums.session,
}


def make_task(name: str, n: int, seed: int = 0) -> list[TaskItem]:
    """`n` evaluation questions of a task; the same for a seed on every machine.

    Raises CorpusError for an unknown task or a count below one.
    """
    if name not in TASKS:
        raise CorpusError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    if n < 1:
        raise CorpusError(f"a task needs at least one question, got n={n}")
    rng = random.Random(f"evaluation {name} {seed}")
    return [item_of(TASKS[name](rng, heldout=True)) for _ in range(n)]


def training_session(name: str, rng: random.Random) -> list[Turn]:
    """One training document of a task (or of a drill): no held-out expression occurs in it."""
    return _TRAINING[name](rng, heldout=False)


__all__ = ["TASKS", "TaskItem", "Turn", "make_task", "training_session"]
