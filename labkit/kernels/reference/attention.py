"""softmax(q · k) · v for one token, over a cache of 8-bit numbers with a scale for each token."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    value_scale: Tensor,
    lengths: Tensor,
    factor: float,
) -> Tensor:
    """float64 [batch, heads, dim]; see `labkit.kernels.attention`."""
    repeat = query.shape[1] // keys.shape[1]
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    for row, length in enumerate(lengths.tolist()):
        k = keys[row, :, :length].float().double() * key_scale[row, :, :length, None].double()
        v = values[row, :, :length].float().double() * value_scale[row, :, :length, None].double()
        k, v = (part.repeat_interleave(repeat, dim=0) for part in (k, v))
        scores = (k @ query[row].double()[:, :, None])[:, :, 0] * factor
        out[row] = (scores.softmax(dim=1)[:, None] @ v)[:, 0]
    return out
