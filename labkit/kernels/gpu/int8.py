"""W8A8 on a GPU: int8 tiles through the matrix units, int32 sums, scales at the end."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.kernels.int8_weight import OFFSET, PANEL, Int8Weight

_TOKENS, _COLUMNS = 32, 64


def linear(codes: Tensor, scale: Tensor, weight: Int8Weight) -> Tensor:
    """codes int8 [tokens, in], scale float32 [tokens] -> float32 [tokens, out]."""
    tokens, rows = len(codes), weight.shape[0]
    out = torch.empty(tokens, rows, device=codes.device)
    if out.numel() == 0:
        return out
    panels, steps = weight.codes.shape[:2]
    grid = (panels, triton.cdiv(tokens, _TOKENS))
    _multiply[grid](
        codes,
        scale.contiguous(),
        weight.codes,
        weight.scale,
        out,
        tokens,
        rows,
        codes.shape[1],
        steps,
        OFFSET=OFFSET,
        PANEL=PANEL,
        TOKENS=_TOKENS,
        COLUMNS=_COLUMNS,
    )
    return out


@triton.jit
def _multiply(
    x_ptr,
    scale_x_ptr,
    codes_ptr,
    scale_ptr,
    out_ptr,
    tokens,
    rows,
    columns,
    steps,
    OFFSET: tl.constexpr,
    PANEL: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    panel = tl.program_id(0).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    there = token < tokens
    output, column = tl.arange(0, PANEL), tl.arange(0, COLUMNS)
    total = tl.zeros([TOKENS, PANEL], tl.int32)
    for first in range(0, columns, COLUMNS):
        at = first + column
        inside = at < columns
        x_mask = there[:, None] & inside[None, :]
        x = tl.load(x_ptr + token[:, None] * columns + at[None, :], mask=x_mask, other=0)
        # Four columns of an output lie side by side, then those of the next output.
        place = (panel * steps + (at // 4)[:, None]) * (4 * PANEL)
        place += output[None, :] * 4 + (at % 4)[:, None]
        code = tl.load(codes_ptr + place, mask=inside[:, None], other=OFFSET).to(tl.int32)
        total += tl.dot(x, (code - OFFSET).to(tl.int8), out_dtype=tl.int32)
    row = panel * PANEL + output
    scale_x = tl.load(scale_x_ptr + token, mask=there, other=0.0)
    scale = tl.load(scale_ptr + row)
    y = total.to(tl.float32) * (scale_x[:, None] * scale[None, :])
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, y, mask=there[:, None] & (row < rows)[None, :])
