"""How fast memory can be read: the pace that a kernel which waits for its weights can reach."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from labkit.kernels.cpu.loads import load_words
from labkit.kernels.cpu.parallel import compiled, part_count, run, shared
from labkit.kernels.cpu.vectors import total_ints
from labkit.quantize.lanes import splat

STEP = 512  # bytes: eight registers
_NONE = np.int32(0)


def read(table: np.ndarray) -> Tensor:
    """Read a uint8 array, a multiple of 512 bytes; int64 [1], the sum of its int32 words.

    Each part sums modulo 2^32: all bytes have to be read for it, which is what counts.
    """
    count = part_count(table.nbytes, len(table) // STEP)
    found = np.zeros(count, np.int64)
    run(_read, count, table, found)
    return torch.tensor([int(found.sum())])


@compiled
def _sum(table, first, last):
    """In the order of the bytes: any other costs up to a sixth."""
    a = b = c = d = splat(_NONE)
    for place in range(first, last, STEP):
        a = a + load_words(table, place) + load_words(table, place + 64)
        b = b + load_words(table, place + 128) + load_words(table, place + 192)
        c = c + load_words(table, place + 256) + load_words(table, place + 320)
        d = d + load_words(table, place + 384) + load_words(table, place + 448)
    return total_ints((a + b) + (c + d))


@shared
def _read(table, found, count):
    steps = table.shape[0] // STEP
    for part in numba.prange(count):
        first, last = part * steps // count, (part + 1) * steps // count
        found[part] = _sum(table, first * STEP, last * STEP)
