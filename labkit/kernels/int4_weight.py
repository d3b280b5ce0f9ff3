"""Int4Weight: 4-bit codes in the order in which kernels read them.

The columns of a row are put into *slots*: group after group, each group filled up to a whole number
of chunks. With act-order (g_idx) the columns of a group are scattered over the row; in slots they
are neighbours, and x is put into the same order instead, which costs one pass over x.

A chunk is 128 slots in 64 bytes, one AVX-512 register:

    byte j (0..63)     low 4 bits: slot j      high 4 bits: slot j + 64

so that one AND yields 64 codes in order, and one shift and AND the other 64. Groups of less than
128 would leave most of such a chunk empty; they get chunks of 32 slots in 16 bytes, ordered alike
(slots j and j + 16), as in GGUF's Q4_0. Codes are 0..15; a symmetric weight has zero-point 8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.tensor import QuantizedTensor
from labkit.kernels import checks
from labkit.kernels.int4_parts import Int4Parts

SYMMETRIC_ZERO = 8
_WHERE = "Int4Weight"


@dataclass(frozen=True, eq=False)
class Int4Weight(Int4Parts):
    """A matrix [out, in] of 4-bit integers with a scale for each group of a row.

    Args:
        codes: uint8 [out, slots / 2].
        scale: float16 or float32 [out, groups].
        zero_point: uint8 [out, groups], 0..15; None: 8 everywhere.
        columns: int32 [slots], the column of each slot; -1 where a group was filled up.
        chunk: 128 or 32, the slots of a chunk.
        in_features: columns of the matrix.

    Raises:
        SchemeError: dtypes, devices or a chunk other than these, or codes that are not contiguous.
        ShapeError: parts that do not fit each other.
        GroupSizeError: groups that are no whole number of chunks.
    """

    chunk: int
    in_features: int

    def __post_init__(self) -> None:
        if self.chunk not in (32, 128):
            raise SchemeError(f"chunk is {self.chunk}", _WHERE, "Expected 32 or 128.")
        axes = ("out", "groups")
        self.require_fitting(self.codes.device, axes, self.chunk, self.in_features)
        expected = (len(self.scale), len(self.columns) // 2)
        checks.require_shape("codes", self.codes, expected, _WHERE)
        self.require_contiguous()

    @classmethod
    def from_quantized(cls, weight: QuantizedTensor) -> Int4Weight:
        """Put the codes of a weight [out, in] into kernel order; nothing is rounded.

        A bfloat16 scale is widened to float32.

        Raises:
            SchemeError: not 4 bits, or a granularity other than "group", "channel" and "tensor".
            ShapeError: not a matrix.
        """
        scheme = weight.scheme
        if scheme.bits != 4 or scheme.granularity == "token":
            raise SchemeError(f"a weight in {scheme}", _WHERE, "Expected 4 bits, not per token.")
        if weight.codes.ndim != 2:
            raise ShapeError(
                f"codes have shape {tuple(weight.shape)}", _WHERE, "Expected [out, in]."
            )
        rows, in_features = weight.shape
        scale = weight.scale.reshape(-1, max(weight.scale.shape[-1:], default=1))
        zero = None if weight.zero_point is None else weight.zero_point.reshape(scale.shape)
        groups = scale.shape[1]
        g_idx = weight.g_idx
        if g_idx is None:
            g_idx = torch.arange(in_features, device=scale.device) // (in_features // groups)
        columns, chunk = _slots(g_idx.to(torch.int64).cpu(), groups)
        columns = columns.to(weight.codes.device)
        offset = SYMMETRIC_ZERO if scheme.symmetric else 0
        codes = weight.codes.to(torch.int16) + offset
        filled = torch.nn.functional.pad(codes, (0, 1), value=offset)  # column -1: worth 0
        codes = _pack(filled[:, columns.to(torch.int64)].to(torch.uint8), chunk)
        scale = scale if scale.dtype == torch.float16 else scale.float()
        return cls(
            codes,
            scale.expand(rows, groups).contiguous(),
            None if zero is None else zero.expand(rows, groups).to(torch.uint8).contiguous(),
            columns,
            chunk,
            in_features,
        )

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return torch.Size((len(self.codes), self.in_features))

    def slot_codes(self) -> Tensor:
        """The codes as stored, uint8 [out, slots], 0..15."""
        return unpacked(self.codes, self.chunk)

    def steps(self) -> Tensor:
        """code - zero-point of each slot, int32 [out, slots]."""
        zero = SYMMETRIC_ZERO
        if self.zero_point is not None:
            zero = self.zero_point.to(torch.int32).repeat_interleave(self.group_slots, dim=1)
        return self.slot_codes().to(torch.int32) - zero

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        scale = self.scale.float().repeat_interleave(self.group_slots, dim=1)
        values, used = self.steps().float() * scale, self.columns >= 0
        out = torch.zeros(self.shape, device=self.codes.device)
        out[:, self.columns[used].to(torch.int64)] = values[:, used]
        return out

    def to(self, device: torch.device | str) -> Int4Weight:
        """Return the same weight on another device."""
        moved = {name: part.to(device) for name, part in self.parts().items()}
        return replace(self, **moved)

    @cached_property
    def word_order(self) -> Tensor:
        """int32 [slots]: the columns in the order that a lane's 32-bit word holds its codes.

        Lane l of a chunk of 128 has bytes 4 l .. 4 l + 3, so its eight codes, from the lowest bits
        on, are those of slots 4 l, 4 l + 64, 4 l + 1, 4 l + 65, … A chunk of 32 is in slot order.
        """
        if self.chunk == 32:
            return self.columns
        # [chunk, half, lane, byte] -> [chunk, byte, half, lane]
        return self.columns.reshape(-1, 2, 16, 4).permute(0, 3, 1, 2).reshape(-1).contiguous()


def _slots(g_idx: Tensor, groups: int) -> tuple[Tensor, int]:
    """The column of each slot (int32, -1 for none), and the chunk, for g_idx int64 [in]."""
    counts = torch.bincount(g_idx, minlength=groups)
    largest = int(counts.max())
    chunk = 128 if _up(largest, 128) <= _up(largest, 32) * 9 // 8 else 32
    table = torch.full((groups, _up(largest, chunk)), -1, dtype=torch.int32)
    order = torch.argsort(g_idx, stable=True)
    firsts = torch.cumsum(counts, 0) - counts
    within = torch.arange(len(g_idx)) - firsts[g_idx[order]]
    table[g_idx[order], within] = order.to(torch.int32)
    return table.reshape(-1), chunk


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def unpacked(codes: Tensor, chunk: int) -> Tensor:
    """uint8 [n, slots / 2] -> uint8 [n, slots], 0..15."""
    bytes_ = codes.reshape(len(codes), -1, chunk // 2)
    return torch.cat([bytes_ & 15, bytes_ >> 4], dim=2).reshape(len(codes), -1)


def _pack(codes: Tensor, chunk: int) -> Tensor:
    """uint8 [out, slots], 0..15 -> uint8 [out, slots / 2]."""
    halves = codes.reshape(len(codes), -1, 2, chunk // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(codes), -1).contiguous()
