"""What a layer's inputs tell a quantizer: the Hessian of the output error, and their magnitudes.

A linear layer computes W x. Changing W by D changes the outputs by D x, and the sum of the squared
changes over N calibration tokens is, up to a factor, a quadratic form in D:

    (1/N) Σ_t ‖D x_t‖² = tr(D (1/N) Σ_t x_t x_tᵀ Dᵀ) = ½ tr(D H Dᵀ),      H = (2/N) Σ_t x_t x_tᵀ

H is the matrix of second derivatives with respect to any one row of W, the same for every row.
Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", section 3.1.
"""

from __future__ import annotations

import torch

from labkit.core.errors import CalibrationError, ShapeError
from labkit.core.finite import require_finite


class InputStats:
    """The inputs of one linear layer, summed up batch by batch: memory [in, in], whatever N is.

    Args:
        columns: the layer's input features (in).

    Attributes:
        tokens: how many input vectors were added.
    """

    def __init__(self, columns: int) -> None:
        if columns < 1:
            raise ShapeError(f"{columns} columns", where="InputStats", remedy="At least one.")
        self.columns = columns
        self.tokens = 0
        self._outer = torch.zeros(columns, columns)
        self._abs_sum = torch.zeros(columns, dtype=torch.float64)
        self._abs_max = torch.zeros(columns)
        self._given: torch.Tensor | None = None

    @classmethod
    def from_hessian(cls, hessian: torch.Tensor, tokens: int) -> InputStats:
        """Return stats whose `hessian` is ``hessian`` ([in, in], float32): for one made elsewhere.

        It says nothing of magnitudes: mean_abs and max_abs raise CalibrationError.

        Raises:
            ShapeError: it is not square.
            NonFiniteError: it holds NaN or infinity.
        """
        if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
            raise ShapeError(
                f"a Hessian of shape {tuple(hessian.shape)}", remedy="It is square, [in, in]."
            )
        require_finite(hessian, "Hessian")
        stats = cls(hessian.shape[0])
        stats.tokens = tokens
        stats._given = hessian.detach().float().clone()
        return stats

    def add(self, inputs: torch.Tensor) -> InputStats:
        """Add a batch of inputs ([tokens, in], or [..., in]: leading axes are tokens).

        Every token counts the same, however the tokens are cut into batches.

        Raises:
            ShapeError: the last axis is not in.
            NonFiniteError: an input is NaN or infinite; the positions are in the batch.
            CalibrationError: these stats were made from a Hessian, to which nothing can be added.
        """
        if self._given is not None:
            raise CalibrationError(
                "inputs added to stats that were made from a Hessian",
                remedy="Start from InputStats(columns) and add all inputs.",
            )
        if inputs.ndim < 2 or inputs.shape[-1] != self.columns:
            raise ShapeError(
                f"inputs of shape {tuple(inputs.shape)}",
                where=f"InputStats of {self.columns} columns",
                remedy=f"Expected [tokens, {self.columns}].",
            )
        x = inputs.detach().reshape(-1, self.columns).float()
        if x.shape[0] == 0:
            return self
        require_finite(x, "layer inputs")
        if x.device != self._outer.device:
            self._move(x.device)
        # The sum, not the mean of means: batches of different length keep their weight.
        self._outer.addmm_(x.T, x)
        magnitude = x.abs()
        self._abs_sum += magnitude.sum(dim=0, dtype=torch.float64)
        torch.maximum(self._abs_max, magnitude.amax(dim=0), out=self._abs_max)
        self.tokens += x.shape[0]
        return self

    def hessian(self) -> torch.Tensor:
        """Return H = (2/N) Σ x xᵀ, float32 [in, in], symmetric, a new tensor.

        Raises:
            CalibrationError: no token was added.
            NonFiniteError: inputs so large that their products overflow float32.
        """
        self.require_tokens(1)
        if self._given is not None:
            return self._given.clone()
        hessian = self._outer * (2.0 / self.tokens)
        require_finite(hessian, "sum of x xᵀ")
        return hessian

    def mean_abs(self) -> torch.Tensor:
        """Return the mean of |x| of each column, float32 [in]."""
        self._require_magnitudes()
        return (self._abs_sum / self.tokens).float()

    def max_abs(self) -> torch.Tensor:
        """Return the largest |x| of each column, float32 [in]."""
        self._require_magnitudes()
        return self._abs_max.clone()

    def require_tokens(self, count: int) -> None:
        """Return if at least ``count`` tokens were added.

        Raises:
            CalibrationError: fewer were.
        """
        if self.tokens < count:
            raise CalibrationError(
                f"{self.tokens} calibration tokens where {count} are needed",
                where=f"InputStats of {self.columns} columns",
                remedy="Run calibration text through the layer first, and enough of it.",
            )

    def _require_magnitudes(self) -> None:
        self.require_tokens(1)
        if self._given is not None:
            raise CalibrationError(
                "these stats were made from a Hessian alone",
                where="mean_abs and max_abs",
                remedy="Add the inputs themselves with InputStats.add.",
            )

    def _move(self, device: torch.device) -> None:
        self._outer = self._outer.to(device)
        self._abs_sum = self._abs_sum.to(device)
        self._abs_max = self._abs_max.to(device)
