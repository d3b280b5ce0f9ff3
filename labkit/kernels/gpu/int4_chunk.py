"""What every kernel on an Int4Weight loads of some chunks; Triton inlines it into each of them."""

import triton
import triton.language as tl


@triton.jit
def chunk_steps(
    codes_ptr,
    scale_ptr,
    zeros_ptr,
    row,
    rows,
    chunk,
    chunks,
    groups,
    HALF: tl.constexpr,
    ZERO: tl.constexpr,
):
    """code - zero-point of low and high halves, int32 [rows, chunks, half]; scale [rows, chunks].

    row, chunk: the numbers of those that are wanted; beyond the last of them it is 0.
    ZERO: the zero-point of a symmetric weight; below 0: each group has its own.
    """
    there = (row < rows)[:, None] & (chunk < chunks)[None, :]
    byte = (row[:, None] * chunks + chunk[None, :])[:, :, None] * HALF
    byte += tl.arange(0, HALF)[None, None, :]
    code = tl.load(codes_ptr + byte, mask=there[:, :, None], other=0).to(tl.int32)
    at = row[:, None] * groups + (chunk // (chunks // groups))[None, :]
    scale = tl.load(scale_ptr + at, mask=there, other=0.0).to(tl.float32)
    if ZERO >= 0:
        low, high = (code & 15) - ZERO, (code >> 4) - ZERO
    else:
        zero = tl.load(zeros_ptr + at, mask=there, other=0).to(tl.int32)[:, :, None]
        low, high = (code & 15) - zero, (code >> 4) - zero
    return low, high, scale


@triton.jit
def chunk_inputs(x_ptr, columns_ptr, token, tokens, chunk, chunks, in_features, HALF: tl.constexpr):
    """x in the columns that low and high halves stand for, [tokens, chunks, half] both."""
    slot = chunk[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    inside = (chunk < chunks)[:, None]
    first = tl.load(columns_ptr + slot, mask=inside, other=-1)[None, :, :]
    second = tl.load(columns_ptr + slot + HALF, mask=inside, other=-1)[None, :, :]
    start, there = x_ptr + token[:, None, None] * in_features, (token < tokens)[:, None, None]
    x0 = tl.load(start + first, mask=there & (first >= 0), other=0)
    x1 = tl.load(start + second, mask=there & (second >= 0), other=0)
    return x0, x1
