"""Random inputs for exercises: shapes and weight matrices that give wrong answers away.

Square matrices hide a swapped axis from a shape test, so the values must show it: every row and
every column of `weight` has a magnitude of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def shapes(
    rng: np.random.Generator, count: int, largest: int = 12, multiple_of: int = 1
) -> Iterator[tuple[int, int]]:
    """`count` pairs (rows, columns), at least one of them square and one that is not.

    Columns are multiples of `multiple_of`.
    """
    for index in range(count):
        columns = multiple_of * int(rng.integers(1, max(2, largest // multiple_of + 1)))
        rows = columns if index % 3 == 0 else columns + int(rng.integers(1, 4))
        yield rows, columns


def weight(rng: np.random.Generator, rows: int, columns: int) -> torch.Tensor:
    """A float32 matrix [rows, columns] whose rows and columns all differ in magnitude."""
    row_scale = rng.permutation(np.linspace(0.5, 2.0, rows))[:, None]
    column_scale = rng.permutation(np.linspace(0.5, 2.0, columns))[None, :]
    values = rng.standard_normal((rows, columns)) * row_scale * column_scale
    return torch.from_numpy(values.astype(np.float32))


def vector(rng: np.random.Generator, length: int, skew: float = 0.0) -> torch.Tensor:
    """A float32 vector; a positive `skew` shifts it so that both ends differ in magnitude."""
    values = rng.standard_normal(length) * rng.uniform(0.1, 5.0) + skew
    return torch.from_numpy(values.astype(np.float32))
