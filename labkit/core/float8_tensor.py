"""Float8Tensor: a weight in 8-bit floating point, and the scales that fit it into the range.

FP8 (E4M3) reaches 448 and no further, so a weight is divided by absmax / 448 first. Unlike an
integer's, its steps grow with the value: small weights keep three bits of mantissa. Source:
Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448


@dataclass(frozen=True, eq=False)
class Float8Tensor:
    """A matrix [out, in] of FP8 numbers with one scale, or one for each output channel.

    Args:
        codes: float8_e4m3fn [out, in].
        scale: floating point, [1, 1] or [out, 1].

    Raises:
        SchemeError: other dtypes.
        ShapeError: a scale of another shape.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype != FP8 or self.scale.dtype not in (
            torch.float16,
            torch.bfloat16,
            torch.float32,
        ):
            raise SchemeError(
                f"codes are {self.codes.dtype}, scale is {self.scale.dtype}",
                where="Float8Tensor",
                remedy="Expected float8_e4m3fn, and a 16- or 32-bit floating-point scale.",
            )
        allowed = ((1, 1), (self.codes.shape[0], 1)) if self.codes.ndim == 2 else ()
        if tuple(self.scale.shape) not in allowed:
            raise ShapeError(
                f"scale has shape {tuple(self.scale.shape)}, codes {tuple(self.codes.shape)}",
                where="Float8Tensor",
                remedy="Expected a matrix, and [1, 1] or [out, 1].",
            )

    @classmethod
    def quantize(
        cls,
        weight: torch.Tensor,
        granularity: Literal["tensor", "channel"] = "channel",
        *,
        scale_dtype: torch.dtype = torch.float32,
    ) -> Float8Tensor:
        """Round a floating-point matrix [out, in] to FP8, the scale first (to ``scale_dtype``).

        A block of zeros has scale 1. A scale that was rounded down clips the largest value of its
        block to 448 of them.

        Raises:
            NonFiniteError: the weight holds NaN or infinity.
            SchemeError: another granularity.
        """
        if granularity not in ("tensor", "channel"):
            raise SchemeError(
                f"granularity {granularity!r}", remedy='Choose "tensor" or "channel".'
            )
        require_finite(weight, "weight")
        weight = weight.detach().to(torch.float32)
        reach = weight.abs().amax(dim=1, keepdim=True)
        if granularity == "tensor":
            reach = reach.amax().reshape(1, 1)
        tiny = torch.finfo(scale_dtype).tiny
        scale = (reach / FP8_MAX).clamp(min=tiny).to(scale_dtype)
        scale = torch.where(reach == 0, torch.ones_like(scale), scale)
        return cls(to_float8(weight / scale.to(torch.float32)), scale)

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight, [out, in]."""
        return self.codes.shape

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each weight, scales counted."""
        return self.nbytes * 8 / self.codes.numel()

    @property
    def nbytes(self) -> int:
        """Bytes stored, scales counted."""
        return self.codes.numel() + self.scale.numel() * self.scale.element_size()

    def dequantize(self) -> torch.Tensor:
        """Return the float32 weight [out, in]."""
        return self.codes.to(torch.float32) * self.scale.to(torch.float32)

    def to(self, device: torch.device | str) -> Float8Tensor:
        """Return the same weight on another device."""
        return Float8Tensor(self.codes.to(device), self.scale.to(device))


def to_float8(x: torch.Tensor) -> torch.Tensor:
    """x in FP8, rounded to nearest even; beyond ±448 clipped, where OFP8 lets a cast give NaN."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)
