"""W4A8 with panels on a CPU: x is rounded to int8 per token, put into slots, and summed by groups.

The kernels of a panel are in `int4_panel_bytes`.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_bytes import four_tokens, one_token
from labkit.kernels.cpu.int4_panel_groups import BYTES_OF_SLOT, TOKENS, panel_place
from labkit.kernels.cpu.loads import load_signed_bytes
from labkit.kernels.cpu.operands import (
    empty_result,
    float_operand,
    floats_from,
    hand_over,
    sums_beside,
)
from labkit.kernels.cpu.parallel import arrange, compiled, fours, part_count, run, shared
from labkit.kernels.cpu.runs import complain
from labkit.kernels.cpu.tokens import round_token
from labkit.kernels.cpu.vectors import total_ints
from labkit.kernels.int4_panels import ROWS, Int4Panels
from labkit.quantize.lanes import splat

_NONE = np.int32(0)


def linear(x: Tensor, weight: Int4Panels, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [tokens, in], quantized per token, @ weight.T: [tokens, out].

    Args:
        dtype: of the result, as in `operands.empty_result`.

    Raises NonFiniteError for NaN or infinity.
    """
    x, held, (rows, columns) = float_operand(x), weight.arrays, weight.shape
    given = x.shape[0]
    y = empty_result(given, rows, dtype)
    count = part_count(held[0].nbytes * given, held[0].shape[0])
    result = y.data_ptr(), y.itemsize, rows
    if not run(_multiply, count, x.data_ptr(), given, columns, weight.order, *held, *result):
        complain(x.numpy())
    return y


@compiled
def _sum_groups(x, group_slots, sums):
    """sums[g] = the sum of int8 x over group g."""
    for group in range(sums.shape[0]):
        found = splat(_NONE)
        for slot in range(group * group_slots, (group + 1) * group_slots, 32):
            found = found + load_signed_bytes(x, slot) + load_signed_bytes(x, slot + 16)
        sums[group] = total_ints(found)


@compiled
def _take(row, order, group_slots, x, scale, sums):
    """Round a token and put it into slots; 1 if it is not finite, else 0."""
    if order.shape[0] == 0:
        bad = round_token(row, x[0], scale)
    else:
        taken = np.empty((1, row.shape[0]), np.uint8)
        bad = round_token(row, taken[0], scale)
        arrange(taken, order, x)
    _sum_groups(x[0], group_slots, sums)
    return bad


@shared
def _multiply(
    x_given, given, columns, order, codes, scales, half, zeros, group_slots, y, y_size, rows, count
):
    """Whether x is finite; y holds the product then."""
    tokens, panels, slots = fours(given), codes.shape[0], codes.shape[1] // BYTES_OF_SLOT
    groups, out_row = slots // group_slots, 4 * ROWS * panels
    x, scale_x = np.zeros((tokens, slots), np.uint8), np.zeros(tokens, np.float32)
    sums, bad = np.zeros((tokens, groups), np.int32), 0
    if given == 1:  # it takes less time than waking a thread
        only = floats_from(x_given, given, columns)[0]
        bad = _take(only, order, group_slots, x, scale_x, sums[0])
    else:
        for part in numba.prange(count):
            every = floats_from(x_given, given, columns)
            for t in range(part * given // count, (part + 1) * given // count):
                one = t + 1
                bad += _take(every[t], order, group_slots, x[t:one], scale_x[t:one], sums[t])
    if bad:
        return False
    found = sums_beside(tokens, given, ROWS * panels, y_size, rows)
    as_wanted = found.shape[0] == 0
    for part in numba.prange(count):
        out = y if as_wanted else address_of(found)
        first, last = part * panels // count, (part + 1) * panels // count
        for block in range(0, tokens, TOKENS):
            end = min(tokens, block + TOKENS)
            for panel in range(first, last):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, end, 4):
                    q, by = address_of(x) + token * slots, address_of(scale_x) + 4 * token
                    less = address_of(sums) + 4 * token * groups
                    at = out + token * out_row + 4 * ROWS * panel
                    operands = c, s, half, z, groups, group_slots, q, less, by, at
                    if tokens == 1:
                        one_token(*operands)
                    else:
                        four_tokens(*operands, slots, out_row)
        if not as_wanted:
            hand_over(found, first * ROWS, last * ROWS, y, y_size, given, rows)
    return True
