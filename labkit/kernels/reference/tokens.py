"""Activations become int8, one scale for each token: the largest magnitude goes to 127."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.scheme import QuantScheme
from labkit.quantize.activation import Dynamic

_DYNAMIC = Dynamic(QuantScheme(8, granularity="token"))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, features] -> codes int8 of its shape, and scale float32 [tokens, 1].

    Raises NonFiniteError for NaN or infinity.
    """
    if x.numel() == 0:
        return x.to(torch.int8), torch.ones(*x.shape[:-1], 1)
    quantized = _DYNAMIC(x)
    return quantized.codes, quantized.scale.float().reshape(len(x), 1)
