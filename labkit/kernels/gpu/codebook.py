"""NF4 and FP4 on a GPU: sixteen numbers that stay in the first-level cache, a look-up a weight."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.core.codebook import CodebookTensor

_ROWS, _COLUMNS = 32, 64


def linear(x: Tensor, weight: CodebookTensor) -> Tensor:
    """x [tokens, in] @ (levels[code] * absmax).T, float32 [tokens, out]."""
    rows, columns = weight.shape
    x = x.contiguous()
    out = torch.empty(len(x), rows, device=x.device)
    if out.numel():
        levels = _levels(tuple(weight.book.values), x.device)
        grid = (triton.cdiv(rows, _ROWS), len(x))
        _multiply[grid](
            x,
            weight.packed,
            weight.block_absmax(),
            levels,
            out,
            rows,
            columns,
            weight.block_size,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )
    return out


@lru_cache
def _levels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device once: to bring them there makes the host wait for the card."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@triton.jit
def _multiply(
    x_ptr,
    packed_ptr,
    absmax_ptr,
    levels_ptr,
    out_ptr,
    rows,
    columns,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        # The weight is flat: a row may begin in the middle of a byte, and of a block.
        place = row[:, None] * columns + column[None, :]
        byte = tl.load(packed_ptr + place // 2, mask=mask, other=0).to(tl.int32)
        code = tl.where(place % 2 == 0, byte >> 4, byte & 15)
        absmax = tl.load(absmax_ptr + place // size, mask=mask, other=0.0)
        weight = tl.load(levels_ptr + code) * absmax
        x = tl.load(x_ptr + token * columns + column, mask=column < columns, other=0.0)
        total += tl.sum(weight * x.to(tl.float32)[None, :], axis=1)
    tl.store(out_ptr + token * rows + row, total, mask=row < rows)
