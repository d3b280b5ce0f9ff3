"""Threads that work through one compiled function together, and wait for each other within it.

A token passes nine points in every layer where all threads must have finished before any goes on.
A parallel loop wakes its threads anew at each; a counter in memory that all watch costs far less.
Only threads that really run side by side may wait for each other like that, so they are threads of
their own and not those of a loop's pool, which may be fewer than was asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from labkit.kernels.cpu.parallel import compiled
from labkit.quantize.lanes_ir import INT_IR, call

_PATIENCE = 20_000  # looks at the counter before giving way
_ARRIVED, _ROUND = 0, 8  # a cache line each


def new_gate() -> np.ndarray:
    """The memory of a meeting point."""
    return np.zeros(16, np.int64)


def _place(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


@intrinsic
def _add(typing_context, array, index, value):
    """Add to array[index] (int64) as one step that no thread can come between; what it was."""

    def generate(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def _look(typing_context, array, index):
    """array[index] (int64) as it is in memory now."""

    def generate(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.intp), generate


@intrinsic
def _give_way(typing_context):
    """Let another thread have the core, where the system has a word for it."""

    def generate(context, builder, signature, arguments):
        if os.name == "posix":
            call(builder, "sched_yield", INT_IR, [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def meet(gate, count):
    """Return when all ``count`` threads have called it, or at once where one has given up."""
    this = _look(gate, _ROUND)
    if count == 1 or this < 0:
        return
    if _add(gate, _ARRIVED, 1) == count - 1:
        _add(gate, _ARRIVED, -count)
        _add(gate, _ROUND, 1)
        return
    looks = 0
    while _look(gate, _ROUND) == this:
        looks += 1
        if looks > _PATIENCE:
            _give_way()


class Team:
    """``threads`` threads, the caller's among them; the others wait while there is nothing to do.

    They end when the team is closed, or with the process.
    """

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self.gate = new_gate()
        self._orders: list[SimpleQueue] = [SimpleQueue() for _ in range(self.threads - 1)]
        for part, orders in enumerate(self._orders, start=1):
            threading.Thread(target=_work, args=(part, orders), daemon=True).start()

    def run(self, function: Callable[..., None], *arguments: object) -> None:
        """function(part, threads, gate, *arguments) on every thread, part 0 on this one.

        ``function`` is compiled, lets go of the interpreter's lock, raises nothing, and ends with
        a `meet`.
        """
        try:
            for orders in self._orders:
                orders.put((function, self.threads, self.gate, arguments))
            function(0, self.threads, self.gate, *arguments)
        except BaseException:
            # Interrupted before its part began: the others must not wait for it.
            self.gate[_ROUND] = np.iinfo(np.int64).min
            self.gate = new_gate()
            raise

    def close(self) -> None:
        """Let the other threads end."""
        for orders in self._orders:
            orders.put(None)
        self._orders = []
        self.threads = 1

    def __del__(self) -> None:
        self.close()


def _work(part: int, orders: SimpleQueue) -> None:
    while (order := orders.get()) is not None:
        function, threads, gate, arguments = order
        function(part, threads, gate, *arguments)
        del order, arguments
