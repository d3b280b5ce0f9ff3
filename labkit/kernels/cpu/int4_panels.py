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
from labkit.kernels.cpu.int4_panel_arrays import TOKENS, arrays, panel_place
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import arrange, float_rows, fours, parts, shared
from labkit.kernels.int4_panels import ROWS, Int4Panels


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    if x.dtype == torch.bfloat16 and HAS_PAIRS:
        bits = x.contiguous().view(torch.int16).numpy()
        return _product(bits, weight, weight.pair_order.numpy(), pairs.LEVELS, _by_pairs)
    rows = float_rows(x, weight.in_features)
    return _product(rows, weight, weight.columns.numpy(), floats.LEVELS, _by_floats)


def _product(rows: np.ndarray, weight: Int4Panels, order: np.ndarray, levels, multiply) -> Tensor:
    """The tokens with the codes as they are."""
    tokens, held = fours(len(rows)), arrays(weight)
    placed = np.zeros((tokens, len(order)), rows.dtype)
    arrange(rows, order, placed)
    sums = np.empty((tokens, weight.scale.shape[1]), np.float32)
    out = np.empty((tokens, len(weight.codes) * ROWS), np.float32)
    with parts(held[0].nbytes * max(1, tokens), len(weight.codes)) as count:
        multiply(levels, placed, sums, *held, weight.group_slots, count, out)
    return torch.from_numpy(out[: len(rows), : weight.shape[0]])


@shared
def _by_pairs(levels, x, sums, codes, scales, half, zeros, group_slots, count, out):
    tokens, groups, x_row, out_row = x.shape[0], sums.shape[1], 2 * x.shape[1], 4 * out.shape[1]
    start, table = address_of(x), address_of(levels)
    for token in range(tokens):
        pairs.sum_groups(start + token * x_row, groups, group_slots, sums[token])
    for part in numba.prange(count):
        first, last = part * codes.shape[0] // count, (part + 1) * codes.shape[0] // count
        for block in range(0, tokens, TOKENS):
            for panel in range(first, last):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    row, less = start + token * x_row, address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        pairs.one_token(table, c, s, half, z, groups, group_slots, row, less, y)
                    else:
                        pairs.four_tokens(
                            table, c, s, half, z, groups, group_slots, row, x_row, less, y, out_row
                        )


@shared
def _by_floats(levels, x, sums, codes, scales, half, zeros, group_slots, count, out):
    tokens, groups, x_row, out_row = x.shape[0], sums.shape[1], 4 * x.shape[1], 4 * out.shape[1]
    start, table = address_of(x), address_of(levels)
    for token in range(tokens):
        floats.sum_groups(start + token * x_row, groups, group_slots, sums[token])
    for part in numba.prange(count):
        first, last = part * codes.shape[0] // count, (part + 1) * codes.shape[0] // count
        for block in range(0, tokens, TOKENS):
            for panel in range(first, last):
                c, s, z = panel_place(codes, scales, zeros, panel)
                for token in range(block, min(tokens, block + TOKENS), 4):
                    row, less = start + token * x_row, address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        floats.one_token(table, c, s, half, z, groups, group_slots, row, less, y)
                    else:
                        floats.four_tokens(
                            table, c, s, half, z, groups, group_slots, row, x_row, less, y, out_row
                        )
