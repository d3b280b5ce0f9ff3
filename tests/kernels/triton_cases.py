"""Every Triton kernel, interpreted on a CPU, beside the formula; prints how far it lies away.

Run as a program with TRITON_INTERPRET=1: Triton reads that when it is imported.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from labkit.core.float8_tensor import Float8Tensor
from labkit.core.scheme import QuantScheme
from labkit.kernels import (
    Int8Weight,
    codebook_linear,
    decode_attention,
    fp8_linear,
    gguf_linear,
    int4_linear,
    int8_linear,
    quantize_tokens,
)
from labkit.quantize import gguf, nf4, rtn
from tests.kernels.cases import int4_weight, product_bound


def both(run):
    return run("gpu"), run("reference")


def show(name, pair, bound) -> None:
    found, exact = pair
    assert ((found.double() - exact.double()).abs() <= bound).all(), name
    assert found.dtype == exact.dtype and found.shape == exact.shape, name
    print(name)


def tokens_and_int8() -> None:
    for shape in ((3, 100), (1, 2050), (0, 4)):
        x = torch.randn(shape) * 3
        (codes, scale), (plain, step) = both(
            lambda how, x=x: quantize_tokens(x, implementation=how)
        )
        assert torch.equal(codes, plain) and torch.equal(scale, step)
    print("tokens")
    for tokens, rows, columns in ((1, 70, 130), (35, 64, 64), (5, 3, 7)):
        packed = Int8Weight.from_quantized(rtn.quantize(torch.randn(rows, columns), QuantScheme(8)))
        codes, scale = quantize_tokens(torch.randn(tokens, columns))
        pair = both(lambda how, a=(codes, scale, packed): int8_linear(*a, implementation=how))
        show(f"int8 {tokens}", pair, 4 * 2.0**-23 * pair[1].double().abs())


def int4() -> None:
    for rows, columns, group, symmetric, order, tokens, dtype in (
        (7, 256, 128, True, False, 1, torch.float32),
        (40, 192, 64, False, True, 1, torch.float16),
        (33, 256, 128, False, True, 19, torch.float32),
        (5, 100, 0, True, False, 3, torch.float32),
    ):
        weight, _ = int4_weight(rows, columns, group, symmetric, act_order=order)
        x, bias = torch.randn(tokens, columns).to(dtype), torch.randn(rows)
        dense = weight.dequantize()
        for bits in (16, 8):
            pair = both(
                lambda how, a=(x, weight, bias), b=bits: int4_linear(
                    *a, activation_bits=b, implementation=how
                )
            )
            bound = 2 * product_bound(x, dense, dtype) + 4 * torch.finfo(dtype).eps
            show(f"int4 {bits} bits, {tokens}", pair, bound)
    # Several tokens of 16 bits: weights are rounded to x's dtype.
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(4, 256).to(dtype)
        weight, _ = int4_weight(9, 256, 128, True)
        pair = both(lambda how, a=(x, weight): int4_linear(*a, implementation=how))
        magnitude = x.double().abs() @ weight.dequantize().double().abs().T
        show(f"int4 {dtype}", pair, torch.finfo(dtype).eps * magnitude)


def formats() -> None:
    for name in ("Q4_0", "Q8_0", "Q4_K"):
        weight = torch.randn(35, 512)
        blocks = torch.from_numpy(gguf.quantize(weight, name))
        x = torch.randn(3, 512)
        pair = both(lambda how, a=(x, blocks, name): gguf_linear(*a, implementation=how))
        show(name, pair, product_bound(x, torch.full_like(weight, 4), torch.float32))
    for rows, columns, size, nested in ((35, 192, 64, True), (4, 33, 32, False)):
        weight = nf4.quantize(
            torch.randn(rows, columns), block_size=size, double_quantization=nested
        )
        x = torch.randn(2, columns)
        pair = both(lambda how, a=(x, weight): codebook_linear(*a, implementation=how))
        dense = replace(weight, dtype=torch.float32).dequantize()
        show(f"nf4 {columns}", pair, product_bound(x, dense, torch.float32))
    for granularity in ("tensor", "channel"):
        weight = Float8Tensor.quantize(torch.randn(35, 100), granularity)
        x = torch.randn(2, 100)
        pair = both(lambda how, a=(x, weight): fp8_linear(*a, implementation=how))
        show("fp8", pair, product_bound(x, weight.dequantize(), torch.float32))


def attention() -> None:
    for dtype, dim in ((torch.int8, 16), (torch.float8_e4m3fn, 24)):
        codes = torch.randn(2, 2, 2, 50, dim) * (40 if dtype == torch.int8 else 1)
        keys, values = codes.to(dtype)
        scale = (torch.rand(2, 2, 2, 50) + 0.5) / (40 if dtype == torch.int8 else 1)
        lengths = torch.tensor([50, 33])
        parts = (torch.randn(2, 4, dim), keys, values, *scale, lengths)
        pair = both(lambda how, a=parts: decode_attention(*a, implementation=how))
        show(f"attention {dtype}", pair, 1e-4)


if __name__ == "__main__":
    torch.manual_seed(0)
    tokens_and_int8()
    int4()
    formats()
    attention()
