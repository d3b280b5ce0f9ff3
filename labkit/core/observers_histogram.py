"""A histogram that grows with the data and does not depend on the order of batches.

16384 bins cover [-limit, limit). The limit is a power of two above the largest |x| seen, so the
bins of a wider histogram are unions of the bins of a narrower one: widening merges pairs and
interpolates nothing. The counts are therefore the same however the data was cut into batches.
The largest |x| reaches past half of the limit, so at least 4096 bins on its side are in use: 32 or
more for every step of an 8-bit symmetric grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

BINS = 16384
_HALF = BINS // 2

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Reals = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass
class Histogram:
    """Counts of a stream of numbers, and its exact minimum and maximum."""

    counts: Counts = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    limit: float = 0.0  # 0 until a number other than 0 is seen; until then all counts are zeros
    lo: float = math.inf
    hi: float = -math.inf

    def add(self, x: torch.Tensor) -> None:
        """Count the elements of a finite tensor that is not empty."""
        lo, hi = (float(bound) for bound in torch.aminmax(x))
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        self._widen(power_of_two_above(max(-lo, hi)))
        if self.limit == 0.0:
            self.counts[_HALF] += x.numel()
            return
        # float64 and a power-of-two width: the division is exact, so no value changes its bin.
        steps = x.reshape(-1).to(torch.float64) / (self.limit / _HALF)
        index = steps.floor_().to(torch.int64) + _HALF
        self.counts += torch.bincount(index, minlength=BINS).cpu().numpy()

    def _widen(self, limit: float) -> None:
        if self.limit == 0.0:
            self.limit = limit  # zeros alone so far: the bin above 0 holds them at any width
            return
        while self.limit < limit:
            merged = self.counts.reshape(_HALF, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[_HALF // 2 : _HALF // 2 + _HALF] = merged
            self.limit *= 2

    @property
    def width(self) -> float:
        """Width of a bin; 1 while only zeros were seen."""
        return self.limit / _HALF if self.limit else 1.0

    def centres(self) -> Reals:
        """Return the middle of each bin, float64 [BINS]."""
        return np.asarray((np.arange(BINS) - _HALF + 0.5) * self.width)

    def absolute(self) -> Counts:
        """Return the counts of |x|, int64 [BINS / 2], over [0, limit)."""
        return np.asarray(self.counts[_HALF:] + self.counts[:_HALF][::-1])


def power_of_two_above(value: float) -> float:
    """Return the least power of two greater than ``value`` >= 0; 0 for 0."""
    return math.ldexp(1.0, math.frexp(value)[1]) if value else 0.0


def quantile(counts: Counts, start: float, width: float, fraction: float) -> float:
    """Return the point below which ``fraction`` of the counts lie, linear inside a bin.

    ``start`` is the left edge of bin 0. At a fraction that falls between two bins it is the left
    bin's right edge.
    """
    cumulative = np.cumsum(counts)
    target = fraction * float(cumulative[-1])
    index = int(np.searchsorted(cumulative, target, side="left"))
    index = min(index, len(counts) - 1)
    before = float(cumulative[index - 1]) if index else 0.0
    inside = (target - before) / float(counts[index]) if counts[index] else 0.0
    return start + (index + inside) * width
