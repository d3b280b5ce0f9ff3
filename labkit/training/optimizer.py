"""Learning rates that fit what they move: matrices, scales, and all the rest.

AdamW moves every number by about its learning rate a step, however large the number. A scale of
0.03 and a zero-point of 7 need their own, so theirs are *relative*: a step moves a scale by at most
`scale_lr` of where it started, a zero-point by that share of the grid.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from labkit.training.layers import QatLinear, rounders

Kind = Literal["adamw", "muon"]


def build_optimizers(
    model: nn.Module, kind: Kind, lr: float, scale_lr: float, weight_decay: float = 0.0
) -> list[Optimizer]:
    """The optimizers of a prepared model; each group remembers its rate as "peak".

    Args:
        kind: what moves the matrices: "adamw", or "muon", which turns each update into a nearly
            orthogonal one (`labkit.training.reference.optimizer`) of AdamW's size.
        lr: of matrices and everything else that is no scale.
        scale_lr: relative, of learned scales, zero-points and clips.
    """
    groups, taken = _scale_groups(model, scale_lr)
    matrices = [
        module.weight
        for module in model.modules()
        if kind == "muon" and isinstance(module, QatLinear) and module.weight.requires_grad
    ]
    # A tied head is an embedding as well, and those are AdamW's.
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [weight for weight in matrices if id(weight) not in tables]
    taken |= {id(weight) for weight in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups.append({"params": rest, "lr": lr, "weight_decay": weight_decay})
    optimizers: list[Optimizer] = [AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _scale_groups(model: nn.Module, scale_lr: float) -> tuple[list[dict[str, object]], set[int]]:
    groups: list[dict[str, object]] = []
    taken: set[int] = set()
    for module in rounders(model).values():
        levels = module.scheme.qmax - module.scheme.qmin
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in taken:
                size = levels if name == "zero_point" else float(parameter.detach().abs().mean())
                groups.append({"params": [parameter], "lr": scale_lr * size})
            taken.add(id(parameter))
    return groups, taken


def set_lr(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group to this part of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Rise over `warmup` steps, then fall linearly to 0 at the end; `step` counts from 0."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))
