"""GgufPanels: GGUF blocks of sixteen rows side by side, so that each lane of a register is a row.

    file     row 0: block 0, block 1, …          row 1: block 0, block 1, …
    panel    block 0: word 0 of rows 0 … 15, word 1 of rows 0 … 15, …          block 1: …

A word is four bytes. What remains of a block that is no multiple of four (its float16 scale) is
two bytes of each row, and stands before the words, or behind them, as in the file. Q6_K's words are
put into the order in which they are used, so that memory is read from one end to the other, without
jumps inside of each block. No byte changes, they only move: `blocks()` gives the file's bytes back.

With a row in each lane, the four bytes of x that a word meets are the same for all lanes; a sum
over columns stays in its lane until the row is done, and sixteen scales are applied at once.
llama.cpp repacks weights for its processor at load time for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.huge_pages import empty_bytes
from labkit.kernels import checks
from labkit.quantize import gguf
from labkit.quantize.gguf_types import block_type

ROWS = 16
# Where the two bytes stand that are left over when a block is cut into words; None: none are.
HALF_FIRST = {"Q4_0": True, "Q8_0": True, "Q4_K": None, "Q5_K": None, "Q6_K": False}
# The same for floats, which have no codes and take part in float products alone.
FLOATS = {"F32": None, "F16": True, "BF16": True}
_CUT = HALF_FIRST | FLOATS


def _words_of_q6_k() -> np.ndarray:
    """Which word of the file stands at each place: scales, then codes of the same columns.

    In the file: 32 words of low bits, 16 of high ones, 4 of scales.
    """
    words = [48, 49, 50, 51]
    for half in range(2):
        for unit in range(8):
            words += [16 * half + unit, 16 * half + 8 + unit, 32 + 8 * half + unit]
    return np.array(words)


_ORDER = {"Q6_K": _words_of_q6_k()}
_AT_A_TIME = 64  # panels that are interleaved at a time
_UNIT = {2: np.uint16, 4: np.uint32}
_WHERE = "GgufPanels"


@dataclass(frozen=True, eq=False)
class GgufPanels:
    """A matrix [out, in] in blocks of a GGUF type that has a kernel for panels.

    Args:
        data: uint8 [panels, blocks of a row, 16 * bytes of a block], on a CPU.
        type_name: "Q4_0", "Q8_0", "Q4_K", "Q5_K" or "Q6_K"; or "F32", "F16" or "BF16".
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
        checks.require_contiguous("data", self.data, _WHERE)

    @classmethod
    def from_blocks(
        cls, blocks: Tensor | np.ndarray, type_name: str, order: np.ndarray | None = None
    ) -> GgufPanels:
        """Interleave blocks uint8 [out, bytes of a row] as a GGUF file holds them.

        Args:
            blocks: an array may be read-only, such as a file's memory map.
            order: int64 [out]: row j of the result is row ``order[j]``; None keeps them.

        Raises:
            SchemeError: a type that has no kernel for panels, or another dtype.
            ShapeError: bytes that are no whole number of blocks.
        """
        _require_type(type_name)
        kind = block_type(type_name)
        checks.require_blocks(blocks, kind.nbytes, _WHERE)
        rows, count = len(blocks), blocks.shape[1] // kind.nbytes
        data = empty_bytes(-(-rows // ROWS), count, ROWS * kind.nbytes)
        source = blocks.numpy() if isinstance(blocks, Tensor) else blocks
        step = _AT_A_TIME * ROWS  # no second copy of the weight
        for first in range(0, rows, step):
            last = min(first + step, rows)
            part = source[first:last] if order is None else source[order[first:last]]
            part = np.pad(part, ((0, -len(part) % ROWS), (0, 0)))
            out = data[first // ROWS : -(-last // ROWS)].numpy()
            _interleave(part.reshape(-1, ROWS, count, kind.nbytes), type_name, out)
        return cls(data, type_name, torch.Size((rows, count * kind.weights)))

    @cached_property
    def array(self) -> np.ndarray:
        """The data as compiled code takes them."""
        return self.data.numpy()

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
            if unit == 4 and self.type_name in _ORDER:
                units = units[:, :, np.argsort(_ORDER[self.type_name])]
            parts.append(units.permute(0, 3, 1, 2, 4).reshape(panels * ROWS, count, last - first))
            place = end
        return torch.cat(parts, dim=2).reshape(panels * ROWS, -1)[: self.shape[0]].contiguous()

    def row(self, index: int) -> np.ndarray:
        """One row decoded, float32 [in]."""
        panel, lane = divmod(index, ROWS)
        inside, parts, place = self.data.numpy()[panel], [], 0
        for first, last, unit in _cuts(self.type_name):
            end = place + ROWS * (last - first)
            units = inside[:, place:end].reshape(len(inside), -1, ROWS, unit)[:, :, lane]
            if unit == 4 and self.type_name in _ORDER:
                units = units[:, np.argsort(_ORDER[self.type_name])]
            parts.append(units.reshape(len(inside), last - first))
            place = end
        blocks = np.concatenate(parts, axis=1).reshape(1, -1)
        return gguf.dequantize(blocks, self.type_name, threads=1)[0]

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out, in]."""
        return torch.from_numpy(gguf.dequantize(self.blocks().numpy(), self.type_name))


def _cuts(type_name: str) -> list[tuple[int, int, int]]:
    """(first, last, unit): runs of a block's bytes, and how many of them stay together."""
    nbytes, half_first = block_type(type_name).nbytes, _CUT[type_name]
    if half_first is None:
        return [(0, nbytes, 4)]
    if nbytes == 2:
        return [(0, 2, 2)]
    if half_first:
        return [(0, 2, 2), (2, nbytes, 4)]
    return [(0, nbytes - 2, 4), (nbytes - 2, nbytes, 2)]


def _interleave(blocks: np.ndarray, type_name: str, out: np.ndarray) -> None:
    """blocks [panels, 16, blocks of a row, bytes] -> out [panels, blocks of a row, 16 * bytes]."""
    panels, _, count, _ = blocks.shape
    place = 0
    for first, last, unit in _cuts(type_name):
        units = np.ascontiguousarray(blocks[..., first:last]).view(_UNIT[unit])
        if unit == 4 and type_name in _ORDER:
            units = units[..., _ORDER[type_name]]
        moved = np.ascontiguousarray(units.transpose(0, 2, 3, 1)).view(np.uint8)
        end = place + ROWS * (last - first)
        out[:, :, place:end] = moved.reshape(panels, count, end - place)
        place = end


def _require_type(type_name: str) -> None:
    if type_name not in _CUT:
        raise SchemeError(f"no panels for {type_name}", _WHERE, f"There are {', '.join(_CUT)}.")
