"""How kernels are compiled, how rows are dealt out to threads, and how x is laid down for them.

Numba's threads are OpenMP's, from the library that torch has loaded, so both use one set of
threads: a second set would wait on the cores where the first one still spins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
import torch
from numba.np.ufunc import parallel as threads
from torch import Tensor

from labkit import quantize
from labkit.core.compiled import drop_stale
from labkit.kernels.cpu.loads import half_bits, load_halves
from labkit.kernels.cpu.vectors import HAS_HALF, half_lanes
from labkit.quantize.gguf_threads import at_most
from labkit.quantize.half_numba import from_half, wide
from labkit.quantize.lanes import LANES, store

drop_stale(Path(__file__).parent, Path(quantize.__file__).parent)

inlined = numba.njit(error_model="numpy", forceinline=True)
# Products may be contracted (an FMA rounds once), nothing else about floats is given up.
compiled = numba.njit(cache=True, error_model="numpy", fastmath={"contract"}, nogil=True)
_threaded = numba.njit(
    cache=True, error_model="numpy", fastmath={"contract"}, nogil=True, parallel=True
)


def shared(function: FunctionType) -> Callable:
    """Compile ``function``, whose argument ``count`` says in how many parts its loop runs.

    With one part the same loop is compiled without threads, and runs in the caller's own: waking
    OpenMP's costs more than a small product, and far more where the cores are busy.
    """
    place = list(inspect.signature(function).parameters).index("count")
    code = function.__code__
    # Numba names the files that it keeps after the function: two forms need two names.
    alone = FunctionType(code, function.__globals__, f"{function.__name__}_alone")
    alone.__qualname__, alone.__module__ = f"{function.__qualname__}_alone", function.__module__
    threaded, alone = _threaded(function), compiled(alone)

    @wraps(function)
    def call(*arguments):
        return (alone if arguments[place] == 1 else threaded)(*arguments)

    return call


# Waking a second thread costs more than so many bytes of weights.
_SMALL = 2**17
_MOST = numba.config.NUMBA_NUM_THREADS  # fixed when Numba is imported
_EMPTY_HALVES, _EMPTY_FLOATS = np.empty((0, 0), np.uint16), np.empty((0, 0), np.float32)


def part_count(nbytes: int, rows: int) -> int:
    """Into how many parts to cut ``rows`` that hold ``nbytes``, a part for a thread."""
    if nbytes < _SMALL or rows == 0:
        return 1
    return min(torch.get_num_threads(), _MOST, rows)


@contextmanager
def parts(nbytes: int, rows: int):
    """Yield `part_count`, and have Numba use so many threads within."""
    count = part_count(nbytes, rows)
    if count == 1:
        yield 1
        return
    with at_most(count):
        yield count


# Tells Numba's number of threads, once they have started. `numba.get_num_threads` takes two locks
# and then calls this, which has no public name; where it has none at all, the locks are taken.
_COUNTED: list[Callable[[], int]] = []


def run(kernel: Callable, count: int, *arguments):
    """kernel(*arguments, count), a kernel that is `shared`, with ``count`` threads.

    Between two weights nothing of Python stays in the cache, and each of its steps takes longer
    than by itself: so `at_most` is left out where Numba has that number already. When Numba is
    asked for the first time it starts its threads, which changes torch's number.
    """
    if count == 1 or (_COUNTED and _COUNTED[0]() == count):
        return kernel(*arguments, count)
    with at_most(count):
        found = kernel(*arguments, count)
    if not _COUNTED:
        _COUNTED.append(getattr(threads, "_get_num_threads", None) or numba.get_num_threads)
    return found


def float_rows(x: Tensor, columns: int) -> np.ndarray:
    """x [..., columns] as float32 [tokens, columns], contiguous."""
    x = x.detach() if x.requires_grad else x
    flat = x if x.ndim == 2 else x.reshape(-1, columns)
    flat = flat if flat.dtype == torch.float32 else flat.to(torch.float32)
    return np.ascontiguousarray(flat.numpy())


@compiled
def fours(tokens):
    """Several tokens are taken four at a time: how many that makes, empty ones counted."""
    return tokens if tokens < 2 else -(-tokens // 4) * 4


def scale_arrays(scale: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A scale [out, groups] as (float16 bits, nothing) or (nothing, float32)."""
    if scale.dtype == torch.float16:
        return scale.view(torch.uint16).numpy(), _EMPTY_FLOATS
    return _EMPTY_HALVES, scale.numpy()


@compiled
def arrange(rows, order, out):
    """out[t, s] = rows[t, order[s]]; where order[s] is -1, out stays the zero that it was.

    Without an order slot s has column s.
    """
    natural = order.shape[0] == 0
    for token in range(rows.shape[0]):
        for slot in range(out.shape[1]):
            column = slot if natural else order[slot]
            if column >= 0:
                out[token, slot] = rows[token, column]


@inlined
def widen(scale16, scale32, row, out):
    """out[g] = the scale of group g of ``row``, float32, whichever of the arrays holds it."""
    groups = out.shape[0]
    if scale32.shape[0] > 0:
        for group in range(groups):
            out[group] = scale32[row, group]
        return
    halves, done = scale16[row], 0
    while done + LANES <= groups:
        store(out, done, half_lanes(load_halves(halves, done)))
        done += LANES
    for group in range(done, groups):
        out[group] = wide(halves[group])


@inlined
def half_at(bytes_, place):
    """The float16 whose two bytes begin at ``place``, as float32."""
    if HAS_HALF:
        return half_bits(bytes_, place)
    return from_half(bytes_[place], bytes_[place + 1])
