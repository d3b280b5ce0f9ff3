"""GGUF weights in panels times int8 activations on a CPU: a lane is a row, so nothing is folded."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.operands import empty_result, float_operand, floats_from, sums_beside
from labkit.kernels.cpu.panel_codes import NUMBERS
from labkit.kernels.cpu.panel_products import panels_of_part
from labkit.kernels.cpu.parallel import part_count, run, shared
from labkit.kernels.cpu.runs import RUN, complain, round_token
from labkit.kernels.gguf_panels import ROWS, GgufPanels


def linear(x: Tensor, weight: GgufPanels, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [tokens, in], in runs of int8, @ weight.T: [tokens, out].

    Args:
        dtype: of the result, as in `operands.empty_result`.

    Raises NonFiniteError for NaN or infinity.
    """
    x, data, (rows, columns) = float_operand(x), weight.array, weight.shape
    tokens, panels = x.shape[0], data.shape[0]
    y = empty_result(tokens, rows, dtype)
    count, kind = part_count(data.nbytes * max(1, tokens // 2), panels), weight.type_name
    result = y.data_ptr(), y.itemsize, rows
    if not run(_multiply, count, NUMBERS[kind], data, x.data_ptr(), tokens, columns, *result):
        complain(x.numpy())
    return y


@shared
def _multiply(kind, data, x_given, tokens, columns, y, y_size, rows, count):
    """Whether x is finite; y holds the product then."""
    codes = np.empty((tokens, columns), np.uint8)
    scale = np.empty((tokens, columns // RUN), np.float32)
    less = np.empty((tokens, columns // RUN * 2), np.float32)
    bad = 0
    if tokens == 1:  # it takes less time than waking a thread
        only = floats_from(x_given, tokens, columns)[0]
        bad = round_token(only, codes[0], scale[0], less[0])
    else:
        for part in numba.prange(count):
            every = floats_from(x_given, tokens, columns)
            for token in range(part * tokens // count, (part + 1) * tokens // count):
                bad += round_token(every[token], codes[token], scale[token], less[token])
    if bad:
        return False
    found = sums_beside(tokens, tokens, ROWS * data.shape[0], y_size, rows)
    for part in numba.prange(count):
        x, result = floats_from(x_given, tokens, columns), (y, y_size, rows, found)
        panels_of_part(part, count, kind, data, True, x, codes, scale, less, *result)
    return True
