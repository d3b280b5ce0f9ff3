"""y = x @ w.T with a weight in GGUF blocks, x as it is."""

from __future__ import annotations

from torch import Tensor

from labkit.kernels.gguf_panels import GgufPanels


def linear(x: Tensor, weight: GgufPanels) -> Tensor:
    """x @ decoded blocks.T in float64, [tokens, out]."""
    return x.double() @ weight.dequantize().double().T
