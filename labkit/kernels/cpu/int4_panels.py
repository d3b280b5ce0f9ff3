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
from labkit.kernels.cpu.int4_panel_groups import BYTES_OF_SLOT, TOKENS, panel_place
from labkit.kernels.cpu.operands import (
    empty_result,
    float_operand,
    floats_from,
    hand_over,
    shorts_from,
    sums_beside,
)
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import (
    arrange,
    compiled,
    fours,
    part_count,
    run,
    shared,
)
from labkit.kernels.int4_panels import Int4Panels
from labkit.kernels.nibble_panels import ROWS


def linear(x: Tensor, weight: Int4Panels, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, [tokens, out]; ``dtype``: as in `empty_result`."""
    return product(x, weight, weight.arrays, dtype)


def product(
    x: Tensor, weight: Int4Panels | CodebookPanels, held: tuple, dtype: torch.dtype
) -> Tensor:
    """The same with codes, scales, whether these are float16, zero-points and slots of a group."""
    if x.dtype == torch.bfloat16 and HAS_PAIRS:
        x, levels, order = x.contiguous(), weight.pair_levels, weight.pair_order
    else:
        x, levels, order = float_operand(x), weight.levels, weight.order
    rows, columns = weight.shape
    given = x.shape[0]
    y = empty_result(given, rows, dtype)
    count = part_count(held[0].nbytes * given, held[0].shape[0])
    result = y.data_ptr(), y.itemsize, rows
    run(_multiply, count, levels, x.data_ptr(), x.itemsize, given, columns, order, *held, *result)
    return y


# x has numbers of ``size`` bytes: 2 for pairs (the bits of bfloat16), 4 for float32. HAS_PAIRS
# stands alone in its branch, since what follows it must not even be compiled where the processor
# has no such instruction.


@compiled
def _lay_down(size, x, given, columns, order, out):
    """x [given, columns] in the order of the slots; slots of no column stay the zeros they were."""
    tokens, slots = out.shape[0], out.shape[1] // size
    if HAS_PAIRS:  # noqa: SIM102
        if size == 2 and len(order) == 0:
            for token in range(given):
                place = address_of(out) + token * out.shape[1]
                pairs.lay_down(x + 2 * token * columns, columns, place)
            return
    if size == 2:
        arrange(shorts_from(x, given, columns), order, shorts_from(address_of(out), tokens, slots))
    else:
        arrange(floats_from(x, given, columns), order, floats_from(address_of(out), tokens, slots))


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
def _multiply(
    levels,
    x_given,
    size,
    given,
    columns,
    order,
    codes,
    scales,
    half,
    zeros,
    group_slots,
    y,
    y_size,
    rows,
    count,
):
    tokens, panels, slots = fours(given), codes.shape[0], codes.shape[1] // BYTES_OF_SLOT
    groups, x_row, out_row = slots // group_slots, size * slots, 4 * ROWS * panels
    # As they are if they can be; else x is laid down, and the sums are handed over in the end.
    as_given = size == 4 and len(order) == 0 and tokens == given
    laid = np.zeros((0 if as_given else tokens, x_row), np.uint8)
    found = sums_beside(tokens, given, ROWS * panels, y_size, rows)
    as_wanted = found.shape[0] == 0
    if not as_given:
        _lay_down(size, x_given, given, columns, order, laid)
    sums = np.empty((tokens, groups), np.float32)
    for token in range(tokens if zeros.shape[0] > 0 else 0):  # else nothing is taken off
        at = x_given if as_given else address_of(laid)
        _sum_groups(size, at + token * x_row, groups, group_slots, sums[token])
    for part in numba.prange(count):
        # addresses of arrays that the loop itself keeps alive
        table, x = address_of(levels), x_given if as_given else address_of(laid)
        out = y if as_wanted else address_of(found)
        first, last = part * panels // count, (part + 1) * panels // count
        for block in range(0, tokens, TOKENS):
            for panel in range(first, last):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    q, less = x + token * x_row, address_of(sums) + 4 * token * groups
                    at = out + token * out_row + 4 * ROWS * panel
                    operands = size, table, c, s, half, z, groups, group_slots, q, less, at
                    if tokens == 1:
                        _one(*operands)
                    else:
                        _four(*operands, x_row, out_row)
        if not as_wanted:
            hand_over(found, first * ROWS, last * ROWS, y, y_size, given, rows)
