"""y = x @ w.T with w = levels[code] * absmax (NF4, FP4)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from labkit.core.codebook import CodebookTensor
from labkit.kernels.codebook_panels import CodebookPanels


def linear(x: Tensor, weight: CodebookTensor | CodebookPanels) -> Tensor:
    """x [tokens, in] @ unrounded weight.T in float64, [tokens, out]."""
    return x.double() @ replace(weight, dtype=torch.float32).dequantize().double().T
