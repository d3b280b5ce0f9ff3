"""SmoothQuant on a model: the factor of each channel goes into the norm in front of the linears.

The model computes the same as before, with quieter activations and louder weights. Only norms are
folded into, as in the paper: the inputs of attention's output projection and of the down
projection stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from labkit.core.errors import CalibrationError, LabkitError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.models.families import Family, Fold, family
from labkit.models.folding import fold as fold_scales
from labkit.models.walking import decoder_blocks, weight_matrix
from labkit.quantize.smoothquant import (
    A8_TENSOR,
    ALPHA,
    W8,
    column_maxima,
    search_alpha,
    smoothing_scales,
)

SAMPLE = 512
_BATCH = 8


@dataclass
class ChannelMaxima:
    """max|x| of each channel over all batches, and the first tokens for a search of alpha.

    maxima: float32 [channels]; sample: float32 [up to SAMPLE, channels].
    """

    maxima: Tensor | None = None
    sample: list[Tensor] = field(default_factory=list)
    tokens: int = 0

    def add(self, x: Tensor) -> None:
        """Add a batch [..., channels]. Raises NonFiniteError."""
        require_finite(x, "activations")
        x = x.detach().float().flatten(0, -2)
        seen = x.abs().amax(dim=0)
        self.maxima = seen if self.maxima is None else torch.maximum(self.maxima, seen)
        if self.tokens < SAMPLE:
            self.sample.append(x[: SAMPLE - self.tokens].clone())
        self.tokens += len(x)


@dataclass(frozen=True)
class Smoothed:
    """The model, alpha by the full name of the norm it was folded into, and what was left out."""

    model: nn.Module
    alphas: dict[str, float]
    skipped: tuple[str, ...]


@torch.no_grad()
def smooth(
    model: nn.Module,
    calibration: Tensor,
    alpha: float | None = ALPHA,
    *,
    activation: QuantScheme = A8_TENSOR,
    weight_scheme: QuantScheme = W8,
) -> Smoothed:
    """A copy of `model` that computes the same with balanced channels.

    Args:
        calibration: int64 [sequences, length].
        alpha: how much goes to the weights, 0 to 1; None searches the best one for each norm.
        activation, weight_scheme: what the search of alpha quantizes with.

    Raises:
        CalibrationError: no calibration data.
        ModelError: an architecture that labkit does not know.
        SchemeError: alpha outside [0, 1].
        NonFiniteError: activations or weights with NaN or infinity.
    """
    if calibration.numel() == 0:
        raise CalibrationError("no calibration tokens", where="SmoothQuant")
    changed = copy.deepcopy(model)
    known = family(changed)
    prefix, blocks = decoder_blocks(changed)
    folds = [(index, fold) for index, b in enumerate(blocks) for fold in norm_folds(known, b)]
    seen = _channel_maxima(changed, calibration, [(blocks[i], fold) for i, fold in folds])
    alphas = {}
    for (index, fold), maxima in zip(folds, seen, strict=True):
        name = f"{prefix}.{index}.{fold.source}"
        try:
            alphas[name] = smooth_fold(
                blocks[index], fold, known, maxima, alpha, activation, weight_scheme
            )
        except LabkitError as error:
            error.add_note(f"at {name}")
            raise
    skipped = dict.fromkeys(reason for block in blocks for reason in known.skipped_folds(block))
    return Smoothed(changed, alphas, tuple(skipped))


def norm_folds(known: Family, block: nn.Module) -> list[Fold]:
    """The folds of a block whose source is a norm."""
    return [fold for fold in known.folds(block) if fold.kind == "norm"]


@torch.no_grad()
def smooth_fold(
    block: nn.Module,
    fold: Fold,
    known: Family,
    seen: ChannelMaxima,
    alpha: float | None,
    activation: QuantScheme = A8_TENSOR,
    weight_scheme: QuantScheme = W8,
) -> float:
    """Balance one norm and its linears in place; the alpha that was used.

    Raises CalibrationError when nothing was seen, and what the parts raise.
    """
    if seen.maxima is None:
        raise CalibrationError("no activations were seen", where=fold.source)
    linears = [block.get_submodule(name) for name in fold.linears]
    weights = [weight_matrix(linear) for linear in linears]
    if alpha is None:
        alpha = search_alpha(torch.cat(seen.sample), weights, activation, weight_scheme).best
    scales = smoothing_scales(seen.maxima, column_maxima(weights), alpha)
    norm = block.get_submodule(fold.source)
    fold_scales(norm, linears, scales, norm_offset=known.norm_offset(norm))
    return alpha


def _channel_maxima(
    model: nn.Module, calibration: Tensor, folds: Iterable[tuple[nn.Module, Fold]]
) -> list[ChannelMaxima]:
    """What flows into the linears of each (block, fold); those of one fold read one tensor."""
    seen: list[ChannelMaxima] = []
    handles = []
    for block, fold in folds:
        seen.append(ChannelMaxima())
        first = block.get_submodule(fold.linears[0])
        handles.append(
            first.register_forward_pre_hook(lambda _, args, found=seen[-1]: found.add(args[0]))
        )
    try:
        device = next(model.parameters()).device
        for rows in calibration.reshape(-1, calibration.shape[-1]).split(_BATCH):
            model(input_ids=rows.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen
