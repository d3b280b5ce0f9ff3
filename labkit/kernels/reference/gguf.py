"""y = x @ w.T with a weight in GGUF blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.quantize import gguf


def linear(x: Tensor, blocks: Tensor, type_name: str) -> Tensor:
    """x [tokens, in] @ decoded blocks.T in float64, [tokens, out]."""
    weight = torch.from_numpy(gguf.dequantize(blocks.cpu().numpy(), type_name)).to(x.device)
    return x.double() @ weight.double().T
