"""Keys and values rounded along one axis or the other: the choice that decides below 8 bits.

Source: Liu et al. 2024, "KIVI", arXiv 2402.02750, section 3: keys by channel, values by token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from labkit.core.affine import integer_range
from labkit.core.errors import GroupSizeError, SchemeError
from labkit.core.finite import require_finite


def round_by_token(x: Tensor, bits: int, group: int | None = None) -> Tensor:
    """x [..., tokens, dim] on 2^bits levels from minimum to maximum of `group` neighbours.

    The whole token is one group if None. float32, x's shape.

    Raises:
        GroupSizeError: a group that does not divide dim.
        SchemeError: bits that cannot be.
        NonFiniteError: x holds NaN or infinity.
    """
    size = group or x.shape[-1]
    if x.shape[-1] % size:
        raise GroupSizeError(f"groups of {size} in {x.shape[-1]} numbers", "round_by_token")
    return _rounded(x.float().unflatten(-1, (-1, size)), bits, dim=-1).flatten(-2)


def round_by_channel(x: Tensor, bits: int, run: int | None = None) -> Tensor:
    """x [..., tokens, dim] on 2^bits levels from minimum to maximum of a channel's `run` tokens.

    Tokens behind the last whole run stay as they are: their range is not known yet. With None all
    tokens are one run. float32, x's shape.

    Raises:
        SchemeError: a run below 1, or bits that cannot be.
        NonFiniteError: x holds NaN or infinity.
    """
    tokens = x.shape[-2]
    size = tokens if run is None else run
    if size < 1:
        raise SchemeError(f"runs of {size} tokens", "round_by_channel", "Use at least one.")
    whole = tokens // size
    runs = x[..., : whole * size, :].float().unflatten(-2, (whole, size))
    rounded = _rounded(runs, bits, dim=-2) if whole else runs
    return torch.cat([rounded.flatten(-3, -2), x[..., whole * size :, :].float()], dim=-2)


def round_along(
    x: Tensor, bits: int, by: Literal["channel", "token"], size: int | None = None
) -> Tensor:
    """`round_by_channel` or `round_by_token`, by name."""
    if by not in ("channel", "token"):
        raise SchemeError(f"by {by!r}", "round_along", 'Choose "channel" or "token".')
    return round_by_channel(x, bits, size) if by == "channel" else round_by_token(x, bits, size)


def _rounded(blocks: Tensor, bits: int, dim: int) -> Tensor:
    # The range is not widened to 0, as for weights: a loud key channel may never come near it.
    require_finite(blocks, "keys or values")
    _, most = integer_range(bits, symmetric=False)
    low, high = blocks.amin(dim, keepdim=True), blocks.amax(dim, keepdim=True)
    step = (high - low) / most
    codes = ((blocks - low) / torch.where(step > 0, step, torch.ones_like(step))).round()
    return codes.clamp(0, most) * step + low
