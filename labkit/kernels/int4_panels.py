"""Int4Panels: 4-bit integers with sixteen rows side by side (`labkit.kernels.nibble_panels`).

With a row in each lane of a register the x that a word meets is the same for all lanes, a sum stays
in its lane until the row is done, and one multiplication applies sixteen scales: nothing is folded.
Scales and zero-points of a group stand side by side alike. The slots are those of `Int4Weight`,
where act-order is taken care of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from labkit.kernels import checks
from labkit.kernels.int4_parts import Int4Parts
from labkit.kernels.int4_weight import SYMMETRIC_ZERO, Int4Weight, unpacked
from labkit.kernels.nibble_panels import (
    CHUNK,
    NATURAL,
    ROWS,
    bfloat16_levels,
    chunks_of,
    pack,
    pair_order,
    side_by_side,
)

_LEVELS = np.arange(16, dtype=np.float32) - SYMMETRIC_ZERO
_PAIR_LEVELS = bfloat16_levels(_LEVELS)
_WHERE = "Int4Panels"


@dataclass(frozen=True, eq=False)
class Int4Panels(Int4Parts):
    """A matrix [out, in] of 4-bit integers with a scale for each group of a row, on a CPU.

    Args:
        codes: uint8 [panels, slots / 32, 4, 16, 4]: chunk, word, row, byte.
        scale: float16 or float32 [panels, groups, 16].
        zero_point: uint8 [panels, groups, 16], 0..15; None: 8 everywhere.
        columns: int32 [slots], the column of each slot; -1 where a group was filled up.
        shape: [out, in]; rows that fill up the last panel have scale 0.

    Raises:
        SchemeError: dtypes or devices other than these, or parts that are not contiguous.
        ShapeError: parts that do not fit each other.
        GroupSizeError: groups that are no whole number of chunks.
    """

    shape: torch.Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        axes = ("panels", "groups", "16")
        self.require_fitting(torch.device("cpu"), axes, CHUNK, self.in_features)
        panels, chunks = -(-self.shape[0] // ROWS), len(self.columns) // CHUNK
        checks.require_shape("codes", self.codes, (panels, chunks, 4, ROWS, 4), _WHERE)
        checks.require_shape("scale", self.scale, (panels, self.groups, ROWS), _WHERE)
        self.require_contiguous()

    @classmethod
    def from_rows(cls, weight: Int4Weight) -> Int4Panels:
        """Put the rows of a weight side by side; nothing is rounded.

        Raises SchemeError for a weight that is not on a CPU.
        """
        rows, zero = weight.shape[0], weight.zero_point

        def codes(first: int, last: int) -> Tensor:
            return unpacked(weight.codes[first:last], weight.chunk)

        return cls(
            pack(rows, len(weight.columns), codes),
            side_by_side(weight.scale),
            None if zero is None else side_by_side(zero),
            weight.columns,
            torch.Size((rows, weight.in_features)),
        )

    def rows(self, index: slice | Tensor = slice(None)) -> Int4Weight:
        """Some rows as an Int4Weight: a slice, or int64 [n] row numbers."""
        wanted = torch.arange(self.shape[0])[index]
        panel, lane = wanted // ROWS, wanted % ROWS
        zero = self.zero_point
        return Int4Weight(
            chunks_of(self.codes, wanted).flatten(1),
            self.scale[panel, :, lane].contiguous(),
            None if zero is None else zero[panel, :, lane].contiguous(),
            self.columns,
            CHUNK,
            self.shape[1],
        )

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return self.shape[1]

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return self.rows().dequantize()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray, int]:
        """Codes, scales, whether these are float16, zero-points, and slots of a group.

        As compiled code takes them: bytes, a row for each panel; no row where all zeros are 8.
        """
        count, none = len(self.codes), torch.empty(0, 0, dtype=torch.uint8)
        zeros = none if self.zero_point is None else self.zero_point.reshape(count, -1)
        codes, scale = self.codes.reshape(count, -1), self.scale.reshape(count, -1)
        half = scale.dtype == torch.float16
        scales = scale.view(torch.uint8)
        return codes.numpy(), scales.numpy(), half, zeros.numpy(), self.group_slots

    @cached_property
    def order(self) -> np.ndarray:
        """int32 [slots]: `columns`; `nibble_panels.NATURAL` where slot s has column s."""
        columns = self.columns.numpy()
        natural = len(columns) == self.shape[1] and (columns == np.arange(len(columns))).all()
        return NATURAL if natural else columns

    @cached_property
    def pair_order(self) -> np.ndarray:
        """int32 [slots]: the columns in pairs (`nibble_panels.pair_order`); or NATURAL."""
        return NATURAL if self.order is NATURAL else pair_order(self.columns).numpy()

    @property
    def levels(self) -> np.ndarray:
        """What the sixteen codes stand for, float32: code - 8."""
        return _LEVELS

    @property
    def pair_levels(self) -> np.ndarray:
        """The same as `nibble_panels.bfloat16_levels`."""
        return _PAIR_LEVELS
