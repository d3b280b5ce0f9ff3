"""The eight 4-bit codes of each word of a register become eight numbers of a table of sixteen."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import look_up
from labkit.quantize.lanes import splat

_STEP = tuple(np.int32(4 * k) for k in range(8))


@inlined
def eight(table, word):
    """What the codes of a word stand for, from its lowest bits on: eight registers."""
    return (
        look_up(table, word),
        look_up(table, word >> splat(_STEP[1])),
        look_up(table, word >> splat(_STEP[2])),
        look_up(table, word >> splat(_STEP[3])),
        look_up(table, word >> splat(_STEP[4])),
        look_up(table, word >> splat(_STEP[5])),
        look_up(table, word >> splat(_STEP[6])),
        look_up(table, word >> splat(_STEP[7])),
    )
