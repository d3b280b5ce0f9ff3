"""Fold a scale per channel into the weights around it: other numbers, the same function.

Where a module's output goes into linear layers and nowhere else, the output may be divided by s
and the layers' input columns multiplied by s:

    W x  =  (W · diag(s)) · (diag(s)^-1 · x)

diag(s)^-1 costs nothing at run time, because it is folded into the module that makes x: into the
weight and bias of a norm, or into rows and bias of a linear layer. AWQ chooses s so that the
weights round better, SmoothQuant so that the activations do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from labkit.core.errors import ModelError, SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.models.walking import is_linear, weight_matrix


@torch.no_grad()
def fold(
    source: nn.Module,
    linears: Sequence[nn.Module],
    scales: Tensor,
    *,
    norm_offset: float = 0.0,
    rows: tuple[int, int] | None = None,
) -> None:
    """Divide what `source` gives by `scales`, and multiply the inputs of `linears`, in place.

    Either everything is changed or, when an error is raised, nothing. `fold` with 1 / scales
    undoes it, up to rounding in the modules' own dtype.

    Args:
        source: a norm with a weight [in] (LayerNorm, RMSNorm), or a linear layer; a bias is
            divided too.
        linears: `nn.Linear` or GPT-2's `Conv1D`: every layer that reads this output.
        scales: float [in], positive.
        norm_offset: what a norm adds to its stored weight; 1 for Gemma, which stores weight - 1.
        rows: the outputs [start, end) of a fused linear source that are read: v of a fused
            q, k, v. None for all.

    Raises:
        ShapeError: as many scales as one side has no channels, as between v_proj and o_proj of
            grouped-query attention.
        NonFiniteError, SchemeError: scales that are not finite or not positive; a folded weight
            beyond the largest number of its dtype.
        ModelError: a source that has no weight to fold into.
    """
    scales = scales.detach().float()
    require_finite(scales, "scales")
    if scales.ndim != 1 or bool((scales <= 0).any()):
        raise SchemeError(
            f"scales of shape {tuple(scales.shape)}, the least {float(scales.min()):.4g}",
            where="folding",
            remedy="One positive number for each channel.",
        )
    changes = _divided(source, scales, norm_offset, rows)
    for linear in linears:
        weight = weight_matrix(linear)
        _require_match(weight.shape[1], scales, f"inputs of {type(linear).__name__}")
        changes.append((weight, weight.float() * scales.to(weight.device)))
    for stored, changed in changes:
        _require_fits(stored, changed)
    for stored, changed in changes:
        stored.copy_(changed)


def _divided(
    source: nn.Module, scales: Tensor, norm_offset: float, rows: tuple[int, int] | None
) -> list[tuple[Tensor, Tensor]]:
    """What is stored (views), and what it becomes when the source's outputs are divided."""
    weight, bias = getattr(source, "weight", None), getattr(source, "bias", None)
    if weight is None:
        raise ModelError(
            f"{type(source).__name__} has no weight to fold scales into",
            remedy="Leave this fold out; Family.folds lists those that a block allows.",
        )
    start, end = rows or (0, None)
    divisor = scales.to(weight.device)
    if is_linear(source):
        part = weight_matrix(source)[start:end]
        _require_match(part.shape[0], scales, f"outputs of {type(source).__name__}")
        changes = [(part, part.float() / divisor[:, None])]
    else:
        _require_match(weight.numel(), scales, f"channels of {type(source).__name__}")
        changes = [(weight.detach(), (weight.float() + norm_offset) / divisor - norm_offset)]
    if bias is not None:
        part = bias.detach()[start:end]
        changes.append((part, part.float() / divisor))
    return changes


def _require_match(count: int, scales: Tensor, what: str) -> None:
    if count != scales.numel():
        raise ShapeError(
            f"{scales.numel()} scales for {count} {what}",
            where="folding",
            remedy="Both sides of a fold have the same channels; grouped-query attention, which"
            " repeats v, allows none between v and the output projection.",
        )


def _require_fits(stored: Tensor, changed: Tensor) -> None:
    largest = float(changed.abs().max()) if changed.numel() else 0.0
    limit = torch.finfo(stored.dtype).max
    if not largest <= limit:
        raise SchemeError(
            f"a folded weight reaches {largest:.4g}; {stored.dtype} ends at {limit:.4g}",
            where="folding",
            remedy="Load the model in float32, or limit the scales.",
        )
