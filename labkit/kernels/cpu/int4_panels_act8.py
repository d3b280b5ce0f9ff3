"""W4A8 with panels on a CPU: x is rounded to int8 per token, put into slots, and summed by groups.

The kernels of a panel are in `int4_panel_bytes`.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_bytes import eight_tokens, four_tokens, one_token
from labkit.kernels.cpu.int4_panel_groups import TOKENS, panel_place
from labkit.kernels.cpu.loads import load_signed_bytes
from labkit.kernels.cpu.parallel import (
    arrange,
    compiled,
    float_rows,
    fours,
    part_count,
    run,
    shared,
)
from labkit.kernels.cpu.runs import complain
from labkit.kernels.cpu.tokens import round_token
from labkit.kernels.cpu.vectors import total_ints
from labkit.kernels.int4_panels import ROWS, Int4Panels
from labkit.quantize.lanes import splat

_NONE = np.int32(0)


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in], quantized per token, @ weight.T: float32 [tokens, out].

    Raises NonFiniteError for NaN or infinity.
    """
    rows, held = float_rows(x, weight.in_features), weight.arrays
    tokens, panels = fours(len(rows)), len(weight.codes)
    out = np.empty((tokens, panels * ROWS), np.float32)
    count = part_count(held[0].nbytes * tokens, panels)
    if not run(_multiply, count, rows, weight.order, *held, out):
        complain(rows)
    return torch.from_numpy(out[: len(rows), : weight.shape[0]])


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
    taken = np.empty((1, row.shape[0]), np.uint8)
    if round_token(row, taken[0], scale):
        return 1
    arrange(taken, order, x)
    _sum_groups(x[0], group_slots, sums)
    return 0


@shared
def _multiply(rows, order, codes, scales, half, zeros, group_slots, out, count):
    """Whether x is finite; ``out`` holds the product then."""
    tokens, slots, panels = out.shape[0], order.shape[0], codes.shape[0]
    groups, out_row = slots // group_slots, 4 * out.shape[1]
    x, scale_x = np.zeros((tokens, slots), np.uint8), np.zeros(tokens, np.float32)
    sums, given, bad = np.zeros((tokens, groups), np.int32), rows.shape[0], 0
    if given == 1:  # it takes less time than waking a thread
        bad = _take(rows[0], order, group_slots, x, scale_x, sums[0])
    else:
        for part in numba.prange(count):
            for t in range(part * given // count, (part + 1) * given // count):
                one = t + 1
                bad += _take(rows[t], order, group_slots, x[t:one], scale_x[t:one], sums[t])
    if bad:
        return False
    for part in numba.prange(count):
        for block in range(0, tokens, TOKENS):
            end = min(tokens, block + TOKENS)
            for panel in range(part * panels // count, (part + 1) * panels // count):
                c, s, z = panel_place(codes, scales, zeros, panel)
                token = block
                while token < end:
                    q, by = address_of(x) + token * slots, address_of(scale_x) + 4 * token
                    less = address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        one_token(c, s, half, z, groups, group_slots, q, less, by, y)
                        token += 1
                    elif end - token >= 8:
                        eight_tokens(
                            c, s, half, z, groups, group_slots, q, less, by, y, slots, out_row
                        )
                        token += 8
                    else:
                        four_tokens(
                            c, s, half, z, groups, group_slots, q, less, by, y, slots, out_row
                        )
                        token += 4
    return True
