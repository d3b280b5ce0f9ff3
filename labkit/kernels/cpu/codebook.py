"""NF4 and FP4 on a CPU: int4 with other levels, and a magnitude where int4 has a scale.

Sixteen numbers fit a register, so a code is one look-up away from its number: panels go through the
loops of int4. Rows one after another are written out by tiles and read again, which costs more.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.kernels.codebook_panels import CodebookPanels
from labkit.kernels.cpu import int4_panels, tiled
from labkit.kernels.cpu.operands import float_operand
from labkit.kernels.cpu.parallel import part_count, run, shared
from labkit.kernels.nibble_panels import ROWS
from labkit.quantize import nf4_numba

_NO_ZEROS = np.empty((0, 0), np.uint8)


def linear(
    x: Tensor, weight: CodebookTensor | CodebookPanels, dtype: torch.dtype = torch.float32
) -> Tensor:
    """x [tokens, in] @ (levels[code] * absmax).T, [tokens, out].

    Args:
        dtype: of the result, as in `operands.empty_result`; of rows it is float32.
    """
    if isinstance(weight, CodebookTensor):
        return _decoded(float_operand(x), weight)
    codes, scales = weight.arrays
    if scales is None:
        scales = _unnested(weight.absmax, weight.shape[0], len(codes))
    held = codes, scales, False, _NO_ZEROS, weight.block_size
    return int4_panels.product(x, weight, held, dtype)


def _unnested(absmax: NestedAbsmax, rows: int, panels: int) -> np.ndarray:
    """Magnitudes that were codes, in panels: the bytes of float32 [panels, blocks, 16]."""
    parts = absmax.codes.reshape(rows, -1), absmax.absmax, absmax.levels
    codes, times, levels = (part.contiguous().numpy() for part in parts)
    out = np.zeros((panels, codes.shape[1], ROWS), np.float32)
    count = part_count(out.nbytes, panels)
    run(_decode, count, codes, times, levels, np.float32(absmax.offset), absmax.block_size, out)
    return out.reshape(panels, -1).view(np.uint8)


@shared
def _decode(codes, times, levels, offset, run, out, count):
    """levels[code] * the magnitude of its run + offset; a run goes on from row to row."""
    panels, blocks = out.shape[0], codes.shape[1]
    for part in numba.prange(count):
        first, last = part * panels // count * ROWS, (part + 1) * panels // count * ROWS
        for row in range(first, min(last, codes.shape[0])):
            block = 0
            while block < blocks:
                which = (row * blocks + block) // run
                end, factor = min(blocks, (which + 1) * run - row * blocks), times[which]
                while block < end:
                    out[row // ROWS, block, row % ROWS] = (
                        levels[codes[row, block]] * factor + offset
                    )
                    block += 1


def _decoded(x: Tensor, weight: CodebookTensor) -> Tensor:
    """By tiles; a row may begin within a block, and then all is decoded at once."""
    columns, size = x.shape[1], weight.block_size
    levels = torch.tensor(weight.book.values, dtype=torch.float32)
    absmax, rows = weight.block_absmax(), weight.shape[0]
    if columns % size or columns % 2:
        count = weight.shape.numel()
        decoded = nf4_numba.decode(weight.packed, absmax, levels, size, count)
        return x @ decoded.reshape(weight.shape).T

    def decode(first: int, last: int) -> Tensor:
        packed = weight.packed[first * columns // 2 : last * columns // 2]
        part = absmax[first * columns // size : last * columns // size]
        values = nf4_numba.decode(packed, part, levels, size, (last - first) * columns)
        return values.reshape(-1, columns)

    return tiled.linear(x, rows, decode)
