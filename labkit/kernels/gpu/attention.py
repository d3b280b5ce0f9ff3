"""Attention of one token on a GPU: a program a head, which keeps a running maximum and sum.

Online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867): when a larger score comes, what has
been summed so far is scaled down to it. The cache is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.kernels.gpu.fp8 import fp8_to_float

_BLOCK = 32


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    lengths: Tensor,
    factor: float,
) -> Tensor:
    """float32 [batch, heads, dim]; see `labkit.kernels.attention`."""
    batch, heads, dim = query.shape
    out = torch.empty(query.shape, device=query.device)
    if out.numel():
        bits = torch.int8 if keys.dtype == torch.int8 else torch.uint8
        _attend[(heads, batch)](
            query.contiguous(),
            keys.view(bits),
            values.view(bits),
            key_scale,
            value_scale,
            lengths,
            out,
            heads,
            keys.shape[1],
            keys.shape[2],
            dim,
            factor,
            FP8=bits == torch.uint8,
            DIM=triton.next_power_of_2(dim),
            BLOCK=_BLOCK,
        )
    return out


@triton.jit
def _attend(
    query_ptr,
    keys_ptr,
    values_ptr,
    key_scale_ptr,
    value_scale_ptr,
    lengths_ptr,
    out_ptr,
    heads,
    kv_heads,
    capacity,
    dim,
    factor,
    FP8: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    cache = row * kv_heads + head // (heads // kv_heads)
    place = tl.arange(0, DIM)
    inside = place < dim
    query = tl.load(query_ptr + (row * heads + head) * dim + place, mask=inside, other=0.0)
    query = query.to(tl.float32) * factor
    length = tl.load(lengths_ptr + row).to(tl.int32)
    most, whole = -float("inf"), 0.0
    total = tl.zeros([DIM], tl.float32)
    for first in range(0, length, BLOCK):
        token = first + tl.arange(0, BLOCK)
        there = token < length
        at = (cache * capacity + token)[:, None] * dim + place[None, :]
        mask = there[:, None] & inside[None, :]
        key, value = (
            tl.load(keys_ptr + at, mask=mask, other=0),
            tl.load(values_ptr + at, mask=mask, other=0),
        )
        if FP8:
            key, value = fp8_to_float(key), fp8_to_float(value)
        else:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scales = cache * capacity + token
        score = tl.sum(key * query[None, :], axis=1)
        score *= tl.load(key_scale_ptr + scales, mask=there, other=0.0)
        score = tl.where(there, score, -float("inf"))
        larger = tl.maximum(most, tl.max(score, axis=0))
        shrink, weight = tl.exp(most - larger), tl.exp(score - larger)
        whole = whole * shrink + tl.sum(weight, axis=0)
        weight *= tl.load(value_scale_ptr + scales, mask=there, other=0.0)
        total = total * shrink + tl.sum(weight[:, None] * value, axis=0)
        most = larger
    tl.store(out_ptr + (row * heads + head) * dim + place, total / whole, mask=inside)
