"""CodebookPanels: NF4 and FP4 with sixteen rows side by side, each lane of a register a row.

    x̂[row, column] = levels[code] * absmax[row, column // block_size]

As in a `CodebookTensor`, but a block must not reach from one row into the next. The codes lie as
`labkit.kernels.nibble_panels` says; so do the magnitudes of a block, unless they are codes
themselves (double quantization): those stay in the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from labkit.core.codebook import BOOKS, CodebookTensor, NestedAbsmax, require_known
from labkit.core.errors import GroupSizeError, ShapeError
from labkit.kernels import checks
from labkit.kernels.nibble_panels import (
    CHUNK,
    NATURAL,
    ROWS,
    bfloat16_levels,
    chunks_of,
    pack,
    side_by_side,
)

_WHERE = "CodebookPanels"


@dataclass(frozen=True, eq=False)
class CodebookPanels:
    """A matrix [out, in] of indices into sixteen numbers, on a CPU.

    Args:
        codes: uint8 [panels, in / 32, 4, 16, 4]: chunk, word, row, byte.
        absmax: float32 [panels, in / block_size, 16], or a NestedAbsmax of [out * in / block_size].
        shape: [out, in]; rows that fill up the last panel have code 0 and magnitude 0.
        quant_type, block_size, dtype: as in `CodebookTensor`.

    Raises:
        SchemeError: dtypes, devices, a block size or a codebook other than these.
        ShapeError: parts that do not fit the shape.
        GroupSizeError: rows that are no whole number of blocks.
    """

    codes: Tensor
    absmax: Tensor | NestedAbsmax
    shape: torch.Size
    quant_type: str = "nf4"
    block_size: int = 64
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        require_known(self.quant_type, self.block_size, self.dtype)
        if len(self.shape) != 2 or self.shape[1] == 0 or self.shape[1] % self.block_size:
            raise GroupSizeError(
                f"shape {tuple(self.shape)} in blocks of {self.block_size}",
                _WHERE,
                "Expected rows of whole blocks; a CodebookTensor may have others.",
            )
        panels, blocks = -(-self.shape[0] // ROWS), self.shape[1] // self.block_size
        self._require("codes", self.codes, torch.uint8, (panels, self.shape[1] // CHUNK, 4, 16, 4))
        if isinstance(self.absmax, NestedAbsmax):
            # Its other parts fit these codes, or there were no NestedAbsmax.
            count = (self.shape[0] * blocks,)
            self._require("absmax.codes", self.absmax.codes, torch.uint8, count)
        else:
            self._require("absmax", self.absmax, torch.float32, (panels, blocks, ROWS))

    @staticmethod
    def _require(name: str, part: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        checks.require_dtype(name, part, (dtype,), _WHERE)
        checks.require_device(name, part, torch.device("cpu"), _WHERE)
        checks.require_shape(name, part, shape, _WHERE)
        checks.require_contiguous(name, part, _WHERE)

    @staticmethod
    def fits(weight: CodebookTensor) -> bool:
        """Whether `from_rows` takes it: a matrix on a CPU whose rows are whole blocks."""
        shape = weight.shape
        on_cpu = weight.packed.device.type == "cpu"
        return on_cpu and len(shape) == 2 and shape[1] % weight.block_size == 0

    @classmethod
    def from_rows(cls, weight: CodebookTensor) -> CodebookPanels:
        """Put the rows of a weight on a CPU side by side; nothing is rounded.

        Raises:
            ShapeError: no matrix.
            GroupSizeError: rows that are no whole number of blocks.
        """
        if len(weight.shape) != 2:
            raise ShapeError(
                f"weight has shape {tuple(weight.shape)}", _WHERE, "Expected [out, in]."
            )
        rows, columns = weight.shape
        if columns % weight.block_size:
            raise GroupSizeError(f"{columns} columns in blocks of {weight.block_size}", _WHERE)
        packed, absmax = weight.packed.reshape(rows, -1), weight.absmax

        def codes(first: int, last: int) -> Tensor:
            some = packed[first:last]
            return torch.stack([some >> 4, some & 15], dim=-1).reshape(last - first, columns)

        if not isinstance(absmax, NestedAbsmax):
            absmax = side_by_side(absmax.reshape(rows, -1))
        kinds = (weight.quant_type, weight.block_size, weight.dtype)
        return cls(pack(rows, columns, codes), absmax, weight.shape, *kinds)

    def rows(self, index: slice | Tensor | None = None) -> CodebookTensor:
        """The weight, rows one after another; or some: a slice, or int64 [n] row numbers.

        Of some rows the magnitudes are float32, of all they are what they were.
        """
        every = torch.arange(self.shape[0])
        wanted = every if index is None else every[index]
        chunks = chunks_of(self.codes, wanted)
        codes = torch.cat([chunks & 15, chunks >> 4], dim=-1).reshape(-1, 2)
        absmax = self.absmax
        if index is not None or not isinstance(absmax, NestedAbsmax):
            absmax = self._magnitudes(wanted)
        shape = torch.Size((len(wanted), self.shape[1]))
        kinds = (self.quant_type, self.block_size, self.dtype)
        return CodebookTensor((codes[:, 0] << 4) | codes[:, 1], absmax, shape, *kinds)

    def _magnitudes(self, rows: Tensor) -> Tensor:
        """Those of some rows, one after another."""
        if isinstance(self.absmax, NestedAbsmax):
            return self.absmax.dequantize().reshape(self.shape[0], -1)[rows].reshape(-1)
        return self.absmax[rows // ROWS, :, rows % ROWS].reshape(-1)

    @property
    def in_features(self) -> int:
        """Columns of the matrix."""
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.codes.nbytes + self.absmax.nbytes

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in], every value rounded to ``dtype``."""
        return self.rows().dequantize()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes and magnitudes as compiled code takes them: bytes, a row for each panel.

        None for magnitudes that are codes.
        """
        count, absmax = len(self.codes), self.absmax
        codes = self.codes.reshape(count, -1).numpy()
        if isinstance(absmax, NestedAbsmax):
            return codes, None
        return codes, absmax.reshape(count, -1).view(torch.uint8).numpy()

    @cached_property
    def levels(self) -> np.ndarray:
        """The sixteen numbers, float32."""
        return np.array(BOOKS[self.quant_type].values, np.float32)

    @cached_property
    def pair_levels(self) -> np.ndarray:
        """The same as `nibble_panels.bfloat16_levels`."""
        return bfloat16_levels(self.levels)

    @property
    def order(self) -> np.ndarray:
        """int32 [0]: slot s has column s (`nibble_panels.NATURAL`)."""
        return NATURAL

    pair_order = order
