"""y = x @ w.T with x in runs of int8 and a weight in GGUF blocks."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.gguf_panels import GgufPanels
from labkit.kernels.reference import runs


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """(codes * scale) @ decoded blocks.T in float64, [tokens, out]."""
    codes, scale = runs.quantize(x)
    rounded = codes.double() * scale.double().repeat_interleave(runs.RUN, dim=1)
    return rounded @ weight.dequantize().double().T
