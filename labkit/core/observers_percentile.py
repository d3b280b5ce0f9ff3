"""The percentile observer: clip a fixed share of the values."""

from __future__ import annotations

import torch

from labkit.core.errors import CalibrationError
from labkit.core.observers_base import Observer
from labkit.core.observers_histogram import Histogram, quantile


class PercentileObserver(Observer):
    """A range that leaves out the share of values beyond a percentile.

    * asymmetric, ``range(symmetric=False)``: from the (100-p)-th to the p-th percentile of x, so
      that 100-p percent are clipped on either side;
    * symmetric, ``range(symmetric=True)``: from -t to t with t the p-th percentile of |x|. This is
      not the p-th percentile of x: for values on both sides that one clips twice as many.

    p = 100 is min-max. Otherwise it is the least value that p percent of the values do not exceed
    (numpy's method "inverted_cdf"), read from a histogram of fixed size: within one bin, at most
    2^-12 of the largest |x|, and the same for any order of batches.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference: Principles and
    Empirical Evaluation", on calibration.

    Args:
        percentile: p, above 50 and at most 100.

    Raises:
        CalibrationError: percentile out of range.
    """

    def __init__(self, percentile: float = 99.9) -> None:
        super().__init__()
        if not 50.0 < percentile <= 100.0:
            raise CalibrationError(
                f"percentile {percentile}", remedy="Choose above 50 and at most 100, such as 99.9."
            )
        self.percentile = percentile
        self._histogram = Histogram()

    def _add(self, x: torch.Tensor) -> None:
        self._histogram.add(x)

    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        seen = self._histogram
        kept = self.percentile / 100.0
        if symmetric:
            largest = max(abs(seen.lo), abs(seen.hi))
            if kept == 1.0:
                return -largest, largest
            threshold = min(quantile(seen.absolute(), 0.0, seen.width, kept), largest)
            return -threshold, threshold
        if kept == 1.0:
            return seen.lo, seen.hi
        start = -seen.width * len(seen.counts) / 2
        # The lower end is the upper end of the mirrored histogram. Both stay within what was seen.
        lo = -quantile(seen.counts[::-1], start, seen.width, kept)
        hi = quantile(seen.counts, start, seen.width, kept)
        return min(max(lo, seen.lo), seen.hi), max(min(hi, seen.hi), seen.lo)
