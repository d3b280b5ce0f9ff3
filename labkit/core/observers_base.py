"""What every observer does: watch batches go by, then say which range to quantize."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from labkit.core.affine import choose_qparams
from labkit.core.errors import CalibrationError
from labkit.core.finite import require_finite

Range = tuple[torch.Tensor, torch.Tensor]


class Observer(ABC):
    """Watches one tensor (an activation, as a rule) over many batches.

    It keeps a summary of bounded size, never the batches. One observer gives one range: static
    quantization calls `observe` on calibration data and freezes the result; dynamic quantization
    makes a new observer for every batch.
    """

    def __init__(self) -> None:
        self._seen = 0

    @property
    def count(self) -> int:
        """Elements seen so far."""
        return self._seen

    def observe(self, x: torch.Tensor) -> None:
        """Add a batch, of any shape. An empty batch changes nothing.

        Raises:
            NonFiniteError: x holds NaN or infinity; nothing of it is counted.
        """
        require_finite(x, f"{type(self).__name__}.observe")
        if x.numel() == 0:
            return
        self._add(x.detach())
        self._seen += x.numel()

    def range(self, bits: int = 8, symmetric: bool = False) -> Range:
        """Return (lo, hi), float32 tensors without axes.

        ``bits`` and ``symmetric`` say what the range is for. Observers that search (MSE, KL) need
        both; the percentile needs ``symmetric``; min-max and its moving average need neither.

        Raises:
            CalibrationError: nothing has been observed.
        """
        self._require_data()
        lo, hi = self._range(bits, symmetric)
        return torch.tensor(lo, dtype=torch.float32), torch.tensor(hi, dtype=torch.float32)

    def qparams(self, bits: int, symmetric: bool) -> Range:
        """Return (scale, zero_point) for the range, as `labkit.core.affine.choose_qparams`."""
        lo, hi = self.range(bits, symmetric)
        return choose_qparams(lo, hi, bits, symmetric)

    def _require_data(self) -> None:
        if self._seen == 0:
            raise CalibrationError(
                "no data has been observed",
                where=f"{type(self).__name__}",
                remedy="Call observe(x) with at least one batch that is not empty.",
            )

    @abstractmethod
    def _add(self, x: torch.Tensor) -> None: ...

    @abstractmethod
    def _range(self, bits: int, symmetric: bool) -> tuple[float, float]: ...
