"""Integers of 1 to 8 bits that no kernel reads: packed in memory, unpacked a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.errors import ShapeError
from labkit.core.packing import pack_bits, unpack_bits
from labkit.core.tensor import QuantizedTensor
from labkit.nn.packed.form import AT_A_TIME, Form, Index, integer_label

_EIGHT = 8  # codes that end on a byte, whatever their width


@dataclass(frozen=True, eq=False)
class BitsForm(Form):
    """A matrix of integers with a scale per group, row or tensor.

    Args:
        codes: uint8 [out, bytes of a row], a bit stream (`labkit.core.packing`) for each row; with
            8 bits the codes themselves, int8 [out, in] where they are symmetric.
        scale: floating point [out or 1, groups].
        zero_point: uint8 in the shape of scale; None: symmetric.
        g_idx: int32 [in], the group of each column; None: neighbours share one.
        bits, in_features: width of a code, columns of the matrix.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    g_idx: Tensor | None
    bits: int
    in_features: int
    kind = "bits"

    @classmethod
    def packed(cls, weight: QuantizedTensor) -> BitsForm:
        """The codes of a weight [out, in]; nothing is rounded. Raises ShapeError for no matrix."""
        if weight.codes.ndim != 2:
            raise ShapeError(
                f"codes have shape {tuple(weight.shape)}", "BitsForm", "Expected [out, in]."
            )
        bits, columns = weight.scheme.bits, weight.shape[1]
        codes = weight.codes
        if bits < 8:
            offset = 2 ** (bits - 1) if weight.scheme.symmetric else 0
            step = max(1, AT_A_TIME // columns)
            runs = [_packed(run, bits, offset) for run in codes.split(step)]
            codes = torch.cat(runs)
        zero = weight.zero_point
        return cls(
            codes.contiguous(),
            weight.scale.contiguous(),
            None if zero is None else zero.to(torch.uint8).contiguous(),
            None if weight.g_idx is None else weight.g_idx.to(torch.int32).contiguous(),
            bits,
            columns,
        )

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.codes), self.in_features))

    @property
    def label(self) -> str:
        symmetric = self.zero_point is None
        return integer_label(self.bits, symmetric, self.in_features, self.scale.shape[1])

    def parts(self) -> dict[str, Tensor]:
        named = {n: getattr(self, n) for n in ("codes", "scale", "zero_point", "g_idx")}
        return {name: part for name, part in named.items() if part is not None}

    def settings(self) -> dict[str, object]:
        return {"bits": self.bits, "in_features": self.in_features}

    @classmethod
    def restored(cls, parts: dict[str, Tensor], settings: dict) -> BitsForm:
        return cls(**{"zero_point": None, "g_idx": None, **parts}, **settings)

    def rows(self, index: Index) -> Tensor:
        by_row = len(self.scale) == len(self.codes)
        scale = (self.scale[index] if by_row else self.scale).to(torch.float32)
        steps = self._codes(self.codes[index]).to(torch.float32)
        if self.zero_point is None:
            zero = torch.full_like(scale, self._middle)
        else:
            zero = (self.zero_point[index] if by_row else self.zero_point).to(torch.float32)
        if self.g_idx is not None:
            columns = self.g_idx.to(torch.int64)
            return (steps - zero[:, columns]) * scale[:, columns]
        blocks = steps.reshape(len(steps), scale.shape[1], -1)
        return ((blocks - zero[:, :, None]) * scale[:, :, None]).reshape(steps.shape)

    @property
    def _middle(self) -> int:
        """What symmetric codes are stored plus."""
        return 2 ** (self.bits - 1) if self.bits < 8 else 0

    def _codes(self, packed: Tensor) -> Tensor:
        if self.bits == 8:
            return packed
        count = packed.shape[1] // self.bits * _EIGHT
        codes = unpack_bits(packed.reshape(-1), self.bits, len(packed) * count)
        return codes.reshape(len(packed), count)[:, : self.in_features]


def _packed(codes: Tensor, bits: int, offset: int) -> Tensor:
    """Codes [rows, in] as a bit stream a row, uint8 [rows, bytes]; each is stored plus offset."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % _EIGHT)).to(torch.int16)
    return pack_bits(padded + offset, bits).reshape(len(codes), -1)
