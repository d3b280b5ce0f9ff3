"""Observers that keep two numbers: the least and the greatest value."""

from __future__ import annotations

import torch

from labkit.core.errors import CalibrationError
from labkit.core.observers_base import Observer


class MinMaxObserver(Observer):
    """The range of everything seen. Nothing is clipped, and one outlier sets the scale."""

    def __init__(self) -> None:
        super().__init__()
        self._lo = float("inf")
        self._hi = float("-inf")

    def _add(self, x: torch.Tensor) -> None:
        lo, hi = torch.aminmax(x)
        self._lo = min(self._lo, float(lo))
        self._hi = max(self._hi, float(hi))

    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        return self._lo, self._hi


class EMAObserver(Observer):
    """An exponential moving average of each batch's minimum and maximum.

        lo <- momentum * lo + (1 - momentum) * min(batch)            and hi in the same way

    The first batch sets both. An outlier that comes once fades instead of ruling for ever, so the
    result depends on the order of batches. Source: Jacob et al. 2018, section 3.1.

    Args:
        momentum: weight of the past, 0 <= momentum < 1; torch calls 1 - momentum the
            averaging_constant.

    Raises:
        CalibrationError: momentum out of range.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= momentum < 1.0:
            raise CalibrationError(f"momentum {momentum}", remedy="Choose 0 <= momentum < 1.")
        self.momentum = momentum
        self._lo = 0.0
        self._hi = 0.0

    def _add(self, x: torch.Tensor) -> None:
        lo, hi = (float(bound) for bound in torch.aminmax(x))
        if self.count == 0:
            self._lo, self._hi = lo, hi
            return
        self._lo = self.momentum * self._lo + (1 - self.momentum) * lo
        self._hi = self.momentum * self._hi + (1 - self.momentum) * hi

    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]:
        return self._lo, self._hi
