"""Activations to int8 on a GPU: one program a token, which it passes twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.core.finite import require_finite

_BLOCK = 1024


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, features] -> codes int8 of its shape, scale float32 [tokens, 1].

    Raises NonFiniteError for NaN or infinity.
    """
    require_finite(x, "x")
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.ones(len(x), 1, device=x.device)
    if x.numel():
        _quantize[(len(x),)](x, codes, scale, x.shape[1], BLOCK=_BLOCK)
    return codes, scale


@triton.jit
def _quantize(x_ptr, codes_ptr, scale_ptr, columns, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + place < columns
        x = tl.load(x_ptr + token * columns + first + place, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    most = tl.max(largest, axis=0)
    # 2^-126 is float32's smallest normal number: its reciprocal is still finite.
    scale = tl.where(most == 0, 1.0, tl.maximum(tl.div_rn(most, 127.0), 1.1754943508222875e-38))
    tl.store(scale_ptr + token, scale)
    for first in range(0, columns, BLOCK):
        inside = first + place < columns
        x = tl.load(x_ptr + token * columns + first + place, mask=inside, other=0.0)
        steps = tl.div_rn(x.to(tl.float32), tl.zeros([BLOCK], tl.float32) + scale)
        # 1.5 * 2^23 leaves no room for a fraction: rounded, half to even.
        rounded = (steps + 12582912.0) - 12582912.0
        tl.store(codes_ptr + token * columns + first + place, rounded.to(tl.int8), mask=inside)
