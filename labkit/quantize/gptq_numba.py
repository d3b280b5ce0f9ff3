"""The inner loop of GPTQ, compiled: the same bits as `labkit.quantize.gptq.round_block`, faster.

Rows do not depend on each other, columns do. So the lanes of a vector register are rows: a tile of
ROWS rows is turned on its side ([columns, ROWS]) and stays in the cache while its columns are
rounded one after the other. Columns go in steps of STEP: inside a step each error moves on at once;
what lies behind the step takes all STEP errors in one pass, one after the other, so that every
weight sees the same subtractions in the same order as in the plain loop.

Rounding adds and subtracts 1.5 * 2^23: where the steps of float32 are 1, the addition itself rounds
half to even. It needs |x| < 2^22, hence the clamp in front, far outside of any code.
"""

from __future__ import annotations

import numba
import numpy as np

from labkit.quantize.gguf_threads import at_most

ROWS = 64
STEP = 8
_ROUND = np.float32(1.5 * 2**23)
_FAR = np.float32(2**20)
_SMALL = 2**18


def round_block(weight, factor, scale, zero, group, qmin, qmax, codes, errors, threads=1):
    """Round a block of columns in place: weight becomes its rounded values.

    Args:
        weight: float32 [out, block], corrected for all columns before; overwritten.
        factor: float32 [block, block], the block of U.
        scale, zero: float32 [out, groups].
        group: int64 [block], the column's group.
        qmin, qmax: float32, the ends of the integer range.
        codes: int8 or uint8 [out, block]; written.
        errors: float32 [out, block]; written.
        threads: how many to use at most; small blocks take one.
    """
    arguments = (weight, factor, scale, zero, group, qmin, qmax, codes, errors)
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    # Waking a second thread costs more than a small block, and far more where cores are busy.
    if threads == 1 or weight.size < _SMALL:
        _serial(*arguments)
        return
    with at_most(threads):
        _parallel(*arguments)


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _serial(weight, factor, scale, zero, group, qmin, qmax, codes, errors):
    for first in range(0, weight.shape[0], ROWS):
        _round_rows(first, weight, factor, scale, zero, group, qmin, qmax, codes, errors)


@numba.njit(parallel=True, cache=True, error_model="numpy", boundscheck=False)
def _parallel(weight, factor, scale, zero, group, qmin, qmax, codes, errors):
    for chunk in numba.prange((weight.shape[0] + ROWS - 1) // ROWS):
        first = chunk * ROWS
        _round_rows(first, weight, factor, scale, zero, group, qmin, qmax, codes, errors)


@numba.njit(cache=True, error_model="numpy", boundscheck=False)
def _round_rows(first, weight, factor, scale, zero, group, qmin, qmax, codes, errors):
    """Round the ROWS rows from ``first`` on, or as many as there are."""
    rows, columns = weight.shape
    here = min(ROWS, rows - first)
    tile = np.zeros((columns, ROWS), np.float32)
    wrong = np.zeros((columns, ROWS), np.float32)
    code = np.zeros((columns, ROWS), codes.dtype)
    steps = np.ones(ROWS, np.float32)
    zeros = np.zeros(ROWS, np.float32)
    for r in range(here):
        for j in range(columns):
            tile[j, r] = weight[first + r, j]
    for start in range(0, columns, STEP):
        stop = min(start + STEP, columns)
        for j in range(start, stop):
            if j == 0 or group[j] != group[j - 1]:
                for r in range(here):
                    steps[r] = scale[first + r, group[j]]
                    zeros[r] = zero[first + r, group[j]]
            _round_column(tile[j], wrong[j], code[j], steps, zeros, factor[j, j], qmin, qmax)
            for k in range(j + 1, stop):
                u = factor[j, k]
                for r in range(ROWS):
                    tile[k, r] -= wrong[j, r] * u
        if stop == start + STEP:
            _pass_on(tile, wrong, factor, start, stop, columns)
    for r in range(here):
        for j in range(columns):
            weight[first + r, j] = tile[j, r]
            errors[first + r, j] = wrong[j, r]
            codes[first + r, j] = code[j, r]


@numba.njit(inline="always", error_model="numpy", boundscheck=False)
def _round_column(column, wrong, code, steps, zeros, diagonal, qmin, qmax):
    """Round one column of ROWS weights; write the rounded values, errors and codes."""
    for r in range(ROWS):
        x = column[r] / steps[r]
        x = min(max(x, -_FAR), _FAR)
        q = (x + _ROUND) - _ROUND
        q = min(max(q + zeros[r], qmin), qmax)
        value = (q - zeros[r]) * steps[r]
        wrong[r] = (column[r] - value) / diagonal
        column[r] = value
        code[r] = np.int32(q)


@numba.njit(inline="always", error_model="numpy", boundscheck=False)
def _pass_on(tile, wrong, factor, start, stop, columns):
    """Take STEP errors off every later column of the tile, in order, with one load and store."""
    for k in range(stop, columns):
        u0, u1, u2, u3 = (
            factor[start, k],
            factor[start + 1, k],
            factor[start + 2, k],
            factor[start + 3, k],
        )
        u4, u5, u6, u7 = (
            factor[start + 4, k],
            factor[start + 5, k],
            factor[start + 6, k],
            factor[start + 7, k],
        )
        for r in range(ROWS):
            w = tile[k, r]
            w -= wrong[start, r] * u0
            w -= wrong[start + 1, r] * u1
            w -= wrong[start + 2, r] * u2
            w -= wrong[start + 3, r] * u3
            w -= wrong[start + 4, r] * u4
            w -= wrong[start + 5, r] * u5
            w -= wrong[start + 6, r] * u6
            w -= wrong[start + 7, r] * u7
            tile[k, r] = w
