"""How the compiled loops of the GGUF types share their work out over threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numba
import torch

# Waking a second thread costs more than so few weights, and far more where cores are busy.
_SMALL = 2**16
_RUNS = 4
# The same for work that takes less than a nanosecond a weight.
FAST = 2**21


def run(
    serial: Callable[..., None],
    parallel: Callable[..., None],
    weights: int,
    threads: int,
    *arguments: object,
) -> None:
    """Call ``parallel`` on at most ``threads`` threads, or ``serial`` where one is enough.

    Args:
        serial, parallel: the same loop, compiled without and with ``parallel=True``.
        weights: how many there are to work on.
        arguments: for either.
    """
    if threads <= 1 or weights < _SMALL:
        serial(*arguments)
        return
    with at_most(threads):
        parallel(*arguments)


@contextmanager
def at_most(threads: int):
    """Have Numba use at most ``threads`` threads within; torch keeps the number that it has.

    Both use OpenMP, and Numba, once it starts, sets OpenMP's number to that of all cores.
    """
    of_torch = torch.get_num_threads()  # first: asking Numba sets OpenMP's number already
    before = numba.get_num_threads()
    wanted = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
    if wanted != before:
        numba.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            numba.set_num_threads(before)
        if torch.get_num_threads() != of_torch:
            torch.set_num_threads(of_torch)


def share(
    part: Callable[[int, int], None],
    blocks: int,
    weights: int,
    threads: int,
    most: int | None = None,
    least: int = _SMALL,
) -> None:
    """Call ``part(first, last)`` for runs that make up 0 … blocks, on at most ``threads`` threads.

    ``part`` must let go of the interpreter's lock (``nogil=True``). There are more runs than
    threads, so that one thread on a busy core does not keep all waiting.

    Args:
        weights: of a block.
        most: the most weights of a run, so that they stay in the cache; None: any number.
        least: with fewer weights than these in all, one thread does it.
    """
    alone = threads <= 1 or blocks * weights < least
    step = blocks if alone else -(-blocks // (_RUNS * threads))
    step = max(1, step if most is None else min(step, most // weights))
    firsts = range(0, blocks, step)
    if alone:
        for first in firsts:
            part(first, min(first + step, blocks))
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda first: part(first, min(first + step, blocks)), firsts))
