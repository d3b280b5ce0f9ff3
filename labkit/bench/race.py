"""Several ways to the same product, timed in turns, on a CPU or a GPU.

A decode step reads every weight of a model once, so a weight is never in the cache when its turn
comes. Each contestant therefore has calls on several copies of its weight, scales and all, more
than the cache holds, and is timed over all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.bench.rows import BenchRow
from labkit.core.huge_pages import copied

Call = Callable[[], Tensor]
Clock = Callable[[Sequence[Call]], list[float]]


@dataclass(frozen=True)
class Contestant:
    """One side: its calls, a copy of the weight each, and the exact result.

    Args:
        counts: what its seconds are multiplied by: a copy of a large buffer stands for that of as
            many bytes as the weight has.
    """

    name: str
    calls: list[Call]
    exact: Tensor | None
    note: str = ""
    counts: float = 1.0


def race(
    what: str,
    ours: Contestant,
    peers: list[Contestant],
    nbytes: int,
    rounds: int,
    clock: Clock | None = None,
) -> Iterator[BenchRow]:
    """Time all of them in turns; yield a row for each peer.

    Args:
        nbytes: of our weight.
        clock: seconds of each call, or their mean; None: `each_call`.
    """
    everyone = [ours, *peers]
    errors = [_error(one) for one in everyone]  # the first calls, which warm up and compile
    times: list[list[float]] = [[] for _ in everyone]
    for _ in range(rounds):
        for spent, one in zip(times, everyone, strict=True):
            spent += (clock or each_call)(one.calls)
    seconds = [
        one.counts * statistics.median(spent) for one, spent in zip(everyone, times, strict=True)
    ]
    for one, spent, error in zip(peers, seconds[1:], errors[1:], strict=True):
        speed = f"{nbytes / seconds[0] / 1e9:.1f} GB/s"
        note = f"{speed}, {one.note}" if one.note else speed
        yield BenchRow(what, one.name, seconds[0], spent, errors[0], error, len(times[0]), note)


def copies(weight: Tensor, count: int) -> list[Tensor]:
    """Copies of a tensor where it is; on a CPU in huge pages (`labkit.core.huge_pages`)."""
    copy = copied if weight.device.type == "cpu" else Tensor.clone
    return [copy(weight) for _ in range(count)]


_SETTLE = 0.01  # seconds: the threads of some libraries go on spinning for a while


def each_call(calls: Sequence[Call]) -> list[float]:
    """Seconds of each call but the first, on a CPU that nobody before has kept busy."""
    time.sleep(_SETTLE)
    calls[0]()  # its threads are awake, its code is in the cache
    spent = []
    for call in calls[1:] or calls:
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return spent


def on_the_card(calls: Sequence[Call]) -> list[float]:
    """The mean of all calls, in seconds of the GPU.

    Python needs longer to start a kernel than the kernel runs. So the card first sleeps as long as
    it takes to queue all of them, and then runs them without a gap, as it would from a CUDA graph.
    """
    started = time.perf_counter()
    for call in calls:
        call()
    queued = time.perf_counter() - started
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(2 * queued * _CYCLES))
    begin.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return [begin.elapsed_time(end) / 1e3 / len(calls)]


_CYCLES = 2e9  # a second of a card's clock, or more


def _error(one: Contestant) -> float | None:
    found = one.calls[0]()
    if one.exact is None:
        return None
    return float((found.double() - one.exact).norm() / one.exact.norm())
