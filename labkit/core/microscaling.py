"""MXFP4: blocks of 32 FP4 numbers that share a power of two as their scale.

FP4 E2M1 knows only the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6, so each block brings its own scale,
stored as E8M0: 8 bits for 32 numbers, 4.25 bits a weight. Source: OCP Microscaling Formats (MX)
Specification v1.0, sections 5.2 (MXFP4), 5.4.1 (E8M0) and 6.3 (conversion).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from labkit.core.dtypes_cast import decode, encode
from labkit.core.errors import GroupSizeError
from labkit.core.finite import require_finite
from labkit.core.float_codec import floor_log2, power_of_two
from labkit.core.float_formats import FORMATS

BLOCK_SIZE = 32
ELEMENT = FORMATS["fp4_e2m1"]
SCALE = FORMATS["e8m0"]

# Exponent of the largest element, 6 = 1.5 * 2**2.
_ELEMENT_MAX_EXPONENT = 2


@dataclass(frozen=True)
class MXTensor:
    """``codes`` uint8 ``[..., n]`` (FP4, one a byte), ``scale_codes`` uint8 ``[..., n/32]``."""

    codes: torch.Tensor
    scale_codes: torch.Tensor

    @property
    def bits_per_weight(self) -> float:
        """4 bits a number and 8 bits a block, as stored when packed: 4.25."""
        return ELEMENT.bits + SCALE.bits / BLOCK_SIZE

    def dequantize(self) -> torch.Tensor:
        """The numbers, float32 ``[..., n]``. A block whose scale is NaN is NaN throughout."""
        scale = decode(self.scale_codes, SCALE)
        elements = decode(self.codes, ELEMENT)
        return elements * scale.repeat_interleave(BLOCK_SIZE, dim=-1)


def quantize_mxfp4(x: torch.Tensor) -> MXTensor:
    """Quantize the last axis in blocks of 32.

    x: floating point ``[..., n]`` with n a multiple of 32. The scale is the power of two that puts
    the exponent of the block's largest magnitude on that of FP4's largest number; a magnitude then
    lies below 8, and what exceeds 6 saturates: the specification's rule, which is not the scale of
    least error. A block of zeros has the smallest scale.

    Raises GroupSizeError where n is not a multiple of 32, NonFiniteError for NaN or infinity.
    """
    if x.dim() == 0 or x.shape[-1] % BLOCK_SIZE:
        raise GroupSizeError(
            f"the last axis is not a multiple of {BLOCK_SIZE}",
            where=f"input of MXFP4, shape {tuple(x.shape)}",
            remedy="Pad it with zeros.",
        )
    require_finite(x, "input of MXFP4")
    blocks = x.detach().double().reshape(*x.shape[:-1], x.shape[-1] // BLOCK_SIZE, BLOCK_SIZE)
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    exponent = floor_log2(amax) - _ELEMENT_MAX_EXPONENT
    scale = power_of_two(exponent.clamp(-127, 127))
    codes = encode(blocks / scale, ELEMENT).flatten(-2)
    return MXTensor(codes, encode(scale.squeeze(-1), SCALE))
