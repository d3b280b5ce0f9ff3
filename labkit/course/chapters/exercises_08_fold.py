"""Exercise 08.5: a batch norm disappears into the convolution in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.training.batch_norm import fold_batch_norm

Vector = torch.Tensor
Case = tuple[torch.Tensor, Vector | None, Vector, Vector, Vector, Vector, float]


@torch.no_grad()
def fold(
    weight: torch.Tensor,
    bias: Vector | None,
    gamma: Vector,
    beta: Vector,
    mean: Vector,
    var: Vector,
    eps: float,
) -> tuple[torch.Tensor, Vector]:
    """(weight, bias) of the one convolution that the two layers become."""
    out, inside, height, width = weight.shape
    layer = nn.Conv2d(inside, out, (height, width), bias=bias is not None)
    norm = nn.BatchNorm2d(out, eps=eps)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    norm.weight.copy_(gamma)
    norm.bias.copy_(beta)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.num_batches_tracked.fill_(1)
    folded = fold_batch_norm(layer, norm)
    return folded.weight.detach(), folded.bias.detach()


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    def channels(count: int, low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    for number in range(10):
        out = int(rng.integers(2, 6))
        inside = out if number % 2 else int(rng.integers(1, 4))
        weight = torch.from_numpy(rng.standard_normal((out, inside, 3, 3)).astype(np.float32))
        bias = channels(out, -1, 1) if number % 3 else None
        var = channels(out, 0.05, 4.0)
        gamma = channels(out, 0.3, 2.0) * (-1 if number == 4 else 1)
        eps = 0.1 if number == 1 else 1e-5
        yield weight, bias, gamma, channels(out, -1, 1), channels(out, -2, 2), var, eps


def _the_same_outputs(trial: Trial) -> str | None:
    """the one layer gives what the two gave"""
    weight, bias = trial.got
    x = torch.linspace(-1, 1, weight.shape[1] * 16).reshape(1, -1, 4, 4)
    y = nn.functional.conv2d(x, trial["weight"], trial["bias"])
    wanted = nn.functional.batch_norm(
        y, trial["mean"], trial["var"], trial["gamma"], trial["beta"], False, 0.0, trial["eps"]
    )
    if not torch.allclose(nn.functional.conv2d(x, weight, bias), wanted, rtol=1e-3, atol=1e-4):
        return "a convolution with your weight and bias gives other outputs than the two layers"
    return None


FOLD = Exercise(
    id="08.5",
    title="Fold a batch norm",
    minutes=10,
    difficulty=2,
    goal="put a batch norm into the weight and bias of the layer in front of it",
    stub='''
    def fold(weight, bias, gamma, beta, mean, var, eps):
        """(weight, bias) of one convolution; weight [out, in, kh, kw], bias [out] or None."""
        ...
    ''',
    solution='''
    def fold(weight, bias, gamma, beta, mean, var, eps):
        """(weight, bias) of one convolution; weight [out, in, kh, kw], bias [out] or None."""
        factor = gamma / torch.sqrt(var + eps)
        before = torch.zeros_like(mean) if bias is None else bias
        return weight * factor.reshape(-1, 1, 1, 1), (before - mean) * factor + beta
    ''',
    reference=fold,
    answer_key=fold_batch_norm,
    generate=_cases,
    bounds=(_the_same_outputs, matches_reference(rtol=1e-4, atol=1e-5)),
    forbid=(torch.nn.utils.fusion.fuse_conv_bn_weights, torch.nn.utils.fusion.fuse_conv_bn_eval),
    mutants=(
        Mutant(
            "You divide by the variance; a batch norm divides by the standard deviation, its root.",
            swap=("torch.sqrt(var + eps)", "(var + eps)"),
        ),
        Mutant(
            "The convolution's own bias is lost. The norm reads it with the rest of the output.",
            swap=("torch.zeros_like(mean) if bias is None else bias", "torch.zeros_like(mean)"),
        ),
        Mutant(
            "The bias and the mean are scaled as well: the norm works on W x + b.",
            swap=("(before - mean) * factor + beta", "before - mean * factor + beta"),
        ),
        Mutant(
            "The mean is subtracted as it is; but it is the mean of the output before the factor.",
            swap=("(before - mean) * factor + beta", "before * factor - mean + beta"),
        ),
        Mutant(
            "eps belongs under the root, beside the variance. Where a channel hardly varies, "
            "that decides.",
            swap=("torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)"),
        ),
        Mutant(
            "gamma is missing: the norm's own learned factor.",
            swap=("gamma / torch.sqrt(var + eps)", "1 / torch.sqrt(var + eps)"),
        ),
        Mutant(
            "beta is missing: the norm's own learned offset.",
            swap=("(before - mean) * factor + beta", "(before - mean) * factor"),
        ),
        Mutant(
            "You added the mean. A norm takes it away.",
            swap=("(before - mean)", "(before + mean)"),
        ),
        Mutant(
            "You folded the factor into the bias and left the weight as it was.",
            swap=("weight * factor.reshape(-1, 1, 1, 1)", "weight.clone()"),
        ),
    ),
    hints=(
        "A norm gives y = (u - mean) / sqrt(var + eps) · gamma + beta, where u = Wx + b.",
        "Collect what multiplies x: factor = gamma / sqrt(var + eps), one for each output channel.",
        "weight * factor.reshape(-1, 1, 1, 1), and (bias - mean) * factor + beta.",
    ),
)
