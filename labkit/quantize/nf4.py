"""NF4 and FP4: a weight, divided by the largest of its block, becomes the nearest of 16 numbers.

QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3. A block is 64 neighbours of the flattened
weight; its largest magnitude ("absmax") is kept in float32, 0.5 bits a weight, or with double
quantization (`labkit.quantize.dynamic_map`) in 8 bits, 0.127 bits a weight. No data is needed.

Bytes and dequantized values are those of bitsandbytes 0.50 on a CPU, its roundings included: a
block is multiplied by the reciprocal of its absmax, not divided by it; the last block, when it is
shorter than the others, *is* divided; a value midway between two numbers becomes the smaller one.
"""

from __future__ import annotations

from typing import Literal

import torch

from labkit.core.codebook import BOOKS, CodebookTensor, NestedAbsmax, require_known
from labkit.core.codebooks import Codebook
from labkit.core.errors import ShapeError
from labkit.core.finite import require_finite
from labkit.quantize import nf4_numba
from labkit.quantize.dynamic_map import quantize_absmax

Loop = Literal["numba", "plain"]

# Below this the reciprocal of an absmax overflows.
SMALLEST_DIVISOR = 1e-38


def quantize(
    weight: torch.Tensor,
    *,
    quant_type: str = "nf4",
    block_size: int = 64,
    double_quantization: bool = False,
    loop: Loop = "numba",
) -> CodebookTensor:
    """Quantize ``weight`` (float32, float16 or bfloat16, any shape, [out, in] as a rule).

    Args:
        quant_type: "nf4", quantiles of the normal distribution, or "fp4", a 4-bit float.
        block_size: weights that share an absmax: 32, 64, …, 4096. The last block may be shorter.
        double_quantization: keep the absmax values in 8 bits.
        loop: the fast one or the one to read; the bytes are the same. Off the CPU always "plain".

    Raises:
        NonFiniteError: the weight holds NaN or infinity.
        ShapeError: the weight has no elements.
        SchemeError: a quant type, block size or dtype that bitsandbytes does not have.
    """
    require_known(quant_type, block_size, weight.dtype)
    if weight.numel() == 0:
        raise ShapeError(f"a weight of shape {tuple(weight.shape)} has no elements")
    require_finite(weight, "weight")
    values = weight.detach().reshape(-1).float()
    fast = loop == "numba" and weight.device.type == "cpu"
    encode = _encode_fast if fast else encode_blocks
    packed, absmax = encode(values, BOOKS[quant_type], block_size)
    scales: torch.Tensor | NestedAbsmax = quantize_absmax(absmax) if double_quantization else absmax
    return CodebookTensor(packed, scales, weight.shape, quant_type, block_size, weight.dtype)


def dequantize(tensor: CodebookTensor, *, loop: Loop = "numba") -> torch.Tensor:
    """What ``tensor.dequantize()`` returns, to the bit; by default by the fast loop."""
    if loop == "plain" or tensor.packed.device.type != "cpu":
        return tensor.dequantize()
    levels = torch.tensor(tensor.book.values, dtype=torch.float32)
    count = tensor.shape.numel()
    values = nf4_numba.decode(
        tensor.packed, tensor.block_absmax(), levels, tensor.block_size, count
    )
    if tensor.dtype != torch.float32:
        values = values.to(tensor.dtype).float()
    return values.reshape(tensor.shape)


def encode_blocks(
    values: torch.Tensor, book: Codebook, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize flat float32 ``values`` [n]; return packed codes [ceil(n / 2)] and absmax [blocks].

    An all-zero block has absmax 0, and its codes say 0. (An all-zero block that is the last and
    shorter has absmax 1e-38: it is clamped before it is kept, not only before it divides.)
    """
    full = values.numel() // block_size * block_size
    rows, rest = values[:full].reshape(-1, block_size), values[full:]
    absmax = rows.abs().amax(dim=1)
    unit = (rows * (1 / absmax.clamp(min=SMALLEST_DIVISOR))[:, None]).reshape(-1)
    if rest.numel():
        last = rest.abs().max().clamp(min=SMALLEST_DIVISOR).reshape(1)
        absmax, unit = torch.cat([absmax, last]), torch.cat([unit, rest / last])
    boundaries, code_of = decision_boundaries(book)
    places = torch.bucketize(unit, boundaries.to(unit.device))
    return pack_nibbles(code_of.to(unit.device)[places], zero=_zero_code(book)), absmax


def decision_boundaries(book: Codebook) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 15 midpoints between neighbouring numbers, and the 16 codes in rising order.

    float32 [15] and uint8 [16]. A value has the place p if p midpoints lie below it; its code is
    code_of[p]. FP4 has two codes for 0: small positive values get the second, code 8.
    """
    levels = torch.tensor(book.values, dtype=torch.float32)
    order = torch.argsort(levels, stable=True)
    rising = levels[order]
    return (rising[:-1] + rising[1:]) / 2, order.to(torch.uint8)


def pack_nibbles(codes: torch.Tensor, zero: int = 0) -> torch.Tensor:
    """Pack uint8 codes 0..15 ([n]) two a byte, the first in the high four bits.

    An odd count is filled up with ``zero``.
    """
    if codes.numel() % 2:
        codes = torch.cat([codes, codes.new_tensor([zero])])
    return (codes[0::2] << 4) | codes[1::2]


def _zero_code(book: Codebook) -> int:
    return book.values.index(0.0)


def _encode_fast(
    values: torch.Tensor, book: Codebook, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole blocks by the compiled loop; what is left over, less than a block, by the plain one."""
    full = values.numel() // block_size * block_size
    boundaries, code_of = decision_boundaries(book)
    packed, absmax = nf4_numba.encode(values[:full], boundaries, code_of, block_size)
    if full == values.numel():
        return packed, absmax
    rest, last = encode_blocks(values[full:], book, block_size)
    return torch.cat([packed, rest]), torch.cat([absmax, last])
