"""CodebookTensor: 4-bit indices into a list of 16 numbers, and one magnitude for each block.

    x̂[i] = values[code[i]] * absmax[i // block_size]

The tensor is flattened first, so a block may reach from one row into the next. This is what
bitsandbytes stores (NF4 and FP4): two codes a byte, the first in the high four bits. The
magnitudes are float32, or themselves 8-bit codes: "double quantization", QLoRA (Dettmers et al.
2023, arXiv 2305.14314), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from labkit.core.codebooks import CODEBOOKS, Codebook
from labkit.core.errors import SchemeError, ShapeError

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# What bitsandbytes calls them -> the 16 numbers.
BOOKS: dict[str, Codebook] = {"nf4": CODEBOOKS["nf4"], "fp4": CODEBOOKS["fp4_bnb"]}


@dataclass(frozen=True, eq=False)
class NestedAbsmax:
    """The magnitudes of all blocks, quantized to 8 bits: levels[codes] * absmax + offset.

    Args:
        codes: uint8 [blocks], indices into ``levels``.
        absmax: float32 [ceil(blocks / block_size)], the largest |magnitude - offset| of each run.
        levels: float32 [256], rising, from about -1 to 1.
        offset: the mean of the magnitudes, taken off first, for they are all positive and the
            levels have a sign.
        block_size: magnitudes that share one ``absmax``.

    Raises:
        SchemeError: dtypes other than these, or an offset that is not finite.
        ShapeError: parts that do not fit each other.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    levels: torch.Tensor
    offset: float
    block_size: int = 256

    def __post_init__(self) -> None:
        parts = (self.codes, self.absmax, self.levels)
        if tuple(p.dtype for p in parts) != (torch.uint8, torch.float32, torch.float32):
            raise SchemeError(
                f"codes, absmax and levels are {', '.join(str(p.dtype) for p in parts)}",
                where="NestedAbsmax",
                remedy="Expected uint8, float32 and float32.",
            )
        if self.block_size < 1 or not math.isfinite(self.offset):
            raise SchemeError(
                f"block size {self.block_size}, offset {self.offset}", where="NestedAbsmax"
            )
        shapes = tuple(tuple(p.shape) for p in parts)
        runs = -(-self.codes.numel() // self.block_size)
        if shapes != ((self.codes.numel(),), (runs,), (256,)):
            raise ShapeError(
                f"codes, absmax and levels have shapes {shapes}",
                where=f"NestedAbsmax, block size {self.block_size}",
                remedy="Expected [blocks], [ceil(blocks / block size)] and [256].",
            )

    @property
    def nbytes(self) -> int:
        """Bytes stored, the offset included; the levels are a constant of the format."""
        return self.codes.numel() + 4 * self.absmax.numel() + 4

    def dequantize(self) -> torch.Tensor:
        """Return the magnitudes: float32 [blocks]."""
        unit = self.levels.index_select(0, self.codes.to(torch.int32))
        return multiply_blocks(unit, self.absmax, self.block_size) + self.offset

    def to(self, device: torch.device | str) -> NestedAbsmax:
        """Return the same magnitudes on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            absmax=self.absmax.to(device),
            levels=self.levels.to(device),
        )


@dataclass(frozen=True, eq=False, repr=False)
class CodebookTensor:
    """A weight quantized to a list of 16 numbers, block by block.

    Args:
        packed: uint8 [ceil(n / 2)] for n elements; code 2i in the high four bits of byte i.
        absmax: the magnitude of each block, float32 [ceil(n / block_size)], or the same quantized.
        shape: the tensor's own shape, [out, in] for a weight.
        quant_type: which 16 numbers: "nf4" or "fp4", a key of `BOOKS`.
        block_size: elements that share a magnitude, one of `BLOCK_SIZES`.
        dtype: what the weight was before (float32, float16 or bfloat16). Dequantized values are
            rounded to it, as bitsandbytes does.

    Raises:
        SchemeError: dtypes, a block size or a codebook other than these.
        ShapeError: parts that do not fit the shape, or a shape without elements.
    """

    packed: torch.Tensor
    absmax: torch.Tensor | NestedAbsmax
    shape: torch.Size
    quant_type: str = "nf4"
    block_size: int = 64
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        require_known(self.quant_type, self.block_size, self.dtype)
        plain = isinstance(self.absmax, torch.Tensor)
        if self.packed.dtype != torch.uint8 or (plain and self._scales().dtype != torch.float32):
            raise SchemeError(
                f"packed is {self.packed.dtype}, absmax {self._scales().dtype}",
                where="CodebookTensor",
                remedy="Expected uint8, and float32 or a NestedAbsmax.",
            )
        count = math.prod(self.shape)
        found = (tuple(self.packed.shape), tuple(self._scales().shape))
        expected = (((count + 1) // 2,), (-(-count // self.block_size),))
        if count == 0 or found != expected:
            raise ShapeError(
                f"packed codes and absmax have shapes {found[0]} and {found[1]}",
                where=f"CodebookTensor {tuple(self.shape)}, block size {self.block_size}",
                remedy=f"Expected {expected[0]} and {expected[1]}, of at least one element.",
            )

    @property
    def book(self) -> Codebook:
        """The 16 numbers."""
        return BOOKS[self.quant_type]

    def _scales(self) -> torch.Tensor:
        return self.absmax.codes if isinstance(self.absmax, NestedAbsmax) else self.absmax

    @property
    def codes(self) -> torch.Tensor:
        """The codes 0..15 as uint8, in the tensor's own shape."""
        both = torch.stack([self.packed >> 4, self.packed & 15], dim=-1)
        return both.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)

    def block_absmax(self) -> torch.Tensor:
        """The magnitude of each block: float32 [blocks]."""
        return self.absmax.dequantize() if isinstance(self.absmax, NestedAbsmax) else self.absmax

    def dequantize(self) -> torch.Tensor:
        """Return the float32 tensor, every value rounded to ``dtype``, in the tensor's shape."""
        levels = torch.tensor(self.book.values, dtype=torch.float32, device=self.packed.device)
        pairs = torch.cartesian_prod(levels, levels)  # byte -> the two numbers that it holds
        unit = pairs.index_select(0, self.packed.to(torch.int32)).reshape(-1)
        unit = unit[: math.prod(self.shape)]
        values = multiply_blocks(unit, self.block_absmax(), self.block_size)
        return values.to(self.dtype).to(torch.float32).reshape(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element: 4, and the magnitudes with what they need.

        For block size 64: 4.5; with double quantization 4 + 8/64 + 32/(64 * 256) = 4.127. The 16
        numbers (and the 256 levels) are constants of the format and left out, as is the half byte
        that an odd count leaves empty.
        """
        return 4 + 8 * self._absmax_bytes() / math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes and the magnitudes."""
        return self.packed.numel() + self._absmax_bytes()

    def _absmax_bytes(self) -> int:
        nested = isinstance(self.absmax, NestedAbsmax)
        return self.absmax.nbytes if nested else 4 * self._scales().numel()

    def to(self, device: torch.device | str) -> CodebookTensor:
        """Return the same tensor on another device."""
        return replace(self, packed=self.packed.to(device), absmax=self.absmax.to(device))

    def __repr__(self) -> str:
        nested = ", double quantization" if isinstance(self.absmax, NestedAbsmax) else ""
        return (
            f"CodebookTensor({' x '.join(map(str, self.shape))}, {self.quant_type} block "
            f"{self.block_size}{nested}, {self.bits_per_weight:.3f} bits/weight, "
            f"{self.nbytes} bytes)"
        )


def require_known(quant_type: str, block_size: int, dtype: torch.dtype) -> None:
    """Return if bitsandbytes has this codebook, block size and dtype; else raise SchemeError."""
    if quant_type not in BOOKS or block_size not in BLOCK_SIZES or dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise SchemeError(
            f"quant type {quant_type!r}, block size {block_size!r}, {dtype}",
            where="4-bit codebook",
            remedy=f"Choose from {', '.join(BOOKS)}; {', '.join(map(str, BLOCK_SIZES))}; {names}.",
        )


def multiply_blocks(values: torch.Tensor, factors: torch.Tensor, block_size: int) -> torch.Tensor:
    """Multiply each block of ``values`` ([n]) by its own factor ([ceil(n / block_size)])."""
    full = values.numel() // block_size * block_size
    blocks = values[:full].reshape(-1, block_size) * factors[: full // block_size, None]
    if full == values.numel():
        return blocks.reshape(-1)
    return torch.cat([blocks.reshape(-1), values[full:] * factors[-1]])
