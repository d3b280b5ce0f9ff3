"""Recall: find the value that was paired with a key some lines ago (a needle in a haystack).

Keys and values are drawn afresh for each session, so nothing can be memorised. The haystack is
other pairs, or sentences from a small grammar.
"""

from __future__ import annotations

import random

from labkit.data.tasks.item import Turn
from labkit.data.tasks.words import NOUNS

_ADJECTIVES = "old small quiet bright heavy green early narrow warm distant".split()
_VERBS = "follows covers meets carries finds leaves paints guards".split()
MAX_PAIRS = 24
MAX_SENTENCES = 20


def _sentence(rng: random.Random) -> str:
    one, two = rng.sample(_ADJECTIVES, 2)
    return f"The {one} {rng.choice(NOUNS)} {rng.choice(_VERBS)} the {two} {rng.choice(NOUNS)}.\n"


def _haystack(rng: random.Random) -> list[tuple[str, str] | None]:
    """Lines in order: a (key, value) pair, or None where a sentence stands."""
    if rng.random() < 0.6:
        pairs, sentences = rng.randint(2, MAX_PAIRS), 0
    else:
        pairs, sentences = rng.randint(1, 6), rng.randint(2, MAX_SENTENCES)
    keys = rng.sample(NOUNS, pairs)
    lines: list[tuple[str, str] | None] = [(key, rng.choice(NOUNS)) for key in keys]
    lines += [None] * sentences
    rng.shuffle(lines)
    return lines


def session(rng: random.Random, *, heldout: bool) -> list[Turn]:
    """A haystack, then questions about its pairs: up to sixteen in training, one in evaluation."""
    lines = _haystack(rng)
    text = "".join(_sentence(rng) if pair is None else f"{pair[0]}: {pair[1]}\n" for pair in lines)
    places = [index for index, pair in enumerate(lines) if pair is not None]
    asked = rng.sample(places, 1 if heldout else min(len(places), 16))
    turns = [Turn(text)]
    for order, place in enumerate(asked):
        key, value = lines[place]  # type: ignore[misc]
        distance = len(lines) - place + order
        turns.append(Turn(f"{key} ->", f" {value}\n", "pair", distance))
    return turns
