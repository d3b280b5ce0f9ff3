"""The magnitudes of blocks of NF4 and FP4: row by row, then lane by lane.

Rows and magnitudes are passed on as addresses, as in `labkit.kernels.cpu.addresses`.
"""

from __future__ import annotations

import numpy as np

from labkit.core.codebook import CodebookTensor, NestedAbsmax
from labkit.kernels.cpu.addresses import address_of, number_at
from labkit.kernels.cpu.parallel import compiled, inlined
from labkit.kernels.cpu.vectors import halves, in_fours

CHUNK = 128  # weights in 64 bytes
_ZERO = np.float32(0)


def magnitudes(weight: CodebookTensor, parts: int) -> tuple:
    """(absmax, codes, levels, offset, run, room): plain magnitudes, or what nested ones are.

    ``room`` float32 [parts, blocks of a row] takes those of a row; without codes it is not used.
    """
    scales = weight.absmax
    if isinstance(scales, NestedAbsmax):
        parts_of = (scales.absmax, scales.codes, scales.levels)
        arrays = tuple(part.contiguous().numpy() for part in parts_of)
        room = np.empty((parts, weight.shape[1] // weight.block_size), np.float32)
        return (*arrays, np.float32(scales.offset), scales.block_size, room)
    nothing = np.empty(0, np.uint8), np.empty(0, np.float32)
    return (scales.contiguous().numpy(), *nothing, _ZERO, 1, np.empty((parts, 0), np.float32))


@compiled
def row_scales(absmax, codes, levels, offset, run, first, blocks, room):
    """The address of the magnitudes of the ``blocks`` from ``first`` on; ``room`` for nested ones.

    The caller keeps ``absmax`` and ``room`` alive.
    """
    if codes.shape[0] == 0:
        return address_of(absmax) + 4 * first
    block = 0
    while block < blocks:  # to the end of a run of blocks, which share a magnitude
        which = (first + block) // run
        end, times = min(blocks, (which + 1) * run - first), absmax[which]
        while block < end:
            room[block] = levels[codes[first + block]] * times + offset
            block += 1
    return address_of(room)


@inlined
def lane_scales(scales, slot, size):
    """The magnitude of each lane's eight weights, of the 128 from ``slot`` on."""
    place = scales + 4 * (slot // size)
    if size >= CHUNK:
        return number_at(place)
    if size == 64:
        return halves(number_at(place), number_at(place + 4))
    below = in_fours(number_at(place), number_at(place + 4))
    return halves(below, in_fours(number_at(place + 8), number_at(place + 12)))
