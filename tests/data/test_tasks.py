"""Tasks: exact answers, the same from a seed, and nothing held out that training shows."""

import contextlib
import io
import random
import re

import pytest

from labkit.core.errors import CorpusError
from labkit.data.tasks import TASKS, make_task, training_session
from labkit.data.tasks.doctest import KINDS
from labkit.data.tasks.facts import VALUES, world
from labkit.data.tasks.item import is_held_out
from labkit.data.tasks.words import NAMES, NOUNS


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_questions(name):
    assert make_task(name, 20, seed=3) == make_task(name, 20, seed=3)
    assert make_task(name, 20, seed=3) != make_task(name, 20, seed=4)
    assert make_task(name, 30, seed=3)[:20] == make_task(name, 20, seed=3)


@pytest.mark.parametrize("name", TASKS)
def test_every_question_has_one_line_as_its_answer(name):
    for item in make_task(name, 100):
        assert item.answer.endswith("\n") and item.answer.strip() and item.kind
        assert "\n" not in item.answer[:-1]


def _run(prompt: str) -> str:
    """What the interactive interpreter prints after the last line of a session."""
    scope: dict = {}
    printed = ""
    for line in prompt.splitlines():
        if line.startswith(">>> "):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(line[4:] + "\n", "session", "single"), scope)
            printed = out.getvalue()
    return printed


@pytest.mark.parametrize("name", ["doctest", "repl"])
def test_python_itself_gives_the_answers(name):
    for item in make_task(name, 200):
        assert _run(item.prompt) == item.answer


def test_facts_are_those_of_the_world_and_among_the_options():
    for item in make_task("facts", 200):
        question, listed, _ = item.prompt.splitlines()
        name = next(n for n in NAMES if re.search(rf"\b{n}\b", question))
        options = listed.removeprefix("Options: ").split(", ")
        assert item.answer.strip() == world()[name][item.kind]
        assert len(set(options)) == 4 and item.answer.strip() in options


def test_everybody_has_one_value_of_each_attribute():
    assert set(world()) == set(NAMES)
    for attribute, values in VALUES.items():
        used = {person[attribute] for person in world().values()}
        assert used <= set(values) and len(used) >= 10  # no letter or word wins by frequency


def test_recall_asks_for_a_pair_of_its_own_haystack():
    for item in make_task("recall", 200):
        key = item.prompt.splitlines()[-1].removesuffix(" ->")
        lines = item.prompt.splitlines()[:-1]
        found = [n for n, line in enumerate(lines) if line.startswith(f"{key}: ")]
        assert len(found) == 1
        assert lines[found[0]] == f"{key}: {item.answer.strip()}"
        assert item.distance == len(lines) - found[0]
    distances = {item.distance for item in make_task("recall", 200)}
    assert min(distances) <= 2 and max(distances) >= 15


def test_training_never_shows_a_held_out_expression():
    rng = random.Random(0)
    shown = set()
    for _ in range(3000):
        for turn in training_session("doctest", rng):
            shown.add((turn.kind, turn.prompt[4:-1]))
    free = [text for kind, text in shown if KINDS[kind][2]]
    assert len(free) > 1000 and not any(map(is_held_out, free))
    asked = [item for item in make_task("doctest", 300) if KINDS[item.kind][2]]
    assert asked and all(is_held_out(item.prompt.splitlines()[-1][4:]) for item in asked)


def test_every_kind_is_asked():
    assert {item.kind for item in make_task("doctest", 300)} == set(KINDS)
    assert {item.kind for item in make_task("repl", 300)} == {"lookup", "sum"}


def test_words_are_distinct():
    assert len(set(NOUNS)) == len(NOUNS) and len(set(NAMES)) == len(NAMES)


def test_bad_arguments():
    with pytest.raises(CorpusError, match="doctest"):
        make_task("poetry", 3)
    with pytest.raises(CorpusError, match="at least one"):
        make_task("facts", 0)
