"""Layers and settings on which GPTQ is compared with the libraries, and what agreeing means."""

from __future__ import annotations

import torch

from labkit.core.scheme import QuantScheme
from labkit.quantize.gptq import GptqSolution
from labkit.quantize.gptq_order import by_group_importance, by_importance
from labkit.quantize.hessian import InputStats

ROWS, COLUMNS, TOKENS = 96, 256, 1024


def inputs(kind: str) -> torch.Tensor:
    """[tokens, in] of a kind that layers meet."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(TOKENS, COLUMNS, generator=generator)
    if kind == "heavy-tailed":
        # Student's t with 3 degrees of freedom, and channels of very different size.
        chi = torch.randn(TOKENS, 3, generator=generator).square().mean(dim=1, keepdim=True)
        x = (
            x
            / chi.sqrt()
            * torch.logspace(-1, 1, COLUMNS)[torch.randperm(COLUMNS, generator=generator)]
        )
    elif kind == "correlated":
        mix = torch.randn(COLUMNS, COLUMNS, generator=generator)
        x = (x * torch.logspace(0, -2, COLUMNS)) @ mix + 0.5
    elif kind == "dead columns":
        x[:, [0, 3, 100, 255]] = 0
    elif kind == "rank-deficient":
        x = x[: COLUMNS // 4]
    elif kind != "gaussian":
        raise ValueError(kind)
    return x


KINDS = ("gaussian", "heavy-tailed", "correlated", "dead columns", "rank-deficient")


def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    rows = torch.randn(ROWS, 1, generator=generator).mul(0.5).exp()
    return torch.randn(ROWS, COLUMNS, generator=generator) * rows * 0.05


def scheme_of(case: dict) -> QuantScheme:
    """The same grid in our words: theirs uses the whole range of a symmetric code."""
    size = case["group_size"]
    granularity, size = ("channel", None) if size == -1 else ("group", size)
    return QuantScheme(case["bits"], case["symmetric"], granularity, size, narrow_range=False)


def settings_of(case: dict) -> dict:
    """The keyword arguments of `gptq.solve`; scales stay in float32, as theirs do inside."""
    names = ("damp", "act_order", "static_groups", "group_aware")
    return {name: case[name] for name in names if name in case} | {"scale_dtype": torch.float32}


def their_codes(case: dict, found: dict[str, torch.Tensor]) -> torch.Tensor:
    """Their integers [out, in], in our convention: signed when symmetric."""
    columns = found["g_idx"].long()
    scale, zero = found["scale"][:, columns], found["zero"][:, columns]
    codes = torch.round(found["weight"] / scale) + zero
    return (codes - (2 ** (case["bits"] - 1) if case["symmetric"] else 0)).int()


def order_of(case: dict, stats: InputStats) -> torch.Tensor:
    """The columns in the order of rounding."""
    diagonal = stats.hessian().diagonal().clone()
    diagonal[diagonal == 0] = 1
    if case.get("act_order"):
        return by_importance(diagonal)
    if case.get("group_aware"):
        return by_group_importance(diagonal, case["group_size"])
    return torch.arange(diagonal.numel())


def distance_from_tie(
    case: dict, stats: InputStats, ours: GptqSolution, theirs: torch.Tensor
) -> float:
    """How far, in steps, the first difference of any row is from a tie; 0 where all are equal.

    Up to a row's first difference both rounded the same weights in the same way. What remains of
    the row follows from that one. So each first difference has to lie, computed in float64, half
    way between two codes.
    """
    order = order_of(case, stats)
    codes = ours.quantized.codes.int()[:, order]
    differs = codes != theirs[:, order]
    rows = torch.nonzero(differs.any(dim=1)).flatten()
    if rows.numel() == 0:
        return 0.0
    hessian = stats.hessian().double()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(ours.damp * hessian.diagonal().mean())
    root = torch.linalg.cholesky(hessian[order][:, order].flip(0, 1)).flip(0, 1)
    w = weight().double()
    w[:, dead] = 0
    w, rounded = w[:, order], ours.quantized.dequantize().double()[:, order]
    first = differs.int().argmax(dim=1)[rows]
    # w_j + Σ_{k<j} (w_k - q_k) R_kj / R_jj, in steps of the grid.
    moved = w + (w - rounded) @ root.triu(1) / root.diagonal()
    quantized = ours.quantized
    group = torch.zeros(len(order), dtype=torch.long)
    if case["group_size"] != -1:
        natural = torch.arange(len(order)) // case["group_size"]
        group = (natural if quantized.g_idx is None else quantized.g_idx.long())[order]
    scale = quantized.scale.double()[rows, group[first]]
    steps = moved[rows, first] / scale
    return float((steps - steps.floor() - 0.5).abs().max())
