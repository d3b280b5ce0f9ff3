"""GgufPanels: GGUF blocks of sixteen rows side by side, so that each lane of a register is a row.

    file     row 0: block 0, block 1, …          row 1: block 0, block 1, …
    panel    block 0: word 0 of rows 0 … 15, word 1 of rows 0 … 15, …          block 1: …

A word is four bytes. What remains of a block that is no multiple of four (its float16 scale) is
two bytes of each row, and stands before the words, or behind them, as in the file. No byte changes,
they only move: `blocks()` gives the file's bytes back.

With a row in each lane, the four bytes of x that a word meets are the same for all lanes; a sum
over columns stays in its lane until the row is done, and sixteen scales are applied at once.
llama.cpp repacks weights for its processor at load time for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.kernels import checks
from labkit.quantize import gguf
from labkit.quantize.gguf_types import block_type

ROWS = 16
# Where the two bytes stand that are left over when a block is cut into words; None: none are.
HALF_FIRST = {"Q4_0": True, "Q8_0": True, "Q4_K": None, "Q6_K": False}
_WHERE = "GgufPanels"


@dataclass(frozen=True, eq=False)
class GgufPanels:
    """A matrix [out, in] in blocks of a GGUF type that has a kernel for panels.

    Args:
        data: uint8 [panels, blocks of a row, 16 * bytes of a block], on a CPU.
        type_name: "Q4_0", "Q8_0", "Q4_K" or "Q6_K".
        shape: [out, in]; rows that fill up the last panel are zeros.

    Raises:
        SchemeError: another type, dtype or device, or data that are not contiguous.
        ShapeError: data that do not fit type and shape.
    """

    data: Tensor
    type_name: str
    shape: torch.Size

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        _require_type(self.type_name)
        kind, (rows, columns) = block_type(self.type_name), self.shape
        checks.require_dtype("data", self.data, (torch.uint8,), _WHERE)
        checks.require_device("data", self.data, torch.device("cpu"), _WHERE)
        if columns == 0 or columns % kind.weights:
            raise ShapeError(f"{columns} columns", _WHERE, f"A multiple of {kind.weights} fits.")
        expected = (-(-rows // ROWS), columns // kind.weights, ROWS * kind.nbytes)
        checks.require_shape("data", self.data, expected, _WHERE)
        if not self.data.is_contiguous():
            raise SchemeError("data is not contiguous", _WHERE, "Call .contiguous().")

    @classmethod
    def from_blocks(cls, blocks: Tensor, type_name: str) -> GgufPanels:
        """Interleave blocks uint8 [out, bytes of a row] as a GGUF file holds them.

        Raises:
            SchemeError: a type that has no kernel for panels, or another dtype.
            ShapeError: bytes that are no whole number of blocks.
        """
        _require_type(type_name)
        kind = block_type(type_name)
        checks.require_dtype("blocks", blocks, (torch.uint8,), _WHERE)
        if blocks.ndim != 2 or blocks.shape[1] == 0 or blocks.shape[1] % kind.nbytes:
            raise ShapeError(
                f"blocks have shape {tuple(blocks.shape)}",
                _WHERE,
                f"Expected [out, bytes], a multiple of {kind.nbytes} bytes.",
            )
        rows, count = len(blocks), blocks.shape[1] // kind.nbytes
        data = torch.empty(-(-rows // ROWS), count, ROWS * kind.nbytes, dtype=torch.uint8)
        for panel, out in enumerate(data):  # one at a time: no second copy of the weight
            part = blocks[panel * ROWS : (panel + 1) * ROWS].reshape(-1, count, kind.nbytes)
            part = torch.nn.functional.pad(part, (0, 0, 0, 0, 0, ROWS - len(part)))
            place = 0
            for first, last, unit in _cuts(type_name):
                units = part[:, :, first:last].reshape(ROWS, count, -1, unit)
                end = place + ROWS * (last - first)
                out[:, place:end] = units.permute(1, 2, 0, 3).reshape(count, -1)
                place = end
        return cls(data, type_name, torch.Size((rows, count * kind.weights)))

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.data.nbytes

    def blocks(self) -> Tensor:
        """The bytes of the file, uint8 [out, bytes of a row]."""
        panels, count, _ = self.data.shape
        parts, place = [], 0
        for first, last, unit in _cuts(self.type_name):
            end = place + ROWS * (last - first)
            units = self.data[:, :, place:end].reshape(panels, count, -1, ROWS, unit)
            parts.append(units.permute(0, 3, 1, 2, 4).reshape(panels * ROWS, count, last - first))
            place = end
        return torch.cat(parts, dim=2).reshape(panels * ROWS, -1)[: self.shape[0]].contiguous()

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return torch.from_numpy(gguf.dequantize(self.blocks().numpy(), self.type_name))


def _cuts(type_name: str) -> list[tuple[int, int, int]]:
    """(first, last, unit): runs of a block's bytes, and how many of them stay together."""
    nbytes, half_first = block_type(type_name).nbytes, HALF_FIRST[type_name]
    if half_first is None:
        return [(0, nbytes, 4)]
    if half_first:
        return [(0, 2, 2), (2, nbytes, 4)]
    return [(0, nbytes - 2, 4), (nbytes - 2, nbytes, 2)]


def _require_type(type_name: str) -> None:
    if type_name not in HALF_FIRST:
        raise SchemeError(
            f"no panels for {type_name}", _WHERE, f"There are {', '.join(HALF_FIRST)}."
        )
