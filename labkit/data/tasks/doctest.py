"""Doctest: what an expression evaluates to, as the interactive interpreter prints it.

Answers come from Python itself. Numbers have at most two digits, words come from a fixed list.
Expressions whose hash says so never occur in training (`is_held_out`); the multiplication table,
comparisons of digits and questions about one word are too few to hold any out, and are recalled.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from labkit.data.tasks.item import Turn, is_held_out
from labkit.data.tasks.words import QUOTED


def _addition(rng: random.Random) -> str:
    return f"{rng.randint(0, 99)} + {rng.randint(0, 99)}"


def _subtraction(rng: random.Random) -> str:
    low, high = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    return f"{high} - {low}"


def _product(rng: random.Random) -> str:
    return f"{rng.randint(0, 9)} * {rng.randint(0, 9)}"


def _comparison(rng: random.Random) -> str:
    return f"{rng.randint(0, 9)} {rng.choice(['<', '>', '=='])} {rng.randint(0, 9)}"


def _one_word(rng: random.Random) -> str:
    word = repr(rng.choice(QUOTED))
    template = rng.choice(("{}.upper()", "len({})", "{}[0]", "{}[-1]", "{}.title()"))
    return template.format(word)


def _two_words(rng: random.Random) -> str:
    first, second = repr(rng.choice(QUOTED)), repr(rng.choice(QUOTED))
    template = rng.choice(("{0} + {1}", "[{0}, {1}]", "{0} == {1}", "[{0}, {1}][1]", "{0} * 2"))
    if template.startswith("{0} ==") and rng.random() < 0.5:
        second = first
    return template.format(first, second)


def _digits(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randint(0, 9) for _ in range(rng.randint(low, high))]


def _list(rng: random.Random) -> str:
    values = _digits(rng, 2, 5)
    template = rng.choice(
        (
            "sorted({0})",
            "max({0})",
            "min({0})",
            "len({0})",
            "{0}[0]",
            "{0}[-1]",
            "{0} + {1}",
            "{0}[1:]",
        )
    )
    return template.format(values, _digits(rng, 1, 3))


# kind -> (share, generator, whether its expressions are many enough to hold some out)
KINDS: dict[str, tuple[int, Callable[[random.Random], str], bool]] = {
    "addition": (5, _addition, True),
    "subtraction": (4, _subtraction, True),
    "product": (2, _product, False),
    "comparison": (1, _comparison, False),
    "one word": (2, _one_word, False),
    "two words": (2, _two_words, True),
    "list": (4, _list, True),
}


def _expression(rng: random.Random, *, heldout: bool) -> tuple[str, str]:
    shares = [share for share, _, _ in KINDS.values()]
    kind = rng.choices(list(KINDS), shares)[0]
    _, generate, can_hold_out = KINDS[kind]
    while True:
        expression = generate(rng)
        if not can_hold_out or is_held_out(expression) == heldout:
            return kind, expression


def session(rng: random.Random, *, heldout: bool) -> list[Turn]:
    """One to six evaluated expressions; the last one is a held-out one where that is asked."""
    count = 3 if heldout else rng.randint(1, 6)
    turns = []
    for index in range(count):
        kind, text = _expression(rng, heldout=heldout and index == count - 1)
        # The text was put together above from digits, list literals and fixed words.
        value = eval(text, {"__builtins__": {"len": len, "max": max, "min": min, "sorted": sorted}})
        turns.append(Turn(f">>> {text}\n", f"{value!r}\n", kind))
    return turns
