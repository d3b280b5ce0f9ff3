"""Activations to int8 on a CPU, a scale for each run of 32: to the bit what `reference.runs` gives.

Beside codes and scales it leaves what a weight's zero-point needs: minus the sum of every sixteen
numbers that the codes stand for.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from labkit.core.errors import NonFiniteError
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import largest, multiply_add, total, total_ints
from labkit.quantize.lanes import LANES, absolute, bits_of, load, select, splat, store_bytes

RUN = 32
# Added to a small float32 it leaves no room for a fraction: the rounded integer is in the low bits.
ROUND = np.float32(1.5 * 2**23)
ROUND_BITS = np.int32(ROUND.view(np.int32))
_ZERO, _ONE, REACH = np.float32(0), np.float32(1), np.float32(127)
SMALLEST = np.finfo(np.float32).tiny


@inlined
def rounded(x, step):
    """round(x / step) of each lane, half to even, as int32; for magnitudes up to 2^22."""
    return bits_of(x / splat(step) + splat(ROUND)) - splat(ROUND_BITS)


@compiled
def round_run(row, run, codes, scale, less):
    """Run ``run`` of a token: 32 codes into uint8 memory, its scale, and two sums in ``less``.

    What is not finite is rounded to something.
    """
    place = RUN * run
    x, y = load(row, place), load(row, place + LANES)
    a, b = absolute(x), absolute(y)
    most = largest(select(a > b, a, b))
    step = _ONE if most == 0 else max(np.float32(most / REACH), SMALLEST)
    first, second = rounded(x, step), rounded(y, step)
    store_bytes(codes, place, first)
    store_bytes(codes, place + LANES, second)
    scale[run] = step
    less[2 * run] = -step * np.float32(total_ints(first))
    less[2 * run + 1] = -step * np.float32(total_ints(second))


@compiled
def sum_run(row, run, less):
    """The two sums of `round_run` for a run that stays float32."""
    less[2 * run] = -total(load(row, RUN * run))
    less[2 * run + 1] = -total(load(row, RUN * run + LANES))


@compiled
def round_token(row, codes, scale, less):
    """All runs of a token; 1 if anything in it is NaN or infinite, else 0."""
    nothing = splat(_ZERO)
    for run in range(scale.shape[0]):
        round_run(row, run, codes, scale, less)
        nothing = multiply_add(load(row, RUN * run), splat(_ZERO), nothing)
        nothing = multiply_add(load(row, RUN * run + LANES), splat(_ZERO), nothing)
    return 0 if total(nothing) == 0 else 1


def complain(rows: np.ndarray) -> NoReturn:
    """Raise NonFiniteError with the first token of ``rows`` that is not finite."""
    bad = int(np.argmin(np.isfinite(rows).all(axis=1)))
    raise NonFiniteError(
        f"token {bad} holds NaN or infinity", "activations", "Find out where it comes from."
    )
