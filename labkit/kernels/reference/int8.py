"""y[t, o] = scale_x[t] * scale_w[o] * sum over i of q_x[t, i] * q_w[o, i] (W8A8)."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.kernels.int8_weight import Int8Weight


def linear(codes: Tensor, scale: Tensor, weight: Int8Weight) -> Tensor:
    """codes int8 [tokens, in], scale float32 [tokens] -> float64 [tokens, out]."""
    sums = codes.to(torch.float64) @ weight.rows().to(torch.float64).T  # exact below 2^53
    return sums * scale.double()[:, None] * weight.scale.double()[: weight.shape[0]]
