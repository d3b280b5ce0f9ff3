"""GGUF weights in panels times int8 activations on a CPU: a lane is a row, so nothing is folded."""

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
    start, size, panels = address_of(data), data.shape[1] * data.shape[2], data.shape[0]
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
    as_wanted = y_size == 4 and rows == ROWS * panels
    found = np.empty((0 if as_wanted else tokens, ROWS * panels), np.float32)
    for part in numba.prange(count):
        x = floats_from(x_given, tokens, columns)
        out = floats_from(y if as_wanted else address_of(found), tokens, ROWS * panels)
        first, last = part * panels // count, (part + 1) * panels // count
        for panel in range(first, last):
            place = start + panel * size
            panel_product(kind, place, columns, True, x, codes, scale, less, out, panel * ROWS)
        if not as_wanted:
            hand_over(found, first * ROWS, last * ROWS, y, y_size, tokens, rows)
    return True
