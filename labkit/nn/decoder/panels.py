"""A weight as panels of sixteen rows, so that a vector register holds the same place of sixteen.

A GGUF row is a run of blocks, and a block a few runs of bytes: scales, codes. In a panel the
sixteen rows lie side by side, unit by unit: a unit is a scale (2 bytes) or four bytes of codes.

    row 0   d0 c00 c01 c02 c03        panel   d0 d1 … d15   c00 c10 … c15,0   c01 c11 … c15,1   …
    row 1   d1 c10 c11 c12 c13
    …

One load then takes four codes of each of sixteen rows, its product with the same four numbers of x
is sixteen sums, and no sum over lanes is ever needed. No byte is added and none is lost. llama.cpp
repacks in the same way, eight rows at a time (ggml-cpu/repack.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from labkit.core.errors import SchemeError, ShapeError
from labkit.quantize import gguf
from labkit.quantize.gguf_types import block_type
from labkit.quantize.lanes import LANES

_AT_A_TIME = 64  # panels that are rearranged at a time
_UNIT = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_FLIP = np.uint8(0x80)


@dataclass(frozen=True)
class Layout:
    """How a type's blocks go into panels.

    Attributes:
        number: by which compiled code knows the type.
        parts: (bytes, unit) of each run of a block.
        signed: the part of int8 codes; they are stored plus 128, because the processor multiplies
            unsigned bytes by signed ones.
    """

    number: int
    parts: tuple[tuple[int, int], ...]
    signed: int | None = None


LAYOUTS = {
    "F32": Layout(0, ((4, 4),)),
    "F16": Layout(1, ((2, 2),)),
    "BF16": Layout(2, ((2, 2),)),
    "Q4_0": Layout(3, ((2, 2), (16, 4))),
    "Q8_0": Layout(4, ((2, 2), (32, 4)), signed=1),
    "Q4_K": Layout(5, ((4, 2), (12, 4), (128, 4))),
    "Q5_K": Layout(6, ((4, 2), (12, 4), (32, 4), (128, 4))),
    "Q6_K": Layout(7, ((128, 4), (64, 4), (16, 1), (2, 2))),
}


@dataclass(frozen=True, eq=False)
class PanelWeight:
    """A matrix [rows, columns] in panels.

    Args:
        data: uint8 [panels, bytes of a panel]; the last panel is filled up with zero bytes.
        type_name: a key of LAYOUTS.
        shape: (rows, columns).
    """

    data: np.ndarray
    type_name: str
    shape: tuple[int, int]

    @classmethod
    def from_blocks(
        cls, blocks: np.ndarray, type_name: str, order: np.ndarray | None = None
    ) -> PanelWeight:
        """Rearrange a GGUF tensor's blocks, uint8 [rows, bytes of a row].

        Args:
            order: int64 [rows]: row j of the result is row ``order[j]``; None keeps them.

        Raises:
            SchemeError: a type that has no layout here, or blocks that are not uint8.
            ShapeError: rows that end within a block.
        """
        layout, kind = layout_of(type_name), block_type(type_name)
        if blocks.dtype != np.uint8 or blocks.ndim != 2:
            raise SchemeError(f"blocks of {blocks.dtype}, {blocks.ndim} axes", type_name)
        rows, width = blocks.shape
        if width == 0 or width % kind.nbytes:
            raise ShapeError(f"rows of {width} bytes", type_name, f"Blocks have {kind.nbytes}.")
        panels = -(-rows // LANES)
        data = np.empty((panels, LANES * width), np.uint8)
        step = _AT_A_TIME * LANES
        for first in range(0, rows, step):
            last = min(first + step, rows)
            part = blocks[first:last] if order is None else blocks[order[first:last]]
            if len(part) % LANES:
                part = np.pad(part, ((0, -len(part) % LANES), (0, 0)))
            _interleave(part.reshape(-1, LANES, width // kind.nbytes, kind.nbytes), layout,
                        data[first // LANES : -(-last // LANES)])  # fmt: skip
        return cls(data, type_name, (rows, width // kind.nbytes * kind.weights))

    @classmethod
    def from_floats(cls, weight: np.ndarray, order: np.ndarray | None = None) -> PanelWeight:
        """A float32 [rows, columns] weight, kept as it is."""
        rows = np.ascontiguousarray(weight, np.float32)
        return cls.from_blocks(rows.view(np.uint8), "F32", order)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.data.nbytes

    def row(self, index: int) -> np.ndarray:
        """One row decoded, float32 [columns]."""
        layout, kind = LAYOUTS[self.type_name], block_type(self.type_name)
        panel, lane = divmod(index, LANES)
        inside = self.data[panel].reshape(-1, LANES * kind.nbytes)
        pieces, start = [], 0
        for place, (nbytes, unit) in enumerate(layout.parts):
            run = inside[:, start : start + LANES * nbytes]
            piece = run.reshape(len(inside), nbytes // unit, LANES, unit)[:, :, lane]
            piece = piece.reshape(len(inside), nbytes)
            pieces.append(piece ^ _FLIP if place == layout.signed else piece)
            start += LANES * nbytes
        blocks = np.concatenate(pieces, axis=1).reshape(1, -1)
        return gguf.dequantize(blocks, self.type_name, threads=1)[0]

    def dequantize(self) -> np.ndarray:
        """float32 [rows, columns]."""
        return np.stack([self.row(index) for index in range(self.shape[0])])


def layout_of(type_name: str) -> Layout:
    """The layout of a type. Raises SchemeError where there is none."""
    if type_name not in LAYOUTS:
        raise SchemeError(
            f"no panels for {type_name}",
            "decoder",
            f"It runs {', '.join(LAYOUTS)}; labkit.models.load reads the other types.",
        )
    return LAYOUTS[type_name]


def _interleave(blocks: np.ndarray, layout: Layout, out: np.ndarray) -> None:
    """blocks [panels, 16, blocks of a row, bytes] -> out [panels, bytes of a panel]."""
    panels, _, count, size = blocks.shape
    target = out.reshape(panels, count, LANES * size)
    source_start = start = 0
    for place, (nbytes, unit) in enumerate(layout.parts):
        run = np.ascontiguousarray(blocks[..., source_start : source_start + nbytes])
        if place == layout.signed:
            run ^= _FLIP
        units = run.view(_UNIT[unit]).transpose(0, 2, 3, 1)
        moved = np.ascontiguousarray(units).view(np.uint8).reshape(panels, count, LANES * nbytes)
        target[:, :, start : start + LANES * nbytes] = moved
        source_start += nbytes
        start += LANES * nbytes
