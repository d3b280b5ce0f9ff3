"""W4A16 on a GPU: a program takes a run of outputs and, where there are several, of tokens.

One token is a sum of products (nothing is gained by a matrix unit that has one row); more go
through `tl.dot`, with weights that are rounded to x's dtype as they come out of their 4 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight

_ROWS, _TOKENS = 32, 16


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    tokens, rows = len(x), weight.shape[0]
    out = torch.empty(tokens, rows, device=x.device)
    if out.numel() == 0:
        return out
    x = x.contiguous()
    zeros = weight.codes if weight.zero_point is None else weight.zero_point
    kernel, per_program = (_one, 1) if tokens == 1 else (_several, _TOKENS)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(tokens, per_program))
    kernel[grid](
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
        weight.group_slots // weight.chunk,
        HALF=weight.chunk // 2,
        ZERO=SYMMETRIC_ZERO if weight.zero_point is None else -1,
        ROWS=_ROWS,
        TOKENS=_TOKENS,
    )
    return out


@triton.jit
def _weights(codes_ptr, scale_ptr, zeros_ptr, row, inside, groups, group, byte, ZERO: tl.constexpr):
    """The weights of a chunk's low and high halves, float32 [rows, half] both."""
    code = tl.load(codes_ptr + byte, mask=inside[:, None], other=0).to(tl.int32)
    scale = tl.load(scale_ptr + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    if ZERO >= 0:
        low, high = (code & 15) - ZERO, (code >> 4) - ZERO
    else:
        zero = tl.load(zeros_ptr + row * groups + group, mask=inside, other=0).to(tl.int32)
        low, high = (code & 15) - zero[:, None], (code >> 4) - zero[:, None]
    return low.to(tl.float32) * scale[:, None], high.to(tl.float32) * scale[:, None]


@triton.jit
def _one(
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
    per_group,
    HALF: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < rows
    half = tl.arange(0, HALF)
    chunks = groups * per_group
    total = tl.zeros([ROWS], tl.float32)
    for chunk in range(0, chunks):
        byte = row[:, None] * (chunks * HALF) + chunk * HALF + half[None, :]
        low, high = _weights(
            codes_ptr, scale_ptr, zeros_ptr, row, inside, groups, chunk // per_group, byte, ZERO
        )
        first = tl.load(columns_ptr + chunk * 2 * HALF + half)
        second = tl.load(columns_ptr + chunk * 2 * HALF + HALF + half)
        x0 = tl.load(x_ptr + first, mask=first >= 0, other=0.0).to(tl.float32)
        x1 = tl.load(x_ptr + second, mask=second >= 0, other=0.0).to(tl.float32)
        total += tl.sum(low * x0[None, :] + high * x1[None, :], axis=1)
    tl.store(out_ptr + row, total, mask=inside)


@triton.jit
def _several(
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
    per_group,
    HALF: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    inside, there = row < rows, token < tokens
    half = tl.arange(0, HALF)
    chunks = groups * per_group
    total = tl.zeros([TOKENS, ROWS], tl.float32)
    for chunk in range(0, chunks):
        byte = row[:, None] * (chunks * HALF) + chunk * HALF + half[None, :]
        low, high = _weights(
            codes_ptr, scale_ptr, zeros_ptr, row, inside, groups, chunk // per_group, byte, ZERO
        )
        first = tl.load(columns_ptr + chunk * 2 * HALF + half)
        second = tl.load(columns_ptr + chunk * 2 * HALF + HALF + half)
        start = token[:, None] * in_features
        mask0 = there[:, None] & (first >= 0)[None, :]
        mask1 = there[:, None] & (second >= 0)[None, :]
        x0 = tl.load(x_ptr + start + first[None, :], mask=mask0, other=0.0)
        x1 = tl.load(x_ptr + start + second[None, :], mask=mask1, other=0.0)
        total += tl.dot(x0, tl.trans(low.to(x0.dtype)), input_precision="ieee")
        total += tl.dot(x1, tl.trans(high.to(x1.dtype)), input_precision="ieee")
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, total, mask=there[:, None] & inside[None, :])
