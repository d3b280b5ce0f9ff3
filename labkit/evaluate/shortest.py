"""The shortest time of a call: what the machine can do when nothing else is in its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from labkit.core.errors import ShapeError


def shortest(calls: Sequence[Callable[[], Any]], *, rounds: int = 3, seconds: float = 0.0) -> float:
    """Seconds of the shortest of all calls; each is made once before, to warm up.

    Args:
        calls: the same work on copies of its data, in turns, so that what a call reads has left
            the cache since it was last read. One call: it finds there what fits.
        rounds: every call is timed so often at least.
        seconds: and on until so much time is spent.

    Raises:
        ShapeError: no call, or no round.
    """
    if not calls or rounds < 1:
        raise ShapeError(f"{len(calls)} calls, {rounds} rounds", "shortest", "Expected 1 or more.")
    for call in calls:
        call()
    least, made, begun = float("inf"), 0, time.perf_counter()
    while made < rounds or time.perf_counter() - begun < seconds:
        for call in calls:
            started = time.perf_counter()
            call()
            least = min(least, time.perf_counter() - started)
        made += 1
    return least
