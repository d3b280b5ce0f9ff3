"""The eight 4-bit codes of each word of a register become eight numbers of a table of sixteen."""

from __future__ import annotations

import numpy as np

from labkit.kernels.cpu.addresses import number_at
from labkit.kernels.cpu.parallel import inlined
from labkit.kernels.cpu.vectors import look_up, multiply_add
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


@inlined
def add_eight(table, word, near, far, found):
    """The products of a word's codes with x, in four sums that need not wait for each other.

    Low bits of bytes meet x from the address ``near`` on (sums a, b), high ones that from ``far``
    on (c, d).
    """
    w, (a, b, c, d) = eight(table, word), found
    a = multiply_add(w[0], number_at(near), a)
    c = multiply_add(w[1], number_at(far), c)
    b = multiply_add(w[2], number_at(near + 4), b)
    d = multiply_add(w[3], number_at(far + 4), d)
    a = multiply_add(w[4], number_at(near + 8), a)
    c = multiply_add(w[5], number_at(far + 8), c)
    b = multiply_add(w[6], number_at(near + 12), b)
    return a, b, c, multiply_add(w[7], number_at(far + 12), d)
