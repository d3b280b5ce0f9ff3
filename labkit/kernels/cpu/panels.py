"""GGUF weights in panels times x as it is, in float32, on a CPU."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.operands import empty_result, float_operand, floats_from, sums_beside
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panels_of_part
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
    less = np.empty((tokens, columns // RUN * 2), np.float32)
    for token in range(tokens):
        for block in range(columns // RUN):
            sum_run(floats_from(x_given, tokens, columns)[token], block, less[token])
    found = sums_beside(tokens, tokens, ROWS * data.shape[0], y_size, rows)
    for part in numba.prange(count):
        x, result = floats_from(x_given, tokens, columns), (y, y_size, rows, found)
        panels_of_part(part, count, kind, data, False, x, codes, scale, less, *result)
