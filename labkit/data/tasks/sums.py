"""Sums: additions and subtractions one after another. Training only, a drill for doctest.

Carrying is learned from many examples, and doctest sessions hold few. Held-out expressions of
doctest do not occur here either.
"""

from __future__ import annotations

import random

from labkit.data.tasks.item import Turn, is_held_out


def _expression(rng: random.Random) -> tuple[str, int]:
    top = 9 if rng.random() < 0.25 else 99
    one, two = rng.randint(0, top), rng.randint(0, top)
    if rng.random() < 0.5:
        return f"{one} + {two}", one + two
    return f"{max(one, two)} - {min(one, two)}", abs(one - two)


def session(rng: random.Random, *, heldout: bool = False) -> list[Turn]:
    """Eight sums in the form of doctest, none of them held out."""
    turns: list[Turn] = []
    while len(turns) < 8:
        text, value = _expression(rng)
        if not is_held_out(text):
            turns.append(Turn(f">>> {text}\n", f"{value}\n", "sum"))
    return turns
