"""W4A16 with panels on a CPU: bfloat16 x by pairs where the processor can, else float32 x.

A bfloat16 x is multiplied as it is; a float16 one is widened. From `tiled.FEW` tokens on the
weights that meet float32 are written out for a run of panels at a time, and torch multiplies them.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu import int4_panel_floats as floats
from labkit.kernels.cpu import int4_panel_pairs as pairs
from labkit.kernels.cpu import tiled
from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_arrays import TOKENS, arrays, panel_place
from labkit.kernels.cpu.pairs import HAS_PAIRS
from labkit.kernels.cpu.parallel import arrange, float_rows, fours, parts, shared
from labkit.kernels.int4_panels import ROWS, Int4Panels


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    if x.dtype == torch.bfloat16 and HAS_PAIRS:
        bits = x.contiguous().view(torch.int16).numpy()
        return _few(bits, weight, weight.pair_order.numpy(), pairs.LEVELS, _by_pairs)
    rows, columns = float_rows(x, weight.in_features), weight.columns.numpy()
    if len(rows) < tiled.FEW:
        return _few(rows, weight, columns, floats.LEVELS, _by_floats)
    if not weight.in_order:
        placed = np.zeros((len(rows), len(columns)), np.float32)
        arrange(rows, columns, placed)
        rows = placed
    return _many(torch.from_numpy(rows), weight)


def _few(rows: np.ndarray, weight: Int4Panels, order: np.ndarray, levels, multiply) -> Tensor:
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
        for panel in range(first, last):
            c, s, z = panel_place(codes, scales, zeros, panel)
            for token in range(0, tokens, 4):
                row, less = start + token * x_row, address_of(sums) + 4 * token * groups
                y = address_of(out) + token * out_row + 4 * ROWS * panel
                if tokens == 1:
                    floats.one_token(table, c, s, half, z, groups, group_slots, row, less, y)
                else:
                    floats.four_tokens(
                        table, c, s, half, z, groups, group_slots, row, x_row, less, y, out_row
                    )


def _many(x: Tensor, weight: Int4Panels) -> Tensor:
    """x float32 [tokens, slots], with the weights of some panels written out at a time."""
    slots, rows = x.shape[1], len(weight.codes) * ROWS
    held, step = arrays(weight), tiled.rows_of_a_tile(slots) // ROWS * ROWS
    tile, out = torch.empty(slots, min(step, rows)), torch.empty(len(x), rows)
    for first in range(0, rows, step):
        width = min(step, rows - first)
        with parts(tile.nbytes, width // ROWS) as count:
            _write(floats.LEVELS, first // ROWS, *held, weight.group_slots, width // ROWS, count,
                   tile.numpy())  # fmt: skip
        torch.mm(x, tile[:, :width], out=out[:, first : first + width])
    return out[:, : weight.shape[0]]


@shared
def _write(levels, begin, codes, scales, half, zeros, group_slots, panels, count, tile):
    """``panels`` of them from ``begin`` on to the columns of ``tile`` [slots, rows]."""
    groups = codes.shape[1] // (8 * group_slots)
    for part in numba.prange(count):
        for panel in range(part * panels // count, (part + 1) * panels // count):
            c, s, z = panel_place(codes, scales, zeros, begin + panel)
            out = address_of(tile) + 4 * ROWS * panel
            floats.write(
                address_of(levels), c, s, half, z, groups, group_slots, out, 4 * tile.shape[1]
            )
