"""QuantizedTensor: integer codes, and the metadata that turns them back into numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from labkit.core.affine import dequantize
from labkit.core.errors import SchemeError, ShapeError
from labkit.core.granularity import from_blocks, scale_shape, to_blocks
from labkit.core.packing import pack_bits, packed_size, unpack_bits
from labkit.core.scheme import QuantScheme


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """A quantized weight (or activation).

    Args:
        codes: int8 (symmetric) or uint8 (asymmetric), in the tensor's own shape, [out, in] for a
            weight.
        scale: floating point, in the shape of scales (`labkit.core.granularity`). Its dtype is
            what is stored, and what is counted: 16 bits for float16, 32 for float32.
        zero_point: int32 in the shape of scales; None when symmetric.
        scheme: what the codes mean.
        g_idx: int32 [in], the group that each input column belongs to, where groups are not
            neighbours (GPTQ's act-order); None otherwise.

    Raises:
        SchemeError: dtypes, or the presence of a zero-point, that contradict the scheme.
        ShapeError: scale, zero_point or g_idx that do not fit the codes.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    scheme: QuantScheme
    g_idx: torch.Tensor | None = None

    def __post_init__(self) -> None:
        scheme = self.scheme
        if self.codes.dtype != scheme.code_dtype or not self.scale.dtype.is_floating_point:
            raise SchemeError(
                f"codes are {self.codes.dtype}, scale is {self.scale.dtype}",
                where=f"QuantizedTensor, {scheme}",
                remedy=f"Codes are {scheme.code_dtype}; a scale is a floating-point number.",
            )
        if scheme.symmetric and self.zero_point is not None:
            # All zeros carry nothing: dropped, so that they are neither stored nor counted.
            if bool((self.zero_point != 0).any()):
                raise SchemeError("a zero-point other than 0", where=str(scheme))
            object.__setattr__(self, "zero_point", None)
        elif not scheme.symmetric and self.zero_point is None:
            raise SchemeError("no zero-point", where=str(scheme), remedy="Asymmetric needs one.")
        expected = scale_shape(self.codes.shape, scheme)
        for name, part in (("scale", self.scale), ("zero_point", self.zero_point)):
            if part is not None and tuple(part.shape) != expected:
                raise ShapeError(
                    f"{name} has shape {tuple(part.shape)}, codes {tuple(self.codes.shape)}",
                    where=str(scheme),
                    remedy=f"Expected {expected}.",
                )
        if self.g_idx is not None:
            self._check_g_idx(self.g_idx)

    def _check_g_idx(self, g_idx: torch.Tensor) -> None:
        groups = self.scale.shape[-1] if self.scale.ndim else 0
        fits = self.scheme.granularity == "group" and g_idx.shape == self.codes.shape[-1:]
        if not fits or int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
            raise ShapeError(
                f"g_idx of shape {tuple(g_idx.shape)} for codes {tuple(self.codes.shape)}",
                where=str(self.scheme),
                remedy=f"One group index below {groups} for each element of the last axis.",
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor that this stands for."""
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """Return the float32 tensor, in the shape of the codes."""
        zero_point = self.zero_point
        if self.g_idx is not None:
            columns = self.g_idx.to(torch.int64)
            scale = self.scale.index_select(-1, columns)
            zeros = 0 if zero_point is None else zero_point.index_select(-1, columns)
            return dequantize(self.codes, scale, zeros)
        rows = to_blocks(self.codes, self.scheme)
        zeros = 0 if zero_point is None else zero_point.reshape(-1, 1)
        blocks = dequantize(rows, self.scale.reshape(-1, 1), zeros)
        return from_blocks(blocks, self.scheme, self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element: codes, scales, zero-points (``bits`` each) and g_idx (32).

        Padding to whole bytes, at most 7 bits for each of the parts, is left out; `nbytes` has it.
        """
        bits = self.codes.numel() * self.scheme.bits
        bits += self.scale.numel() * self.scale.element_size() * 8
        if self.zero_point is not None:
            bits += self.zero_point.numel() * self.scheme.bits
        if self.g_idx is not None:
            bits += self.g_idx.numel() * 32
        return bits / self.codes.numel()

    @property
    def nbytes(self) -> int:
        """The bytes of `packed`, without doing the packing."""
        total = packed_size(self.codes.numel(), self.scheme.bits)
        total += self.scale.numel() * self.scale.element_size()
        if self.zero_point is not None:
            total += packed_size(self.zero_point.numel(), self.scheme.bits)
        return total + (0 if self.g_idx is None else self.g_idx.numel() * 4)

    def packed(self) -> dict[str, torch.Tensor]:
        """Return what would be stored: "codes", "scale", and "zero_point" and "g_idx" if present.

        Codes and zero-points are dense bit streams (uint8, [bytes]); signed codes are stored plus
        2^(bits-1), so that all are unsigned.
        """
        bits = self.scheme.bits
        unsigned = self.codes.to(torch.int16) + _code_offset(self.scheme)
        parts = {"codes": pack_bits(unsigned, bits), "scale": self.scale}
        if self.zero_point is not None:
            parts["zero_point"] = pack_bits(self.zero_point, bits)
        if self.g_idx is not None:
            parts["g_idx"] = self.g_idx.to(torch.int32)
        return parts

    @classmethod
    def from_packed(
        cls, parts: dict[str, torch.Tensor], scheme: QuantScheme, shape: tuple[int, ...]
    ) -> QuantizedTensor:
        """Return the tensor whose `packed` gave ``parts``: the exact inverse.

        Raises:
            PackingError: a bit stream that does not hold as many codes as ``shape`` asks for.
        """
        unsigned = unpack_bits(parts["codes"], scheme.bits, math.prod(shape)).to(torch.int16)
        codes = (unsigned - _code_offset(scheme)).to(scheme.code_dtype).reshape(shape)
        zero_point = None
        if "zero_point" in parts:
            scales = scale_shape(shape, scheme)
            flat = unpack_bits(parts["zero_point"], scheme.bits, math.prod(scales))
            zero_point = flat.to(torch.int32).reshape(scales)
        return cls(codes, parts["scale"], zero_point, scheme, parts.get("g_idx"))

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """Return the same tensor on another device; the parts keep their dtypes."""
        return QuantizedTensor(
            self.codes.to(device),
            self.scale.to(device),
            None if self.zero_point is None else self.zero_point.to(device),
            self.scheme,
            None if self.g_idx is None else self.g_idx.to(device),
        )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape)) or "scalar"
        order = ", g_idx" if self.g_idx is not None else ""
        return (
            f"QuantizedTensor({shape}, {self.scheme}{order}, "
            f"{self.bits_per_weight:.3f} bits/weight, {self.nbytes} bytes)"
        )


def _code_offset(scheme: QuantScheme) -> int:
    return 2 ** (scheme.bits - 1) if scheme.symmetric else 0
