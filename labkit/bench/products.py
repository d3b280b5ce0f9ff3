"""The products that `labkit bench kernels` times, on a CPU and on a card alike."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from labkit.core.scheme import QuantScheme

GROUP, BLOCK = 128, 64  # weights that share a scale: of int4, and of NF4
INT4 = QuantScheme(4, True, "group", GROUP, narrow_range=False)
SHAPES = ((4096, 4096), (11008, 4096))
INT8, QUICK_INT8 = (512, 4096), (64, 1024)  # tokens, and both sides of the weight


class Shaped(Protocol):
    """A weight [out, in], packed or not."""

    @property
    def shape(self) -> torch.Size: ...


def sizes(weight: Shaped, tokens: int) -> str:
    """Such as "4096 x 4096, 1 token"."""
    return f"{weight.shape[0]} x {weight.shape[1]}, {tokens} token{'s' * (tokens > 1)}"


def exact(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in float64, which errors are measured against."""
    return x.double() @ weight.double().T
