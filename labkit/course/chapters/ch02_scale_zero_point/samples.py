"""Random values that the observers of this chapter are tried on."""

from __future__ import annotations

import numpy as np
import torch


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Standard normal numbers of this shape, float32."""
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
