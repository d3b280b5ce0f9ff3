"""W4A16 on a GPU: a program takes a run of outputs and, where there are several, of tokens.

One token is a sum of products (nothing is gained by a matrix unit that has one row); more go
through `tl.dot`, with weights that are rounded to x's dtype as they come out of their 4 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.kernels.gpu.int4_chunk import chunk_inputs, chunk_steps
from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight

_ROWS, _TOKENS = 32, 16


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    tokens, rows = len(x), weight.shape[0]
    out = torch.empty(tokens, rows, device=x.device)
    if out.numel() == 0:
        return out
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        x = (
            x.float()
        )  # Triton's interpreter multiplies the bits of a bfloat16 as if it were integer
    x = x.contiguous()
    zeros = weight.codes if weight.zero_point is None else weight.zero_point
    per_program = 1 if tokens == 1 else _TOKENS
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(tokens, per_program))
    _multiply[grid](
        x,
        weight.codes,
        weight.scale,
        zeros,
        weight.columns,
        out,
        tokens,
        rows,
        weight.in_features,
        weight.scale.shape[1],
        len(weight.columns) // weight.chunk,
        HALF=weight.chunk // 2,
        ZERO=SYMMETRIC_ZERO if weight.zero_point is None else -1,
        ROWS=_ROWS,
        TOKENS=per_program,
    )
    return out


@triton.jit
def _multiply(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zeros_ptr,
    columns_ptr,
    out_ptr,
    tokens,
    rows,
    in_features,
    groups,
    chunks,
    HALF: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    total = tl.zeros([TOKENS, ROWS], tl.float32)
    for chunk in range(0, chunks):
        low, high, scale = chunk_steps(
            codes_ptr, scale_ptr, zeros_ptr, row, rows, chunk, chunks, groups, HALF, ZERO
        )
        low = low.to(tl.float32) * scale[:, None]
        high = high.to(tl.float32) * scale[:, None]
        x0, x1 = chunk_inputs(x_ptr, columns_ptr, token, tokens, chunk, in_features, HALF)
        if TOKENS == 1:
            total += tl.sum(low * x0.to(tl.float32) + high * x1.to(tl.float32), axis=1)[None, :]
        else:
            total += tl.dot(x0, tl.trans(low.to(x0.dtype)), input_precision="ieee")
            total += tl.dot(x1, tl.trans(high.to(x1.dtype)), input_precision="ieee")
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, total, mask=(token < tokens)[:, None] & (row < rows)[None, :])
