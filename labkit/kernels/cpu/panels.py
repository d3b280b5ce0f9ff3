"""GGUF weights in panels times int8 activations on a CPU: a lane is a row, so nothing is folded."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.parallel import float_rows, parts, shared
from labkit.kernels.cpu.runs import quantize_runs
from labkit.kernels.gguf_panels import ROWS, GgufPanels


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """x [tokens, in], in runs of int8, @ weight.T: float32 [tokens, out]."""
    rows = float_rows(x, weight.shape[1])
    codes, scale, sums = quantize_runs(rows)
    less = -(sums * np.repeat(scale, 2, axis=1)).astype(np.float32)
    data = weight.data.numpy()
    panels = data.reshape(len(data), -1)
    out = np.empty((len(rows), len(panels) * ROWS), np.float32)
    with parts(panels.nbytes * max(1, len(rows) // 2), max(1, len(panels))) as count:
        number = NUMBERS[weight.type_name]
        _multiply(number, panels, rows, codes.view(np.uint8), scale, less, count, out)
    return torch.from_numpy(out[:, : weight.shape[0]])


@shared
def _multiply(kind, panels, rows, codes, scale, less, count, out):
    start, size = address_of(panels), panels.shape[1]
    for part in numba.prange(count):
        first, last = part * panels.shape[0] // count, (part + 1) * panels.shape[0] // count
        for panel in range(first, last):
            place = start + panel * size
            panel_product(
                kind, place, rows.shape[1], True, rows, codes, scale, less, out, panel * ROWS
            )
