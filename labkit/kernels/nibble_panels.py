"""4-bit codes of sixteen rows side by side, so that each lane of a register is a row.

    rows     row 0: slots 0, 1, 2, …             row 1: slots 0, 1, 2, …
    panels   slots 0-31 of rows 0 … 15           slots 32-63 of rows 0 … 15           …

The 32 slots of a row are 16 bytes, four words (low bits: slots 0-15, high bits: slots 16-31); the
panel holds word 0 of its sixteen rows, then word 1, 2, 3: four registers. Rows that fill up the
last panel are zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from labkit.core.huge_pages import empty_bytes

ROWS, CHUNK = 16, 32
NATURAL = np.empty(0, np.int32)  # an order for which no table is needed: slot s has column s
_AT_A_TIME = 16  # panels that are put together at a time: no second copy of the weight


def pack(rows: int, slots: int, codes: Callable[[int, int], Tensor]) -> Tensor:
    """Codes in panels, uint8 [panels, slots / 32, 4, 16, 4]: chunk, word, row, byte.

    Args:
        slots: codes of a row, a multiple of 32.
        codes: called with (first, last), gives those rows, uint8 [last - first, slots], 0..15.
    """
    packed = empty_bytes(-(-rows // ROWS), slots // CHUNK, 4, ROWS, 4)
    step = _AT_A_TIME * ROWS
    for first in range(0, rows, step):
        some = _filled(codes(first, min(first + step, rows)))
        # [panel, row, chunk, half, word, byte]
        some = some.reshape(-1, ROWS, slots // CHUNK, 2, 4, 4)
        bytes_ = some[:, :, :, 0] | (some[:, :, :, 1] << 4)
        packed[first // ROWS :][: len(some)] = bytes_.permute(0, 2, 3, 1, 4)
    return packed


def chunks_of(packed: Tensor, rows: Tensor) -> Tensor:
    """The bytes of some rows, uint8 [n, slots / 32, 16]; ``rows`` are int64 [n]."""
    return packed[rows // ROWS, :, :, rows % ROWS].flatten(2)


def side_by_side(values: Tensor) -> Tensor:
    """What each row has of each group, [out, groups], as [panels, groups, 16]."""
    return _filled(values).reshape(-1, ROWS, values.shape[1]).transpose(1, 2).contiguous()


def pair_order(columns: Tensor) -> Tensor:
    """int32 [slots]: the columns in pairs, as the shifts of a word find its codes.

    Word w of a row's 32 slots has eight codes, from the lowest bits on those of slots 4 w,
    4 w + 16, 4 w + 1, 4 w + 17, …; shifted by 0, 4, 8, 12 bits its halves begin with slots
    (0, 2), (16, 18), (1, 3) and (17, 19) from 4 w on.

    Args:
        columns: int32 [slots], the column of each slot.
    """
    # [chunk, high, word, two, odd] -> [chunk, word, odd, high, two]
    slots = columns.reshape(-1, 2, 4, 2, 2)
    return slots.permute(0, 2, 4, 1, 3).reshape(-1).contiguous()


PAIR_ORDER = pair_order(torch.arange(CHUNK)).numpy()  # of a chunk whose slot s has column s


def bfloat16_levels(levels: np.ndarray) -> np.ndarray:
    """The bits of sixteen numbers, rounded to bfloat16, twice: int16 [32].

    A look-up of two codes at once reads five bits of each (`labkit.kernels.cpu.pairs`).
    """
    return torch.from_numpy(levels).to(torch.bfloat16).repeat(2).view(torch.int16).numpy()


def _filled(rows: Tensor) -> Tensor:
    """``rows`` and as many zeros as make whole panels."""
    return torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % ROWS))
