"""The shortest call: each takes its turn, the first round is not timed."""

from types import SimpleNamespace

import pytest

from labkit.core.errors import ShapeError
from labkit.evaluate import shortest as module
from labkit.evaluate.shortest import shortest


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when a call is made."""
    now = SimpleNamespace(at=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now.at))
    return now


def _call(clock, durations, seen, name):
    left = iter(durations)

    def call():
        seen.append(name)
        clock.at += next(left)

    return call


def test_calls_take_turns_and_the_first_is_not_timed(clock):
    seen = []
    calls = [_call(clock, [1, 7, 5], seen, "a"), _call(clock, [1, 6, 9], seen, "b")]
    assert shortest(calls, rounds=2) == 5
    assert seen == ["a", "b"] * 3


def test_it_goes_on_until_the_time_is_spent(clock):
    seen = []
    assert shortest([_call(clock, [9, 3, 3, 2, 3], seen, "a")], rounds=1, seconds=10) == 2
    assert len(seen) == 5


@pytest.mark.parametrize(("calls", "rounds"), [([], 1), ([print], 0)])
def test_nothing_to_time(calls, rounds):
    with pytest.raises(ShapeError, match="1 or more"):
        shortest(calls, rounds=rounds)
