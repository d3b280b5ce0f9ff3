"""What GPTQ refuses before it begins, and what it says when it is done."""

from __future__ import annotations

import torch

from labkit.core.errors import SchemeError, ShapeError
from labkit.core.finite import require_finite
from labkit.core.scheme import QuantScheme
from labkit.quantize.hessian import InputStats


def check(
    weight: torch.Tensor,
    stats: InputStats,
    scheme: QuantScheme,
    damp: float,
    block_size: int,
    act_order: bool,
    static_groups: bool,
    group_aware: bool,
) -> None:
    """Return if `labkit.quantize.gptq.solve` can work with this; raise what its docstring lists."""
    where = f"GPTQ, weight of shape {tuple(weight.shape)}"
    if not weight.is_floating_point():
        raise SchemeError(f"the weight is {weight.dtype}", where, "Quantize real numbers.")
    if weight.ndim != 2 or weight.numel() == 0 or weight.shape[1] != stats.columns:
        raise ShapeError(
            f"inputs of {stats.columns} features",
            where,
            "The weight is [out, in], and in is the number of features of its inputs.",
        )
    require_finite(weight, "weight")
    if scheme.granularity == "token":
        raise SchemeError('granularity "token"', where, 'Weights have "channel" or "group".')
    if group_aware and (act_order or scheme.granularity != "group"):
        other = "act_order as well" if act_order else f"granularity {scheme.granularity!r}"
        raise SchemeError(
            f"group_aware with {other}", where, "It reorders groups: choose one of the orders."
        )
    if not 0.0 <= damp <= 1.0 or block_size < 1 or (static_groups and scheme.group_size is None):
        raise SchemeError(
            f"damp {damp}, block_size {block_size}, static_groups {static_groups}, {scheme}",
            where,
            "0 <= damp <= 1, block_size >= 1; static_groups needs groups.",
        )


def note_of(asked: float, used: float, stats: InputStats) -> str:
    """What a report should say: damping that was raised, tokens fewer than columns."""
    notes = []
    if used != asked:
        notes.append(f"damp raised from {asked:g} to {used:g}: H was not positive definite")
    if stats.tokens < stats.columns:
        notes.append(f"{stats.tokens} calibration tokens for {stats.columns} columns")
    return "; ".join(notes)
