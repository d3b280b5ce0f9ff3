"""Threads that meet: nobody goes on before all have come, and nobody waits for one that gave up."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.kernels.cpu.parallel import compiled
from labkit.nn.decoder.team import Team, meet


@compiled
def _shift(part, count, gate, numbers, rounds):
    """Each thread adds its neighbour's number to its own; two meetings keep rounds apart."""
    for _ in range(rounds):
        other = numbers[(part + 1) % count]
        meet(gate, count)
        numbers[part] += other
        meet(gate, count)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rounds_stay_apart(threads) -> None:
    team = Team(threads)
    numbers = np.arange(1, threads + 1, dtype=np.int64)
    expected = numbers.copy()
    for _ in range(20):
        expected = expected + np.roll(expected, -1)
    for _ in range(4):
        team.run(_shift, numbers, 5)
    assert np.array_equal(numbers, expected)
    team.close()


def test_an_error_before_the_work_leaves_nobody_waiting() -> None:
    team = Team(2)
    numbers = np.ones(2, np.int64)
    with pytest.raises(TypeError):
        team.run(_fails_on_the_first, numbers)
    team.run(_shift, numbers, 3)
    assert numbers.tolist() == [8, 8]
    team.close()


def _fails_on_the_first(part, count, gate, numbers) -> None:
    if part == 0:
        raise TypeError("no")
    meet(gate, count)


def test_a_closed_team_works_alone() -> None:
    team = Team(3)
    team.close()
    numbers = np.ones(1, np.int64)
    team.run(_shift, numbers, 2)
    assert numbers.tolist() == [4]
