"""Many tokens with a weight that must be decoded first: a run of rows at a time, then torch.

Decoding costs the same whatever the number of tokens, so with enough of them it does not matter,
and nothing beats the library at multiplying floats.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_TILE = 2**20  # weights that are decoded at a time: 4 MB of float32
FEW = 16  # from so many tokens on it pays


def linear(x: Tensor, rows: int, decode: Callable[[int, int], Tensor]) -> Tensor:
    """x float32 [tokens, in] @ weight.T, [tokens, rows]; decode(first, last) -> float32 rows."""
    out = torch.empty(len(x), rows)
    step = rows_of_a_tile(x.shape[1])
    for first in range(0, rows, step):
        last = min(first + step, rows)
        torch.mm(x, decode(first, last).T, out=out[:, first:last])
    return out


def rows_of_a_tile(columns: int) -> int:
    """How many rows are decoded at a time."""
    return max(16, _TILE // columns)
