"""State: every variable set once, then asked once. Training only, the barest form of repl."""

from __future__ import annotations

import random

from labkit.data.tasks.item import Turn
from labkit.data.tasks.repl import VARIABLES
from labkit.data.tasks.words import QUOTED


def session(rng: random.Random, *, heldout: bool = False) -> list[Turn]:
    """Two to eight assignments and as many questions, in another order."""
    names = rng.sample(VARIABLES, rng.randint(2, len(VARIABLES)))
    values = {
        n: repr(rng.randint(0, 9) if rng.random() < 0.6 else rng.choice(QUOTED)) for n in names
    }
    turns = [Turn(f">>> {name} = {value}\n") for name, value in values.items()]
    if rng.random() < 0.5:  # first in the form in which it was set: plain repetition
        rng.shuffle(names)
        turns += [Turn(f">>> {name} =", f" {values[name]}\n", "again") for name in names]
    rng.shuffle(names)
    return turns + [Turn(f">>> {name}\n", f"{values[name]}\n", "lookup") for name in names]
