"""Activations become int8 with a scale for each run of 32 neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.core.errors import NonFiniteError

RUN = 32


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, features] -> codes int8 of its shape, scale float32 [tokens, features / 32].

    A run's largest magnitude becomes 127 or -127; a run of zeros has scale 1.

    Raises NonFiniteError for NaN or infinity.
    """
    runs = x.float().reshape(len(x), -1, RUN)
    if not torch.isfinite(runs).all():
        bad = int((~torch.isfinite(runs)).flatten(1).any(dim=1).nonzero()[0])
        raise NonFiniteError(
            f"token {bad} holds NaN or infinity", "activations", "Find out where it comes from."
        )
    most = runs.abs().amax(dim=2, keepdim=True)
    scale = (most / 127).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(most == 0, 1.0, scale)
    codes = (runs / scale).round().to(torch.int8)
    return codes.reshape(x.shape), scale[..., 0]
