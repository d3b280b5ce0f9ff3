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
from labkit.kernels.gpu.int4_chunk import chunk_inputs, chunk_steps
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
        len(weight.columns) // weight.chunk,
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
    chunks,
    HALF: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    total = tl.zeros([TOKENS, ROWS], tl.float32)
    for number in range(0, chunks):
        chunk = number + tl.arange(0, 1)
        low, high, scale = chunk_steps(
            codes_ptr, scale_ptr, zeros_ptr, row, rows, chunk, chunks, groups, HALF, ZERO
        )
        x0, x1 = chunk_inputs(x_ptr, columns_ptr, token, tokens, chunk, chunks, in_features, HALF)
        found = _dot(x0, low, TOKENS, ROWS, HALF) + _dot(x1, high, TOKENS, ROWS, HALF)
        total += found * tl.reshape(scale, (1, ROWS))
    there = token < tokens
    scale_x = tl.load(scale_x_ptr + token, mask=there, other=0.0)
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, total * scale_x[:, None], mask=there[:, None] & (row < rows)[None, :])


@triton.jit
def _dot(x, steps, TOKENS: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr):
    x = tl.reshape(x.to(tl.float16), (TOKENS, HALF))
    return tl.dot(x, tl.trans(tl.reshape(steps.to(tl.float16), (ROWS, HALF))))
