"""Facts: multiple choice over a synthetic world that only the training text describes.

48 people, four attributes each, drawn once from a fixed seed. Nothing in a question gives the
answer away: the model must have stored the fact to choose among four options of the same kind.
Questions are new in evaluation (other wrong options, other order); the facts are those of training.
"""

from __future__ import annotations

import random
from functools import cache

from labkit.data.tasks.item import Turn
from labkit.data.tasks.words import NAMES

VALUES = {
    "city": "Oslo Rome Cairo Lima Paris Delhi Tokyo Quito Dublin Vienna Prague Boston".split(),
    "job": "baker pilot nurse judge farmer painter doctor singer miner writer tailor guard".split(),
    "pet": "cat dog parrot rabbit turtle hamster pony goat snake ferret goose lizard".split(),
    "colour": "red blue green yellow black white orange purple brown pink grey silver".split(),
}
_STATEMENT = {
    "city": "{name} lives in {value}.",
    "job": "{name} works as a {value}.",
    "pet": "{name} keeps a {value}.",
    "colour": "{name} likes the colour {value}.",
}
_QUESTION = {
    "city": "Where does {name} live?",
    "job": "What is the job of {name}?",
    "pet": "Which pet does {name} keep?",
    "colour": "Which colour does {name} like?",
}


@cache
def world() -> dict[str, dict[str, str]]:
    """name -> attribute -> value; the same on every machine."""
    rng = random.Random(20)
    return {name: {key: rng.choice(values) for key, values in VALUES.items()} for name in NAMES}


def _fact(rng: random.Random) -> tuple[str, str]:
    """A name and an attribute."""
    return rng.choice(NAMES), rng.choice(list(VALUES))


def _question(rng: random.Random, name: str, attribute: str) -> Turn:
    answer = world()[name][attribute]
    options = rng.sample([value for value in VALUES[attribute] if value != answer], 3)
    options.insert(rng.randrange(4), answer)
    question = _QUESTION[attribute].format(name=name)
    prompt = f"Question: {question}\nOptions: {', '.join(options)}\nAnswer:"
    return Turn(prompt, f" {answer}\n", attribute)


def _statement(name: str, attribute: str) -> Turn:
    value = world()[name][attribute]
    before, after = _STATEMENT[attribute].split(" {value}")
    return Turn(before.format(name=name), f" {value}{after}\n", attribute)


def session(rng: random.Random, *, heldout: bool) -> list[Turn]:
    """One question alone for evaluation; statements, questions, or both for training.

    A statement right before its question shows that both speak of one fact; the question alone
    has to recall it.
    """
    if heldout:
        return [_question(rng, *_fact(rng))]
    turns: list[Turn] = []
    for _ in range(rng.randint(1, 4)):
        fact, form = _fact(rng), rng.random()
        if form < 0.5:
            turns.append(_statement(*fact))
        if form > 0.2:
            turns.append(_question(rng, *fact))
    return turns
