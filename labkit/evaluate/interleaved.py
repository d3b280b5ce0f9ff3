"""Time several ways to the same end: in turns, so that a noisy moment strikes all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved_ms(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 30
) -> dict[str, float]:
    """The median time of a call in milliseconds, by name, after two calls each to warm up.

    Every round calls each function once, in an order that turns with the rounds.
    """
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * 2:
        functions[name]()
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            functions[name]()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}
