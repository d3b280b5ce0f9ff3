"""W4A16 with panels on a CPU: bfloat16 x by pairs where the processor can, else float32 x.

A bfloat16 x is multiplied as it is; a float16 one is widened. Any number of tokens goes this way,
four at a time: looking codes up again costs less than weights that are written out and read.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu import int4_panel_floats as floats
from labkit.kernels.cpu import int4_panel_pairs as pairs
from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_groups import TOKENS, panel_place
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import arrange, float_rows, fours, part_count, run, shared
from labkit.kernels.int4_panels import ROWS, Int4Panels


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    if x.dtype == torch.bfloat16 and HAS_PAIRS:
        rows, kernel = x.contiguous().view(torch.int16).numpy(), _by_pairs
        levels, order = pairs.LEVELS, weight.pair_order
    else:
        rows, kernel = float_rows(x, weight.in_features), _by_floats
        levels, order = floats.LEVELS, weight.order
    held, tokens, panels = weight.arrays, fours(len(rows)), len(weight.codes)
    out = np.empty((tokens, panels * ROWS), np.float32)
    count = part_count(held[0].nbytes * tokens, panels)
    run(kernel, count, levels, rows, order, *held, out)
    return torch.from_numpy(out)[: len(rows), : weight.shape[0]]


@shared
def _by_pairs(levels, rows, order, codes, scales, half, zeros, group_slots, out, count):
    tokens, slots, panels = out.shape[0], order.shape[0], codes.shape[0]
    groups, x_row, out_row = slots // group_slots, 2 * slots, 4 * out.shape[1]
    x = np.zeros((tokens, slots), np.int16)
    arrange(rows, order, x)
    sums = np.empty((tokens, groups), np.float32)
    for token in range(tokens):
        pairs.sum_groups(address_of(x[token]), groups, group_slots, sums[token])
    for part in numba.prange(count):
        table = address_of(levels)  # addresses of arrays that the loop itself keeps alive
        for block in range(0, tokens, TOKENS):
            for panel in range(part * panels // count, (part + 1) * panels // count):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    q, less = address_of(x) + token * x_row, address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        pairs.one_token(table, c, s, half, z, groups, group_slots, q, less, y)
                    else:
                        pairs.four_tokens(
                            table, c, s, half, z, groups, group_slots, q, x_row, less, y, out_row
                        )


@shared
def _by_floats(levels, rows, order, codes, scales, half, zeros, group_slots, out, count):
    tokens, slots, panels = out.shape[0], order.shape[0], codes.shape[0]
    groups, x_row, out_row = slots // group_slots, 4 * slots, 4 * out.shape[1]
    x = np.zeros((tokens, slots), np.float32)
    arrange(rows, order, x)
    sums = np.empty((tokens, groups), np.float32)
    for token in range(tokens):
        floats.sum_groups(address_of(x[token]), groups, group_slots, sums[token])
    for part in numba.prange(count):
        table = address_of(levels)
        for block in range(0, tokens, TOKENS):
            for panel in range(part * panels // count, (part + 1) * panels // count):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    q, less = address_of(x) + token * x_row, address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        floats.one_token(table, c, s, half, z, groups, group_slots, q, less, y)
                    else:
                        floats.four_tokens(
                            table, c, s, half, z, groups, group_slots, q, x_row, less, y, out_row
                        )
