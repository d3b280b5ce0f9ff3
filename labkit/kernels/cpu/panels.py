"""GGUF weights in panels times x as it is, in float32, on a CPU."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.parallel import float_rows, part_count, run, shared
from labkit.kernels.cpu.runs import RUN, sum_run
from labkit.kernels.gguf_panels import ROWS, GgufPanels

_NO_CODES, _NO_SCALES = np.empty((1, 0), np.uint8), np.empty((1, 0), np.float32)


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """x [tokens, in] @ weight.T: float32 [tokens, out]."""
    rows, data = float_rows(x, weight.shape[1]), weight.array
    out = np.empty((len(rows), len(data) * ROWS), np.float32)
    count = part_count(data.nbytes * len(rows), max(1, len(data)))
    run(_multiply, count, NUMBERS[weight.type_name], data, rows, _NO_CODES, _NO_SCALES, out)
    return torch.from_numpy(out[:, : weight.shape[0]])


@shared
def _multiply(kind, data, rows, codes, scale, out, count):
    start, size = address_of(data), data.shape[1] * data.shape[2]
    tokens, columns = rows.shape
    less = np.empty((tokens, columns // RUN * 2), np.float32)
    for token in range(tokens):
        for block in range(columns // RUN):
            sum_run(rows[token], block, less[token])
    for part in numba.prange(count):
        first, last = part * data.shape[0] // count, (part + 1) * data.shape[0] // count
        for panel in range(first, last):
            place = start + panel * size
            panel_product(kind, place, columns, False, rows, codes, scale, less, out, panel * ROWS)
