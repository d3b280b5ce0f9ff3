"""Every compiled kernel on arrays that end, or begin, at memory which may not be read.

Run as a program: a read outside ends the process with a signal. Results are compared with the
formula, so the same cases serve for other processors (NUMBA_CPU_FEATURES).
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from labkit.core.float8_tensor import Float8Tensor
from labkit.core.scheme import QuantScheme
from labkit.kernels import (
    CodebookPanels,
    GgufPanels,
    Int4Panels,
    Int8Weight,
    codebook_linear,
    decode_attention,
    fp8_linear,
    gguf_linear,
    int4_linear,
    int8_linear,
    panel_linear,
    quantize_tokens,
)
from labkit.quantize import gguf, nf4, rtn
from tests.kernels.cases import int4_weight, product_bound

_PAGE = mmap.PAGESIZE
_KEPT = []


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy, contiguous, right before a page that may not be touched (or right after one)."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    inner = max(1, -(-raw.size // _PAGE)) * _PAGE
    area = mmap.mmap(-1, inner + 2 * _PAGE)
    base = np.frombuffer(area, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (0, inner + _PAGE):
        address = ctypes.c_void_p(base.ctypes.data + page)
        assert libc.mprotect(address, ctypes.c_size_t(_PAGE), 0) == 0
    _KEPT.append(area)
    first = _PAGE + (inner - raw.size if at_end else 0)
    place = base[first : first + raw.size]
    place[:] = raw
    return torch.from_numpy(place).view(tensor.dtype).reshape(tensor.shape)


def close(found, exact, bound, name) -> None:
    assert ((found.double() - exact.double()).abs() <= bound).all(), name


def results_guarded(at_end: bool):
    """Have results lie beside such pages as well."""
    plain = torch.empty

    def empty(*shape, **options):
        return guarded(plain(*shape, **options), at_end)

    return patch.object(torch, "empty", empty)


def int4(at_end: bool) -> None:
    for columns, group, symmetric, order in ((256, 128, True, False), (96, 32, False, True)):
        rows, _ = int4_weight(9, columns, group, symmetric, act_order=order)
        names = ["codes", "scale", "columns"] + ([] if symmetric else ["zero_point"])
        for weight in (rows, Int4Panels.from_rows(rows)):
            weight = replace(weight, **{n: guarded(getattr(weight, n), at_end) for n in names})
            for tokens in (0, 1, 4, 5, 17):
                x = guarded(torch.randn(tokens, columns), at_end)
                _int4_products(x, weight)
                _int4_products(guarded(x.to(torch.bfloat16), at_end), weight)


def _int4_products(x, weight) -> None:
    for bits in (16, 8):
        y = int4_linear(x, weight, activation_bits=bits)
        exact = int4_linear(x, weight, activation_bits=bits, implementation="reference")
        times = 8 if isinstance(weight, Int4Panels) else 2  # the zero-point is taken off a sum
        bound = times * product_bound(x, weight.dequantize(), x.dtype)
        close(y, exact, bound, f"{type(weight).__name__} {tuple(x.shape)} {x.dtype} {bits}")


def int8(at_end: bool) -> None:
    packed = Int8Weight.from_quantized(rtn.quantize(torch.randn(70, 37), QuantScheme(8)))
    packed = replace(
        packed, codes=guarded(packed.codes, at_end), scale=guarded(packed.scale, at_end)
    )
    x = guarded(torch.randn(6, 37), at_end)
    codes, scale = quantize_tokens(x)
    plain, step = quantize_tokens(x, implementation="reference")
    assert torch.equal(codes, plain) and torch.equal(scale, step)
    codes, scale = guarded(codes, at_end), guarded(scale, at_end)
    y = int8_linear(codes, scale, packed)
    sums = codes.long() @ packed.rows().long().T
    assert torch.equal(y, sums.float() * (scale * packed.scale[:70]))


def formats(at_end: bool) -> None:
    for name in ("Q4_0", "Q8_0", "Q4_K"):
        weight = torch.randn(9, 512)
        blocks = guarded(torch.from_numpy(gguf.quantize(weight, name)), at_end)
        x = guarded(torch.randn(3, 512), at_end)
        exact = gguf_linear(x, blocks, name, implementation="reference")
        bound = product_bound(x, torch.full_like(weight, 4), torch.float32)
        close(gguf_linear(x, blocks, name), exact, bound, name)
        panels = GgufPanels.from_blocks(blocks, name)
        panels = replace(panels, data=guarded(panels.data, at_end))
        close(panel_linear(x, panels), exact, bound, f"{name} panels")
        for given in (x.to(torch.bfloat16), x[:1], x[:1].to(torch.bfloat16)):
            given = guarded(given, at_end)
            for bits in (16, 8):
                y = panel_linear(given, panels, activation_bits=bits)
                exact = panel_linear(
                    given, panels, activation_bits=bits, implementation="reference"
                )
                bound = product_bound(given, torch.full_like(weight, 4), given.dtype)
                close(y, exact, bound, f"{name} panels {given.dtype} {bits}")
    for block in (32, 64, 128):
        weight = nf4.quantize(torch.randn(9, 256), block_size=block)
        weight = replace(
            weight, packed=guarded(weight.packed, at_end), absmax=guarded(weight.absmax, at_end)
        )
        x = guarded(torch.randn(3, 256), at_end)
        exact = codebook_linear(x, weight, implementation="reference")
        bound = product_bound(x, weight.dequantize(), torch.float32)
        close(codebook_linear(x, weight), exact, bound, f"nf4 {block}")
        panels = CodebookPanels.from_rows(weight)
        panels = replace(
            panels, codes=guarded(panels.codes, at_end), absmax=guarded(panels.absmax, at_end)
        )
        close(codebook_linear(x, panels), exact, bound, f"nf4 {block} panels")
    for columns in (64, 71):
        weight = Float8Tensor.quantize(torch.randn(9, columns))
        weight = Float8Tensor(guarded(weight.codes, at_end), weight.scale)
        x = guarded(torch.randn(3, columns), at_end)
        exact = fp8_linear(x, weight, implementation="reference")
        bound = product_bound(x, weight.dequantize(), torch.float32)
        close(fp8_linear(x, weight), exact, bound, f"fp8 {columns}")


def attention(at_end: bool) -> None:
    for dtype, dim in ((torch.int8, 32), (torch.float8_e4m3fn, 19)):
        keys, values = (torch.randn(2, 1, 2, 7, dim) * 9).to(dtype)
        scales = (guarded(torch.rand(1, 2, 7) / 9, at_end) for _ in range(2))
        parts = [guarded(part, at_end) for part in (torch.randn(1, 4, dim), keys, values)]
        parts += [*scales, torch.tensor([7])]
        exact = decode_attention(*parts, implementation="reference")
        close(decode_attention(*parts), exact, 1e-4, f"attention {dtype}")


if __name__ == "__main__":
    torch.manual_seed(0)
    for end in (True, False):
        with results_guarded(end):
            int4(end)
            int8(end)
            formats(end)
            attention(end)
    print("inside")
