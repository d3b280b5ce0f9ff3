"""GGUF weights in panels times x as it is, in float32, on a CPU."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.addresses import address_of
from labkit.kernels.cpu.operands import empty_result, float_operand, floats_from, hand_over
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panel_product
from labkit.kernels.cpu.parallel import part_count, run, shared
from labkit.kernels.cpu.runs import RUN, sum_run
from labkit.kernels.gguf_panels import ROWS, GgufPanels

_NO_CODES, _NO_SCALES = np.empty((1, 0), np.uint8), np.empty((1, 0), np.float32)


def linear(x: Tensor, weight: GgufPanels, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [tokens, in] @ weight.T: [tokens, out]; ``dtype``: as in `operands.empty_result`."""
    x, data, (rows, columns) = float_operand(x), weight.array, weight.shape
    tokens, panels = x.shape[0], data.shape[0]
    y = empty_result(tokens, rows, dtype)
    count, kind = part_count(data.nbytes * tokens, panels), NUMBERS[weight.type_name]
    result = y.data_ptr(), y.itemsize, rows
    run(_multiply, count, kind, data, x.data_ptr(), tokens, columns, _NO_CODES, _NO_SCALES, *result)
    return y


@shared
def _multiply(kind, data, x_given, tokens, columns, codes, scale, y, y_size, rows, count):
    start, size, panels = address_of(data), data.shape[1] * data.shape[2], data.shape[0]
    less = np.empty((tokens, columns // RUN * 2), np.float32)
    for token in range(tokens):
        for block in range(columns // RUN):
            sum_run(floats_from(x_given, tokens, columns)[token], block, less[token])
    as_wanted = y_size == 4 and rows == ROWS * panels
    found = np.empty((0 if as_wanted else tokens, ROWS * panels), np.float32)
    for part in numba.prange(count):
        x = floats_from(x_given, tokens, columns)
        out = floats_from(y if as_wanted else address_of(found), tokens, ROWS * panels)
        first, last = part * panels // count, (part + 1) * panels // count
        for panel in range(first, last):
            place = start + panel * size
            panel_product(kind, place, columns, False, x, codes, scale, less, out, panel * ROWS)
        if not as_wanted:
            hand_over(found, first * ROWS, last * ROWS, y, y_size, tokens, rows)
