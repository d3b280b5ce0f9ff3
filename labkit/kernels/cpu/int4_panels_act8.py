"""W4A8 with panels on a CPU: x is rounded to int8 per token, put into slots, and summed by groups.

The kernels of a panel are in `int4_panel_bytes`.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.int4_panel_arrays import TOKENS, arrays, panel_place
from labkit.kernels.cpu.int4_panel_bytes import eight_tokens, four_tokens, one_token
from labkit.kernels.cpu.loads import load_signed_bytes
from labkit.kernels.cpu.parallel import arrange, compiled, float_rows, fours, parts, shared
from labkit.kernels.cpu.tokens import quantize_rows
from labkit.kernels.cpu.vectors import total_ints
from labkit.kernels.int4_panels import ROWS, Int4Panels
from labkit.quantize.lanes import splat

_NONE = np.int32(0)


def linear(x: Tensor, weight: Int4Panels) -> Tensor:
    """x [tokens, in], quantized per token, @ weight.T: float32 [tokens, out]."""
    taken, scale = quantize_rows(float_rows(x, weight.in_features))
    tokens, order = fours(len(taken)), weight.columns.numpy()
    placed, scale_x = taken, scale
    if tokens != len(taken) or not weight.in_order:
        placed = np.zeros((tokens, len(order)), np.int8)
        arrange(taken, order, placed)
        scale_x = np.zeros(tokens, np.float32)
        scale_x[: len(scale)] = scale
    sums = np.empty((tokens, weight.scale.shape[1]), np.int32)
    out = np.empty((tokens, len(weight.codes) * ROWS), np.float32)
    held = arrays(weight)
    with parts(held[0].nbytes * max(1, tokens), len(weight.codes)) as count:
        _multiply(placed, scale_x, sums, *held, weight.group_slots, count, out)
    return torch.from_numpy(out[: len(taken), : weight.shape[0]])


@compiled
def _sum_groups(x, group_slots, sums):
    """sums[g] = the sum of int8 x over group g."""
    for group in range(sums.shape[0]):
        found = splat(_NONE)
        for slot in range(group * group_slots, (group + 1) * group_slots, 32):
            found = found + load_signed_bytes(x, slot) + load_signed_bytes(x, slot + 16)
        sums[group] = total_ints(found)


@shared
def _multiply(x, scale_x, sums, codes, scales, half, zeros, group_slots, count, out):
    tokens, groups, x_row, out_row = x.shape[0], sums.shape[1], x.shape[1], 4 * out.shape[1]
    for token in range(tokens):
        _sum_groups(x[token], group_slots, sums[token])
    for part in numba.prange(count):
        first, last = part * codes.shape[0] // count, (part + 1) * codes.shape[0] // count
        for block in range(0, tokens, TOKENS):
            end = min(tokens, block + TOKENS)
            for panel in range(first, last):
                c, s, z = panel_place(codes, scales, zeros, panel)
                token = block
                while token < end:
                    q, by = address_of(x) + token * x_row, address_of(scale_x) + 4 * token
                    less = address_of(sums) + 4 * token * groups
                    y = address_of(out) + token * out_row + 4 * ROWS * panel
                    if tokens == 1:
                        one_token(c, s, half, z, groups, group_slots, q, less, by, y)
                        token += 1
                    elif end - token >= 8:
                        eight_tokens(
                            c, s, half, z, groups, group_slots, q, less, by, y, x_row, out_row
                        )
                        token += 8
                    else:
                        four_tokens(
                            c, s, half, z, groups, group_slots, q, less, by, y, x_row, out_row
                        )
                        token += 4
