"""FloatZeroTensor: integer codes whose zero-point is a real number.

    x̂ = (code - zero) * scale

HQQ's form. Nothing forces 0 onto a code: the zero of a weight need not be exact, and a zero-point
that may lie between two codes can be fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.packing import pack_bits, packed_size


@dataclass(frozen=True, eq=False, repr=False)
class FloatZeroTensor:
    """A weight [out, in] in groups of neighbours along in.

    Args:
        codes: uint8 [out, in], 0 .. 2^bits-1.
        scale: floating point [out, in / group_size], the distance between two codes.
        zero: same shape and dtype, the (real) code that stands for 0.
        bits: width of a code, 1 to 8.
        group_size: weights that share a scale and a zero.

    Raises:
        SchemeError: dtypes or bits other than these.
        ShapeError: parts that do not fit each other.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int
    group_size: int

    def __post_init__(self) -> None:
        floating = self.scale.dtype.is_floating_point and self.scale.dtype == self.zero.dtype
        if self.codes.dtype != torch.uint8 or not floating or not 1 <= self.bits <= 8:
            raise SchemeError(
                f"codes {self.codes.dtype}, scale {self.scale.dtype}, zero {self.zero.dtype}, "
                f"{self.bits} bits",
                where="FloatZeroTensor",
                remedy="Expected uint8, one floating-point dtype for both, and 1 to 8 bits.",
            )
        shapes = [tuple(part.shape) for part in (self.codes, self.scale, self.zero)]
        fits = self.codes.ndim == 2 and self.codes.numel() > 0 and self.group_size > 0
        if fits:
            groups = (self.codes.shape[0], self.codes.shape[1] // self.group_size)
            fits = self.codes.shape[1] % self.group_size == 0 and shapes[1:] == [groups, groups]
        if not fits:
            raise ShapeError(
                f"codes, scale and zero have shapes {shapes}",
                where=f"FloatZeroTensor, group {self.group_size}",
                remedy="Expected [out, in], and twice [out, in / group_size].",
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight, [out, in]."""
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """Return the float32 weight [out, in]."""
        groups = self.codes.to(torch.float32).reshape(*self.scale.shape, self.group_size)
        scale, zero = self.scale.float()[..., None], self.zero.float()[..., None]
        return ((groups - zero) * scale).reshape(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight: its code, and its part of a scale and a zero."""
        return self.bits + 2 * 8 * self.scale.element_size() / self.group_size

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, scales and zeros."""
        metadata = 2 * self.scale.numel() * self.scale.element_size()
        return packed_size(self.codes.numel(), self.bits) + metadata

    def packed(self) -> dict[str, torch.Tensor]:
        """Return what would be stored: "codes" as a dense bit stream, "scale" and "zero"."""
        return {"codes": pack_bits(self.codes, self.bits), "scale": self.scale, "zero": self.zero}

    def to(self, device: torch.device | str) -> FloatZeroTensor:
        """Return the same weight on another device."""
        return replace(
            self,
            codes=self.codes.to(device),
            scale=self.scale.to(device),
            zero=self.zero.to(device),
        )

    def __repr__(self) -> str:
        return (
            f"FloatZeroTensor({' x '.join(map(str, self.shape))}, uint{self.bits} group "
            f"{self.group_size}, real zero, {self.bits_per_weight:.3f} bits/weight, "
            f"{self.nbytes} bytes)"
        )
