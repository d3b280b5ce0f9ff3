"""Echo: copy what stands a little earlier. Training only; a model that cannot copy cannot recall.

Attention heads that find an earlier occurrence of a token and read what followed it ("induction
heads", Olsson and others 2022) form late on text alone. Repetition of random words teaches
nothing else, and teaches it quickly; recall, facts and repl then build on it.
"""

from __future__ import annotations

import random

from labkit.data.tasks.item import Turn
from labkit.data.tasks.words import NOUNS


def _line(rng: random.Random) -> list[Turn]:
    words = " ".join(rng.choices(NOUNS, k=rng.randint(2, 24)))
    return [Turn(f" {words}\n"), Turn("", f" {words}\n")]


def _pairs(rng: random.Random) -> list[Turn]:
    """Pairs, then the same pairs in another order: the key is given, the value is copied."""
    keys = rng.sample(NOUNS, rng.randint(2, 12))
    pairs = [(key, rng.choice(NOUNS)) for key in keys]
    turns = [Turn("".join(f"{key}: {value}\n" for key, value in pairs))]
    rng.shuffle(pairs)
    return turns + [Turn(f"{key}:", f" {value}\n") for key, value in pairs]


def session(rng: random.Random, *, heldout: bool = False) -> list[Turn]:
    """A line of words or a list of pairs, and its repetition."""
    return _line(rng) if rng.random() < 0.5 else _pairs(rng)
