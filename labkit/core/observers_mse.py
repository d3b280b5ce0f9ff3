"""The MSE observer: shrink the range until clipping costs more than rounding saves."""

from __future__ import annotations

import torch

from labkit.core.affine import choose_qparams, fake_quantize, integer_range
from labkit.core.errors import CalibrationError
from labkit.core.observers_base import Observer
from labkit.core.observers_histogram import Histogram

_ROUNDS = 2


class MSEObserver(Observer):
    """The range [a * min, b * max] whose quantized values have the least mean squared error.

    min and max are those of the data and 0. Ratios run over a grid of ``steps`` from 1 (nothing is
    clipped) down to ``smallest``. One common ratio is searched first (`curve`), on [-m, m] with m
    the largest |x| if symmetric. If asymmetric, an outlier on one side should not shrink the
    other, so each end is then searched alone, in turn, which can only lower the error. The error
    is taken over the bins of a histogram, each bin standing at its middle.

    Source: the grid search over a common ratio is GPTQ's ``mse`` option; clipping by least
    squared error is in Banner et al. 2019, "Post training 4-bit quantization of convolutional
    networks for rapid-deployment".

    Args:
        steps: number of ratios, at least 2.
        smallest: the least ratio, 0 < smallest < 1.

    Raises:
        CalibrationError: arguments out of range.
    """

    def __init__(self, steps: int = 100, smallest: float = 0.01) -> None:
        super().__init__()
        if steps < 2 or not 0.0 < smallest < 1.0:
            raise CalibrationError(
                f"steps {steps}, smallest {smallest}",
                remedy="Choose steps >= 2 and 0 < smallest < 1.",
            )
        self.ratios = torch.linspace(1.0, smallest, steps, dtype=torch.float64)
        self._histogram = Histogram()

    def _add(self, x: torch.Tensor) -> None:
        self._histogram.add(x)

    def curve(self, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ratios, errors), float64 [steps] each: the error of every common ratio.

        Raises:
            CalibrationError: nothing has been observed.
        """
        self._require_data()
        lo, hi = self._widest(symmetric)
        return self.ratios, self._errors(self.ratios * lo, self.ratios * hi, bits, symmetric)

    def _widest(self, symmetric: bool) -> tuple[float, float]:
        # The grid contains 0 whatever the data; an end at 0 also keeps lo <= hi for every ratio.
        lo, hi = min(self._histogram.lo, 0.0), max(self._histogram.hi, 0.0)
        largest = max(-lo, hi)
        return (-largest, largest) if symmetric else (lo, hi)

    def _errors(
        self, lo: torch.Tensor, hi: torch.Tensor, bits: int, symmetric: bool
    ) -> torch.Tensor:
        """Mean squared error of each range (lo[i], hi[i])."""
        seen = self._histogram
        filled = seen.counts > 0
        # Clamped to what was seen: the middle of an outermost bin may lie outside of it.
        values = torch.from_numpy(seen.centres()[filled]).clamp(seen.lo, seen.hi)
        weights = torch.from_numpy(seen.counts[filled]).to(torch.float64)
        qmin, qmax = integer_range(bits, symmetric)
        scale, zero_point = choose_qparams(lo, hi, bits, symmetric)
        errors = [
            (weights * (values - fake_quantize(values, s, z, qmin, qmax)).square()).sum()
            for s, z in zip(scale, zero_point, strict=True)
        ]
        return torch.stack(errors) / weights.sum()

    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        widest_lo, widest_hi = self._widest(symmetric)
        ratios, errors = self.curve(bits, symmetric)
        best = ratios[torch.argmin(errors)]
        lo, hi = best * widest_lo, best * widest_hi
        if symmetric:
            return float(lo), float(hi)
        for _ in range(_ROUNDS):
            ends = torch.cat([hi.reshape(1), ratios * widest_hi])
            hi = ends[torch.argmin(self._errors(lo.expand(len(ends)), ends, bits, symmetric))]
            ends = torch.cat([lo.reshape(1), ratios * widest_lo])
            lo = ends[torch.argmin(self._errors(ends, hi.expand(len(ends)), bits, symmetric))]
        return float(lo), float(hi)
