"""W4A8 on a GPU: codes times int8 activations, summed exactly within a chunk, scaled outside.

The integers are small: as float16 they are exact, products and their sums are exact in float32, and
a matrix unit takes halves of any chunk (integers would need 32 at a time).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.kernels.gpu import tokens as activations
from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight

_ROWS, _TOKENS = 32, 16


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [tokens, in], quantized per token, @ weight.T: float32 [tokens, out]."""
    codes, scale_x = activations.quantize(x)
    tokens, rows = len(x), weight.shape[0]
    out = torch.empty(tokens, rows, device=x.device)
    if out.numel() == 0:
        return out
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(tokens, _TOKENS))
    _multiply[grid](
        codes,
        scale_x,
        weight.codes,
        weight.scale,
        weight.codes if weight.zero_point is None else weight.zero_point,
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
def _multiply(
    x_ptr,
    scale_x_ptr,
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
        group = chunk // per_group
        byte = row[:, None] * (chunks * HALF) + chunk * HALF + half[None, :]
        code = tl.load(codes_ptr + byte, mask=inside[:, None], other=0).to(tl.int32)
        scale = tl.load(scale_ptr + row * groups + group, mask=inside, other=0.0).to(tl.float32)
        if ZERO >= 0:
            low, high = (code & 15) - ZERO, (code >> 4) - ZERO
        else:
            zero = tl.load(zeros_ptr + row * groups + group, mask=inside, other=0).to(tl.int32)
            low, high = (code & 15) - zero[:, None], (code >> 4) - zero[:, None]
        first = tl.load(columns_ptr + chunk * 2 * HALF + half)
        second = tl.load(columns_ptr + chunk * 2 * HALF + HALF + half)
        start = token[:, None] * in_features
        mask0 = there[:, None] & (first >= 0)[None, :]
        mask1 = there[:, None] & (second >= 0)[None, :]
        x0 = tl.load(x_ptr + start + first[None, :], mask=mask0, other=0).to(tl.float16)
        x1 = tl.load(x_ptr + start + second[None, :], mask=mask1, other=0).to(tl.float16)
        found = tl.dot(x0, tl.trans(low.to(tl.float16)))
        found += tl.dot(x1, tl.trans(high.to(tl.float16)))
        total += found * scale[None, :]
    scale_x = tl.load(scale_x_ptr + token, mask=there, other=0.0)
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, total * scale_x[:, None], mask=there[:, None] & inside[None, :])
