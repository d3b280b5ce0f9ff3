"""A GGUF weight on a GPU, straight from its blocks: Q4_0, Q8_0 and Q4_K.

A program takes a run of rows and one token, and walks the blocks of those rows side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from labkit.core.errors import SchemeError
from labkit.quantize.gguf_types import block_type

_ROWS = 32


def linear(x: Tensor, blocks: Tensor, type_name: str) -> Tensor:
    """x [tokens, in] @ weight.T, float32 [tokens, out]; blocks uint8 [out, bytes of a row].

    Raises SchemeError for a type that has no such kernel.
    """
    if type_name not in _KERNELS:
        raise SchemeError(
            f"no GPU kernel for {type_name}",
            "gguf_linear",
            f'There are {", ".join(_KERNELS)}; implementation="reference" takes every type.',
        )
    x = x.contiguous()
    out = torch.empty(len(x), len(blocks), device=x.device)
    if out.numel():
        count = blocks.shape[1] // block_type(type_name).nbytes
        grid = (triton.cdiv(len(blocks), _ROWS), len(x))
        _KERNELS[type_name][grid](x, blocks, out, len(blocks), count, ROWS=_ROWS)
    return out


@triton.jit
def _half(ptr, inside):
    """The float16 in two bytes, as float32."""
    low = tl.load(ptr, mask=inside, other=0).to(tl.uint16)
    high = tl.load(ptr + 1, mask=inside, other=0).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _q4_0(x_ptr, blocks_ptr, out_ptr, rows, count, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    inside, place = row < rows, tl.arange(0, 16)
    total = tl.zeros([ROWS], tl.float32)
    for block in range(0, count):
        start = blocks_ptr + (row * count + block) * 18
        d = _half(start, inside)
        code = tl.load(start[:, None] + 2 + place[None, :], mask=inside[:, None], other=0)
        code = code.to(tl.int32)
        x = x_ptr + token * count * 32 + block * 32 + place
        low = ((code & 15) - 8).to(tl.float32) * tl.load(x).to(tl.float32)[None, :]
        high = ((code >> 4) - 8).to(tl.float32) * tl.load(x + 16).to(tl.float32)[None, :]
        total += d * tl.sum(low + high, axis=1)
    tl.store(out_ptr + token * rows + row, total, mask=inside)


@triton.jit
def _q8_0(x_ptr, blocks_ptr, out_ptr, rows, count, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    inside, place = row < rows, tl.arange(0, 32)
    total = tl.zeros([ROWS], tl.float32)
    for block in range(0, count):
        start = blocks_ptr + (row * count + block) * 34
        d = _half(start, inside)
        code = tl.load(start[:, None] + 2 + place[None, :], mask=inside[:, None], other=0)
        x = tl.load(x_ptr + token * count * 32 + block * 32 + place).to(tl.float32)
        signed = code.to(tl.int8, bitcast=True).to(tl.float32)
        total += d * tl.sum(signed * x[None, :], axis=1)
    tl.store(out_ptr + token * rows + row, total, mask=inside)


@triton.jit
def _q4_k(x_ptr, blocks_ptr, out_ptr, rows, count, ROWS: tl.constexpr):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    inside, place = row < rows, tl.arange(0, 32)
    total = tl.zeros([ROWS], tl.float32)
    for block in range(0, count):
        start = blocks_ptr + (row * count + block) * 144
        d, dmin = _half(start, inside), _half(start + 2, inside)
        for sub in tl.static_range(8):
            # Scales and mins of 6 bits; sub-blocks 4 to 7 have their high 2 bits elsewhere.
            if sub < 4:
                s = tl.load(start + 4 + sub, mask=inside, other=0).to(tl.int32) & 63
                m = tl.load(start + 8 + sub, mask=inside, other=0).to(tl.int32) & 63
            else:
                rest = tl.load(start + 8 + sub, mask=inside, other=0).to(tl.int32)
                above = tl.load(start + sub, mask=inside, other=0).to(tl.int32) >> 6
                top = tl.load(start + 4 + sub, mask=inside, other=0).to(tl.int32) >> 6
                s, m = (rest & 15) | (above << 4), (rest >> 4) | (top << 4)
            byte = start[:, None] + 16 + 32 * (sub // 2) + place[None, :]
            code = tl.load(byte, mask=inside[:, None], other=0).to(tl.int32)
            code = (code >> (4 * (sub % 2))) & 15
            x = tl.load(x_ptr + token * count * 256 + block * 256 + 32 * sub + place)
            x = x.to(tl.float32)
            dots = tl.sum(code.to(tl.float32) * x[None, :], axis=1)
            total += d * s.to(tl.float32) * dots - dmin * m.to(tl.float32) * tl.sum(x, axis=0)
    tl.store(out_ptr + token * rows + row, total, mask=inside)


_KERNELS = {"Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_K": _q4_k}
