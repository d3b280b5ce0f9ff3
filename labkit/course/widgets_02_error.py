"""The two errors of a range: what rounding costs inside the grid, what clipping costs outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from labkit.core.affine import choose_qparams, fake_quantize, integer_range


@dataclass(frozen=True)
class Grid:
    """The real numbers that the codes qmin .. qmax stand for."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def values(self) -> list[float]:
        """One real number a code, in order."""
        return [(code - self.zero_point) * self.scale for code in self.codes]

    @property
    def codes(self) -> range:
        """All codes."""
        return range(self.qmin, self.qmax + 1)


@dataclass(frozen=True)
class ErrorSplit:
    """Mean squared error over all values, in two parts that add up to `total`.

    A value counts as clipped if the code nearest to it would lie beyond qmin or qmax.
    """

    grid: Grid
    rounding: float
    clipping: float

    @property
    def total(self) -> float:
        """The mean squared error."""
        return self.rounding + self.clipping


def grid_of(lo: float, hi: float, bits: int, symmetric: bool) -> Grid:
    """The grid that covers [lo, hi], widened to contain 0."""
    scale, zero_point = choose_qparams(lo, hi, bits, symmetric)
    return Grid(float(scale), int(zero_point), *integer_range(bits, symmetric))


def split_error(
    values: torch.Tensor, lo: float, hi: float, bits: int, symmetric: bool
) -> ErrorSplit:
    """Quantize `values` (any shape) over [lo, hi], and take the two errors apart."""
    grid = grid_of(lo, hi, bits, symmetric)
    steps = torch.round(values / grid.scale) + grid.zero_point
    clipped = (steps < grid.qmin) | (steps > grid.qmax)
    x_hat = fake_quantize(values, grid.scale, grid.zero_point, grid.qmin, grid.qmax)
    squared = (values - x_hat).double().square()
    rounding = float((squared * ~clipped).sum()) / values.numel()
    clipping = float((squared * clipped).sum()) / values.numel()
    return ErrorSplit(grid, rounding, clipping)


def clip_curve(
    values: torch.Tensor, ratios: Sequence[float], bits: int, symmetric: bool
) -> list[ErrorSplit]:
    """The split for each ratio: the range is that share of the least and the greatest value."""
    lo, hi = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return [split_error(values, ratio * lo, ratio * hi, bits, symmetric) for ratio in ratios]
