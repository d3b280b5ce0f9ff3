"""An FP8 (E4M3) weight on a GPU: bits moved into place, as in `labkit.kernels.cpu.fp8_lanes`.

Any GPU can do that; only those from compute capability 8.9 on know the type itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.core.float8_tensor import Float8Tensor

_ROWS, _COLUMNS = 32, 64


def linear(x: Tensor, weight: Float8Tensor) -> Tensor:
    """x [tokens, in] @ (codes * scale).T, float32 [tokens, out]."""
    rows, columns = weight.shape
    x = x.contiguous()
    out = torch.empty(len(x), rows, device=x.device)
    if out.numel():
        grid = (triton.cdiv(rows, _ROWS), len(x))
        codes = weight.codes.contiguous().view(torch.uint8)
        _multiply[grid](x, codes, out, rows, columns, ROWS=_ROWS, COLUMNS=_COLUMNS)
    return out * weight.scale.float().reshape(1, -1)


@triton.jit
def fp8_to_float(code):
    """E4M3 bits (any integer type) as float32, NaN included."""
    code = code.to(tl.int32)
    value = ((code & 127) << 20).to(
        tl.float32, bitcast=True
    ) * 1329227995784915872903807060280344576.0
    value = tl.where((code & 127) == 127, float("nan"), value)
    return tl.where((code & 128) != 0, -value, value)


@triton.jit
def _multiply(x_ptr, codes_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        place = row[:, None] * columns + column[None, :]
        weight = fp8_to_float(tl.load(codes_ptr + place, mask=mask, other=0))
        x = tl.load(x_ptr + token * columns + column, mask=column < columns, other=0.0)
        total += tl.sum(weight * x.to(tl.float32)[None, :], axis=1)
    tl.store(out_ptr + token * rows + row, total, mask=row < rows)
