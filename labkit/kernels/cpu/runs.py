"""Activations to int8 on a CPU, a scale for each run of 32: to the bit what `reference.runs` gives.

Beside codes and scales it leaves the sum of every sixteen codes, which takes the zero-point of a
weight out of a product.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.core.errors import NonFiniteError
from labkit.kernels.cpu.parallel import compiled, inlined, parts, shared
from labkit.kernels.cpu.vectors import largest, total_ints
from labkit.quantize.lanes import absolute, any_lane, bits_of, load, select, splat, store_bytes

RUN = 32
_ROUND = np.float32(1.5 * 2**23)  # added, it leaves the rounded integer in the low bits
_ROUND_BITS = np.int32(_ROUND.view(np.int32))
_ZERO, _ONE, _REACH = np.float32(0), np.float32(1), np.float32(127)
_LARGEST, _SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).tiny


def quantize_runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [tokens, features] -> codes int8, scale [tokens, features / 32], sums [.., / 16].

    Raises NonFiniteError for NaN or infinity.
    """
    tokens, features = rows.shape
    codes = np.empty((tokens, features), np.int8)
    scale = np.empty((tokens, features // RUN), np.float32)
    sums = np.empty((tokens, features // RUN * 2), np.int32)
    with parts(rows.nbytes // 4, max(1, tokens)) as count:
        finite = _quantize(rows, count, codes.view(np.uint8), scale, sums)
    if not finite:
        bad = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise NonFiniteError(
            f"token {bad} holds NaN or infinity", "activations", "Find out where it comes from."
        )
    return codes, scale, sums


@inlined
def _code(x, scale):
    return bits_of(x / splat(scale) + splat(_ROUND)) - splat(_ROUND_BITS)


@compiled
def _row(row, codes, scale, sums):
    """A token; how many of its runs are not finite."""
    bad = 0
    for run in range(scale.shape[0]):
        x, y = load(row, RUN * run), load(row, RUN * run + 16)
        a, b = absolute(x), absolute(y)
        most = largest(select(a > b, a, b))
        wrong = select(a <= splat(_LARGEST), _none(b), splat(_ONE)) > splat(_ZERO)
        if any_lane(wrong):
            bad += 1
            continue
        step = _ONE if most == 0 else max(np.float32(most / _REACH), _SMALLEST)
        first, second = _code(x, step), _code(y, step)
        store_bytes(codes, RUN * run, first)
        store_bytes(codes, RUN * run + 16, second)
        scale[run] = step
        sums[2 * run], sums[2 * run + 1] = total_ints(first), total_ints(second)
    return bad


@inlined
def _none(b):
    """0 where b is finite, else 1."""
    return select(b <= splat(_LARGEST), splat(_ZERO), splat(_ONE))


@shared
def _quantize(rows, count, codes, scale, sums):
    tokens, bad = rows.shape[0], 0
    for part in numba.prange(count):
        for token in range(part * tokens // count, (part + 1) * tokens // count):
            bad += _row(rows[token], codes[token], scale[token], sums[token])
    return bad == 0
