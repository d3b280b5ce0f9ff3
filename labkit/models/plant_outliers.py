"""Plant outlier channels in a model that has none, without changing what it computes.

The gain of a norm is multiplied by a factor in a few channels, and the columns of every linear
layer that reads the norm are divided by it. With a power of two both are exact, so the logits stay
as they were, while the activations between norm and linear now have the loud channels that large
models grow by themselves (Dettmers et al. 2022, section 4: the same few feature dimensions in all
layers, far above the rest, in nearly every token).

This is SmoothQuant's fold run backwards, so SmoothQuant can undo it; and fusing the norm, the first
step of a rotation, undoes it as well. A model's own outliers are not all so kind: some sit in the
residual stream itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from labkit.core.errors import SchemeError
from labkit.models.families import family
from labkit.models.folding import fold as fold_scales
from labkit.models.smooth import norm_folds
from labkit.models.walking import decoder_blocks, weight_matrix


@dataclass(frozen=True)
class Planted:
    """The model with outliers; `norms` by full name, all loud in `channels` by `factor`."""

    model: nn.Module
    channels: tuple[int, ...]
    factor: float
    norms: tuple[str, ...]


def pick_channels(hidden: int, count: int = 3, seed: int = 0) -> tuple[int, ...]:
    """`count` different channels of `hidden`, the same for the same seed, ascending.

    Raises SchemeError unless 1 <= count <= hidden.
    """
    if not 1 <= count <= hidden:
        raise SchemeError(f"{count} of {hidden} channels", where="plant_outliers")
    order = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
    return tuple(sorted(order[:count].tolist()))


def plant(model: nn.Module, channels: Sequence[int], factor: float = 64.0) -> Planted:
    """A copy of `model` with `channels` of every norm `factor` times louder: the same function.

    Every norm of a block that feeds linear layers and nothing else is treated; the final norm is
    left alone.

    Raises:
        ModelError: an architecture that labkit does not know.
        SchemeError: a factor that is not a positive power of two (it would round the weights), or
            channels that are doubled or out of range.
    """
    changed = copy.deepcopy(model)
    known = family(changed)
    prefix, blocks = decoder_blocks(changed)
    names = []
    for index, block in enumerate(blocks):
        for fold in norm_folds(known, block):
            norm = block.get_submodule(fold.source)
            linears = [block.get_submodule(name) for name in fold.linears]
            quieter = torch.ones(weight_matrix(linears[0]).shape[1])
            _check(channels, factor, len(quieter))
            quieter[list(channels)] = 1.0 / factor
            fold_scales(norm, linears, quieter, norm_offset=known.norm_offset(norm))
            names.append(f"{prefix}.{index}.{fold.source}")
    return Planted(changed, tuple(channels), factor, tuple(names))


def _check(channels: Sequence[int], factor: float, hidden: int) -> None:
    if not (math.isfinite(factor) and factor > 0 and math.frexp(factor)[0] == 0.5):
        raise SchemeError(
            f"factor {factor}",
            where="plant_outliers",
            remedy="Use a power of two: any other factor rounds gains and weights.",
        )
    if len(set(channels)) != len(channels) or not all(0 <= c < hidden for c in channels):
        raise SchemeError(
            f"channels {list(channels)}",
            where="plant_outliers",
            remedy=f"Name different channels from 0 to {hidden - 1}.",
        )
