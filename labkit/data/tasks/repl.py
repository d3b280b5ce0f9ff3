"""REPL: keep the state of an interpreter session over several turns.

Variables are assigned, assigned again, copied and added; the question is what one of them (or a
sum of two) is now. Values are drawn afresh for each session.
"""

from __future__ import annotations

import random

from labkit.data.tasks.item import Turn
from labkit.data.tasks.words import QUOTED

VARIABLES = tuple("abcknxyz")
Value = int | str


class _Interpreter:
    """Variables, and the line on which each was last set."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, Value] = {}
        self.set_at: dict[str, int] = {}
        self.line = 0

    def assign(self) -> Turn:
        rng = self.rng
        target = rng.choice(VARIABLES)
        if self.values and rng.random() < 0.2:
            source = rng.choice(sorted(self.values))
            self.values[target], text = self.values[source], source
        else:
            self.values[target] = rng.randint(0, 9) if rng.random() < 0.6 else rng.choice(QUOTED)
            text = repr(self.values[target])
        self.set_at[target] = self.line
        self.line += 1
        return Turn(f">>> {target} = {text}\n")

    def question(self) -> Turn:
        numbers = sorted(name for name, value in self.values.items() if isinstance(value, int))
        if len(numbers) >= 2 and self.rng.random() < 0.25:
            names = self.rng.sample(numbers, 2)
            kind, value = "sum", self.values[names[0]] + self.values[names[1]]  # type: ignore[operator]
        else:
            names = [self.rng.choice(sorted(self.values))]
            kind, value = "lookup", self.values[names[0]]
        distance = self.line - min(self.set_at[name] for name in names)
        self.line += 1
        return Turn(f">>> {' + '.join(names)}\n", f"{value!r}\n", kind, distance)


def session(rng: random.Random, *, heldout: bool) -> list[Turn]:
    """Three to fourteen turns that end with a question."""
    interpreter = _Interpreter(rng)
    turns = [interpreter.assign(), interpreter.assign()]
    for _ in range(rng.randint(0, 11)):
        turns.append(interpreter.assign() if rng.random() < 0.45 else interpreter.question())
    return [*turns, interpreter.question()]
