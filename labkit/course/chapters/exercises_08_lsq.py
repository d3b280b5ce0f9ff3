"""Exercise 08.3: the gradient of a learned scale."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight
from labkit.training.lsq import learned_fake_quantize

Case = tuple[torch.Tensor, torch.Tensor, int, int, torch.Tensor]


def lsq_gradient(
    w: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int, grad: torch.Tensor
) -> torch.Tensor:
    """[out, 1]: the gradient by each row's scale, gradient scale included."""
    learned = scale.clone().requires_grad_(True)
    factor = 1 / math.sqrt(w.shape[1] * qmax)
    zeros = torch.zeros_like(scale)
    rounded = learned_fake_quantize(w, learned, zeros, qmin, qmax, factor)
    (by_scale,) = torch.autograd.grad(rounded, learned, grad)
    return by_scale


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    # One weight inside, one clipped at either end; then both ends and nothing inside.
    yield (
        torch.tensor([[0.375, 5.0, -7.0]]),
        torch.tensor([[1.0]]),
        -4,
        3,
        torch.tensor([[1.0, 0.5, 2.0]]),
    )
    for rows, columns in shapes(rng, 11, largest=9):
        w = weight(rng, rows, columns + 1)
        bits = int(rng.integers(2, 5))
        qmax = 2 ** (bits - 1) - 1
        scale = w.abs().mean(dim=1, keepdim=True) * float(rng.uniform(0.5, 0.9)) / qmax
        grad = torch.from_numpy(rng.standard_normal(w.shape).astype(np.float32))
        yield w, scale, -qmax - 1, qmax, grad


def _one_number_a_row(trial: Trial) -> str | None:
    """the gradient is linear in grad: twice the gradient outside is twice the gradient here"""
    doubled = trial.call(
        trial["w"], trial["scale"], trial["qmin"], trial["qmax"], 2 * trial["grad"]
    )
    if not torch.allclose(doubled, 2 * trial.got, rtol=1e-4, atol=1e-5):
        return "twice the gradient outside is not twice the gradient here"
    return None


LSQ = Exercise(
    id="08.3",
    title="The gradient of a scale",
    minutes=12,
    difficulty=3,
    goal="derive how the loss pulls at the distance between two grid points",
    stub='''
    def lsq_gradient(w, scale, qmin, qmax, grad):
        """[out, 1]: gradient by each row's scale, times 1 / sqrt(n qmax); w, grad [out, in]."""
        ...
    ''',
    solution='''
    def lsq_gradient(w, scale, qmin, qmax, grad):
        """[out, 1]: gradient by each row's scale, times 1 / sqrt(n qmax); w, grad [out, in]."""
        v = w / scale
        codes = torch.round(v)
        inside = (codes >= qmin) & (codes <= qmax)
        by_scale = torch.where(inside, codes - v, codes.clamp(qmin, qmax))
        total = (grad * by_scale).sum(dim=1, keepdim=True)
        return total / math.sqrt(w.shape[1] * qmax)
    ''',
    reference=lsq_gradient,
    answer_key=learned_fake_quantize,
    generate=_cases,
    bounds=(_one_number_a_row, matches_reference(rtol=1e-3, atol=1e-4)),
    forbid=(
        torch._fake_quantize_learnable_per_channel_affine,
        torch._fake_quantize_learnable_per_tensor_affine,
    ),
    mutants=(
        Mutant(
            "Without the gradient scale 1 / sqrt(n · qmax) a scale, which sums over all weights "
            "of its row, moves much faster than they do.",
            swap=("return total / math.sqrt(w.shape[1] * qmax)", "return total"),
        ),
        Mutant(
            "n is how many weights share the scale: one row, not the whole matrix.",
            swap=("w.shape[1] * qmax", "w.numel() * qmax"),
        ),
        Mutant(
            "The root is missing: gradients of n weights add up like a random walk, sqrt(n) and "
            "not n.",
            swap=("math.sqrt(w.shape[1] * qmax)", "(w.shape[1] * qmax)"),
        ),
        Mutant(
            "qmax is missing in the gradient scale: the end of the grid moves qmax times as far "
            "as a step.",
            swap=("w.shape[1] * qmax", "w.shape[1]"),
        ),
        Mutant(
            "You treat clipped weights like the others. Theirs is the end of the grid, qmin or "
            "qmax steps away: that is its derivative.",
            swap=(
                "torch.where(inside, codes - v, codes.clamp(qmin, qmax))",
                "codes.clamp(qmin, qmax) - v",
            ),
        ),
        Mutant(
            "You give clipped weights nothing. A weight does not feel the loss there, but the "
            "scale does: with it the end of the grid moves.",
            swap=("codes.clamp(qmin, qmax))", "torch.zeros_like(v))"),
        ),
        Mutant(
            "The sign inside is the other way round: code minus v, what rounding moved the weight "
            "by.",
            swap=("codes - v", "v - codes"),
        ),
        Mutant(
            "You took the code alone. It depends on the scale too, for v = w / scale: through the "
            "straight-through estimator that gives the -v.",
            swap=("codes - v", "codes"),
        ),
        Mutant(
            "You took the mean over the row. The gradient of a shared number is the sum over all "
            "who use it.",
            swap=(".sum(dim=1, keepdim=True)", ".mean(dim=1, keepdim=True)"),
        ),
        Mutant(
            "You clipped to qmax at both ends. A weight beyond the lower end sits at qmin.",
            swap=("codes.clamp(qmin, qmax))", "torch.full_like(v, qmax))"),
        ),
    ),
    hints=(
        "x̂ = s · round(w / s). Take the derivative by s with the product rule; round counts as "
        "slope 1.",
        "Inside: code - w / s. Clipped: x̂ is qmin · s or qmax · s, so its derivative is qmin or "
        "qmax.",
        "Multiply by grad, sum over each row (keepdim), divide by math.sqrt(w.shape[1] * qmax).",
    ),
)
