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

# Rows, and bytes of each, that a program takes at a time, for one token and for several. A card
# reads at full speed only while megabytes are on their way (its bandwidth times the time of a read:
# 3 TB/s times 0.6 us, say): 512 bytes of each of 4096 rows are 2 MB. More tokens share what is read
# of x among more rows. Reasoned, and not measured on a card yet.
_ROWS, _BYTES = {"one": 16, "several": 32}, {"one": 512, "several": 256}
_TOKENS = 16


def linear(x: Tensor, weight: Int4Weight) -> Tensor:
    """x [tokens, in] @ dequantized weight.T, float32 [tokens, out]."""
    tokens, rows = len(x), weight.shape[0]
    out = torch.empty(tokens, rows, device=x.device)
    if out.numel() == 0:
        return out
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
        x = x.float()
    x = x.contiguous()
    zeros = weight.codes if weight.zero_point is None else weight.zero_point
    words, per_program = ("one", 1) if tokens == 1 else ("several", _TOKENS)
    half = weight.chunk // 2
    grid = (triton.cdiv(rows, _ROWS[words]), triton.cdiv(tokens, per_program))
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
        HALF=half,
        ZERO=SYMMETRIC_ZERO if weight.zero_point is None else -1,
        ROWS=_ROWS[words],
        TOKENS=per_program,
        CHUNKS=_BYTES[words] // half,
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
    CHUNKS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    total = tl.zeros([TOKENS, ROWS], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        low, high, scale = chunk_steps(
            codes_ptr, scale_ptr, zeros_ptr, row, rows, chunk, chunks, groups, HALF, ZERO
        )
        x0, x1 = chunk_inputs(x_ptr, columns_ptr, token, tokens, chunk, chunks, in_features, HALF)
        low, high = low.to(tl.float32), high.to(tl.float32)
        if TOKENS == 1:
            sums = tl.sum(low * x0.to(tl.float32) + high * x1.to(tl.float32), axis=2)
            total += tl.sum(sums * scale, axis=1)[None, :]
        else:
            low, high = low * scale[:, :, None], high * scale[:, :, None]
            total += _dot(x0, low, TOKENS, ROWS, CHUNKS * HALF)
            total += _dot(x1, high, TOKENS, ROWS, CHUNKS * HALF)
    where = out_ptr + token[:, None] * rows + row[None, :]
    tl.store(where, total, mask=(token < tokens)[:, None] & (row < rows)[None, :])


@triton.jit
def _dot(x, weight, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x = tl.reshape(x, (TOKENS, COLUMNS))
    weight = tl.reshape(weight.to(x.dtype), (ROWS, COLUMNS))
    return tl.dot(x, tl.trans(weight), input_precision="ieee")
