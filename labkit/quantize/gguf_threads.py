"""How the compiled loops of the GGUF types share their work out over threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import numba

# Waking a second thread costs more than so few weights, and far more where cores are busy.
_SMALL = 2**16


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
    """Have Numba use at most ``threads`` threads within."""
    before = numba.get_num_threads()
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    try:
        yield
    finally:
        numba.set_num_threads(before)
