"""GGUF weights in panels times int8 activations on a CPU: a lane is a row, so nothing is folded."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.parallel import float_rows, part_count, run, shared
from labkit.kernels.cpu.runs import RUN, complain, round_token
from labkit.kernels.gguf_panels import ROWS, GgufPanels


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """x [tokens, in], in runs of int8, @ weight.T: float32 [tokens, out].

    Raises NonFiniteError for NaN or infinity.
    """
    rows, data = float_rows(x, weight.shape[1]), weight.array
    tokens, panels = len(rows), len(data)
    out = np.empty((tokens, panels * ROWS), np.float32)
    count = part_count(data.nbytes * max(1, tokens // 2), max(1, panels))
    if not run(_multiply, count, NUMBERS[weight.type_name], data, rows, out):
        complain(rows)
    y = torch.from_numpy(out)
    return y if panels * ROWS == weight.shape[0] else y[:, : weight.shape[0]]


@shared
def _multiply(kind, data, rows, out, count):
    """Whether x is finite; ``out`` holds the product then."""
    start, size = address_of(data), data.shape[1] * data.shape[2]
    tokens, columns = rows.shape
    codes = np.empty((tokens, columns), np.uint8)
    scale = np.empty((tokens, columns // RUN), np.float32)
    less = np.empty((tokens, columns // RUN * 2), np.float32)
    bad = 0
    if tokens == 1:  # it takes less time than waking a thread
        bad = round_token(rows[0], codes[0], scale[0], less[0])
    else:
        for part in numba.prange(count):
            for token in range(part * tokens // count, (part + 1) * tokens // count):
                bad += round_token(rows[token], codes[token], scale[token], less[token])
    if bad:
        return False
    for part in numba.prange(count):
        first, last = part * data.shape[0] // count, (part + 1) * data.shape[0] // count
        for panel in range(first, last):
            place = start + panel * size
            panel_product(kind, place, columns, True, rows, codes, scale, less, out, panel * ROWS)
    return True
