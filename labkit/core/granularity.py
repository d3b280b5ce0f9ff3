"""Granularity: which elements share one scale.

Rows lie one after another in memory, so every granularity is one reshape to [blocks, block_size]:

    tensor    [1,            numel]
    channel   [out,          in]           a block is an output channel, axis 0 of [out, in]
    group     [out * in / g, g]            a block is g neighbours along the last axis
    token     [tokens,       features]     a block is the last axis of [..., features]

What a block has one of (its range, scale, zero-point) is kept in the *shape of scales*:

    tensor    [1, 1]      channel   [out, 1]      group   [out, in / g]      token   [..., 1]
"""

from __future__ import annotations

import math

import torch

from labkit.core.errors import GroupSizeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme


def scale_shape(shape: torch.Size | tuple[int, ...], scheme: QuantScheme) -> tuple[int, ...]:
    """Return the shape of the scales of a tensor of ``shape``.

    Raises:
        ShapeError: a number without axes has no channels, groups or tokens.
        GroupSizeError: the group size does not divide the last axis.
    """
    if scheme.granularity == "tensor":
        return (1,) * len(shape)
    if not shape:
        raise ShapeError(
            f"a tensor without axes has no {scheme.granularity}",
            remedy='Use granularity "tensor" for a single number.',
        )
    if scheme.granularity == "channel":
        return (shape[0],) + (1,) * (len(shape) - 1)
    if scheme.granularity == "token":
        return (*shape[:-1], 1)
    size = scheme.group_size or 0
    _require_divides(size, shape)
    return (*shape[:-1], shape[-1] // size)


def to_blocks(x: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    """Return x as [blocks, block_size], a view where x is contiguous.

    Raises:
        ShapeError: x is empty or has too few axes.
        GroupSizeError: the group size does not divide the last axis.
    """
    if x.numel() == 0:
        raise ShapeError("no elements, hence no range", where=f"tensor of shape {tuple(x.shape)}")
    return x.reshape(math.prod(scale_shape(x.shape, scheme)), -1)


def from_blocks(
    blocks: torch.Tensor, scheme: QuantScheme, shape: torch.Size | tuple[int, ...]
) -> torch.Tensor:
    """Return [blocks, block_size] in its original ``shape``: the inverse of `to_blocks`.

    Raises:
        ShapeError: the blocks are not those of a tensor of ``shape``.
    """
    count = math.prod(scale_shape(shape, scheme))
    if blocks.ndim != 2 or blocks.shape[0] != count or blocks.numel() != math.prod(shape):
        raise ShapeError(
            f"blocks of shape {tuple(blocks.shape)} are not those of {tuple(shape)}",
            where=str(scheme),
            remedy=f"Expected [{count}, {math.prod(shape) // max(count, 1)}].",
        )
    return blocks.reshape(shape)


def block_range(x: torch.Tensor, scheme: QuantScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (lo, hi), the least and the greatest element of each block, in the shape of scales.

    `expand` makes them broadcast against x; all but "group" already do.

    Raises:
        NonFiniteError: x holds NaN or infinity.
        ShapeError, GroupSizeError: as `to_blocks`.
    """
    blocks = to_blocks(x, scheme)
    require_finite(blocks if x.ndim == 0 else x, "x")
    shape = scale_shape(x.shape, scheme)
    return blocks.amin(dim=1).reshape(shape), blocks.amax(dim=1).reshape(shape)


def expand(
    per_block: torch.Tensor, scheme: QuantScheme, shape: torch.Size | tuple[int, ...]
) -> torch.Tensor:
    """Return values in the shape of scales as a tensor that broadcasts to ``shape``.

    Raises:
        ShapeError: ``per_block`` is not in the shape of scales.
    """
    expected = scale_shape(shape, scheme)
    if tuple(per_block.shape) != expected:
        raise ShapeError(
            f"shape {tuple(per_block.shape)} for a tensor of shape {tuple(shape)}",
            where=str(scheme),
            remedy=f"One value a block has the shape {expected}.",
        )
    if scheme.granularity != "group":
        return per_block
    return per_block.repeat_interleave(scheme.group_size or 1, dim=-1)


def _require_divides(size: int, shape: torch.Size | tuple[int, ...]) -> None:
    length = shape[-1]
    if length % size == 0:
        return
    divisors = [d for d in range(1, length + 1) if length % d == 0]
    below = [d for d in divisors if d < size][-2:]
    above = [d for d in divisors if d > size][:2]
    raise GroupSizeError(
        f"group size {size} does not divide the last axis, {length}: "
        f"{length % size} elements would be left over",
        where=f"tensor of shape {tuple(shape)}",
        remedy=f"Divisors near it: {', '.join(map(str, below + above))}.",
    )
