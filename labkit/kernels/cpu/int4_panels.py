"""W4A16 with panels on a CPU: bfloat16 x by pairs where the processor can, else float32 x.

A bfloat16 x is multiplied as it is; a float16 one is widened. Any number of tokens goes this way,
four at a time: looking codes up again costs less than weights that are written out and read.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.codebook_panels import CodebookPanels
from labkit.kernels.cpu import int4_panel_floats as floats
from labkit.kernels.cpu import int4_panel_pairs as pairs
from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_groups import TOKENS, panel_place
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import (
    arrange,
    compiled,
    float_rows,
    fours,
    part_count,
    run,
    shared,
)
from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.nibble_panels import ROWS


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    return product(x, weight, weight.arrays)


def product(x: Tensor, weight: Int4Panels | CodebookPanels, held: tuple) -> Tensor:
    """The same with codes, scales, whether these are float16, zero-points and slots of a group."""
    if x.dtype == torch.bfloat16 and HAS_PAIRS:
        rows = x.contiguous().view(torch.int16).numpy()
        levels, order = weight.pair_levels, weight.pair_order
    else:
        rows = float_rows(x, weight.in_features)
        levels, order = weight.levels, weight.order
    tokens, panels = fours(len(rows)), len(weight.codes)
    out = np.empty((tokens, panels * ROWS), np.float32)
    count = part_count(held[0].nbytes * tokens, panels)
    run(_multiply, count, levels, rows, order, *held, out)
    return torch.from_numpy(out[: len(rows), : weight.shape[0]])


# x is int16 for pairs (the bits of bfloat16), else float32: `size`, its bytes, is known when Numba
# compiles. HAS_PAIRS stands alone in its branch, since what follows it must not even be compiled
# where the processor has no such instruction.


@compiled
def _sum_groups(size, x, groups, group_slots, sums):
    if HAS_PAIRS:  # noqa: SIM102
        if size == 2:
            pairs.sum_groups(x, groups, group_slots, sums)
            return
    floats.sum_groups(x, groups, group_slots, sums)


@compiled
def _one(size, levels, codes, scales, half, zeros, groups, group_slots, x, sums, out):
    """A panel with one token."""
    if HAS_PAIRS:  # noqa: SIM102
        if size == 2:
            pairs.one_token(levels, codes, scales, half, zeros, groups, group_slots, x, sums, out)
            return
    floats.one_token(levels, codes, scales, half, zeros, groups, group_slots, x, sums, out)


@compiled
def _four(size, levels, codes, scales, half, zeros, groups, group_slots, x, sums, out, x_row, row):
    """A panel with four tokens, whose x and results lie ``x_row`` and ``row`` bytes apart."""
    place = levels, codes, scales, half, zeros, groups, group_slots, x, x_row, sums, out, row
    if HAS_PAIRS:  # noqa: SIM102
        if size == 2:
            pairs.four_tokens(*place)
            return
    floats.four_tokens(*place)


@shared
def _multiply(levels, rows, order, codes, scales, half, zeros, group_slots, out, count):
    tokens, slots, panels, size = out.shape[0], order.shape[0], codes.shape[0], rows.itemsize
    groups, x_row, out_row = slots // group_slots, size * slots, 4 * out.shape[1]
    x = np.zeros((tokens, slots), rows.dtype)
    arrange(rows, order, x)
    sums = np.empty((tokens, groups), np.float32)
    for token in range(tokens if zeros.shape[0] > 0 else 0):  # else nothing is taken off
        _sum_groups(size, address_of(x[token]), groups, group_slots, sums[token])
    for part in numba.prange(count):
        table = address_of(levels)  # addresses of arrays that the loop itself keeps alive
        for block in range(0, tokens, TOKENS):
            for panel in range(part * panels // count, (part + 1) * panels // count):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    q, less = address_of(x) + token * x_row, address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    given = size, table, c, s, half, z, groups, group_slots, q, less, y
                    if tokens == 1:
                        _one(*given)
                    else:
                        _four(*given, x_row, out_row)
