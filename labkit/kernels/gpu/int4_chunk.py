"""What every kernel on an Int4Weight loads of a chunk; Triton inlines it into each of them."""

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
    """code - zero-point of a chunk's low and high half, int32 [rows, half], and scale [rows].

    ZERO: the zero-point of a symmetric weight; below 0: each group has its own.
    """
    inside = row < rows
    group = chunk // (chunks // groups)
    byte = row[:, None] * (chunks * HALF) + chunk * HALF + tl.arange(0, HALF)[None, :]
    code = tl.load(codes_ptr + byte, mask=inside[:, None], other=0).to(tl.int32)
    scale = tl.load(scale_ptr + row * groups + group, mask=inside, other=0.0).to(tl.float32)
    if ZERO >= 0:
        low, high = (code & 15) - ZERO, (code >> 4) - ZERO
    else:
        zero = tl.load(zeros_ptr + row * groups + group, mask=inside, other=0).to(tl.int32)
        low, high = (code & 15) - zero[:, None], (code >> 4) - zero[:, None]
    return low, high, scale


@triton.jit
def chunk_inputs(x_ptr, columns_ptr, token, tokens, chunk, in_features, HALF: tl.constexpr):
    """x in the columns that a chunk's low and high half stand for, [tokens, half] both."""
    slot = columns_ptr + chunk * 2 * HALF + tl.arange(0, HALF)
    first, second = tl.load(slot), tl.load(slot + HALF)
    start, there = x_ptr + token[:, None] * in_features, (token < tokens)[:, None]
    x0 = tl.load(start + first[None, :], mask=there & (first >= 0)[None, :], other=0)
    x1 = tl.load(start + second[None, :], mask=there & (second >= 0)[None, :], other=0)
    return x0, x1
