"""Exercise 04.3: SmoothQuant's scales, folded into a norm's gain and the weight behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight
from labkit.quantize.smoothquant import column_maxima, smoothing_scales


def smooth(
    gain: torch.Tensor, weight: torch.Tensor, x_max: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain / s, weight * s) with s = x_max^alpha / w_max^(1 - alpha) for each input channel."""
    scales = smoothing_scales(x_max, column_maxima([weight]), alpha)
    return gain / scales, weight * scales


def _layer(
    rng: np.random.Generator, out: int, columns: int, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    matrix = weight(rng, out, columns)
    matrix[:, 0] = -matrix[:, 0].abs() - 0.1  # a column without a positive value
    gain = torch.from_numpy(rng.uniform(0.5, 2.0, columns).astype(np.float32))
    x_max = torch.from_numpy(rng.uniform(0.5, 4.0, columns).astype(np.float32))
    x_max[int(rng.integers(columns))] *= 50.0
    return gain, matrix, x_max, alpha


def _cases(
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]]:
    gain, matrix, x_max, _ = _layer(rng, 4, 6, 0.5)
    x_max[2], gain[2] = 0.0, 0.0  # a channel that is never active
    matrix[:, 4] = 0.0  # one that nobody reads
    yield gain, matrix, x_max, 0.7
    for alpha in (0.0, 1.0, 0.5, 0.25):
        yield _layer(rng, 5, 5, alpha)
    for out, columns in shapes(rng, 6):
        yield _layer(rng, out, columns + 1, float(rng.uniform(0.3, 0.9)))


def _product_stays(trial: Trial) -> str | None:
    """for any input, gain and weight together compute what they did before"""
    gain, weight = trial.got
    if gain.shape != trial["gain"].shape or weight.shape != trial["weight"].shape:
        return f"the shapes are {list(gain.shape)} and {list(weight.shape)}"
    before, after = trial["gain"] * trial["weight"], gain * weight
    wrong = ~torch.isclose(before, after, rtol=1e-4, atol=1e-6)
    if not bool(wrong.any()):
        return None
    row, column = (int(i) for i in wrong.nonzero()[0])
    return (
        f"gain x weight at [{row}, {column}] was {float(before[row, column]):.4g} "
        f"and is {float(after[row, column]):.4g}"
    )


SMOOTH = Exercise(
    id="04.3",
    title="Smooth a norm and its linear layer",
    minutes=12,
    difficulty=3,
    goal="move the loudness of a channel from activations to weights, for free",
    stub='''
    def smooth(gain, weight, x_max, alpha):
        """(new gain [in], new weight [out, in]): the same layer, with balanced channels."""
        ...
    ''',
    solution='''
    def smooth(gain, weight, x_max, alpha):
        """(new gain [in], new weight [out, in]): the same layer, with balanced channels."""
        w_max = weight.abs().amax(dim=0)
        scales = x_max ** alpha / w_max ** (1 - alpha)
        scales = torch.where((x_max == 0) | (w_max == 0), torch.ones_like(scales), scales)
        return gain / scales, weight * scales
    ''',
    reference=smooth,
    answer_key=smoothing_scales,
    generate=_cases,
    bounds=(_product_stays, matches_reference(rtol=1e-4, atol=1e-7)),
    mutants=(
        Mutant(
            "The activations were never divided: you multiplied the weight and left the gain. The "
            "layer now computes something else. What the weight gains, the norm must lose.",
            swap=("return gain / scales", "return gain"),
        ),
        Mutant(
            "You folded it the wrong way round: the gain got louder and the weight quieter, so the "
            "outliers grew. Divide the gain by s, multiply the weight's columns by s.",
            swap=("gain / scales, weight * scales", "gain * scales, weight / scales"),
        ),
        Mutant(
            "alpha and 1 - alpha are swapped. alpha is the activations' exponent: at alpha = 1 all "
            "channels of x become equally loud.",
            swap=("x_max ** alpha / w_max ** (1 - alpha)", "x_max ** (1 - alpha) / w_max ** alpha"),
        ),
        Mutant(
            "You multiplied the two maxima. s balances them, so the weight's maximum divides: "
            "x_max**alpha / w_max**(1 - alpha).",
            swap=("x_max ** alpha / w_max", "x_max ** alpha * w_max"),
        ),
        Mutant(
            "You took the largest value of a column, not the largest |w|. A column whose loudest "
            "weight is negative gets a wrong factor.",
            swap=("weight.abs().amax(dim=0)", "weight.amax(dim=0).clamp(min=0)"),
        ),
        Mutant(
            "You scaled the rows of the weight, its outputs. The factor belongs to an *input* "
            "channel, a column.",
            source="""
            def smooth(gain, weight, x_max, alpha):
                w_max = weight.abs().amax(dim=0)
                scales = x_max ** alpha / w_max ** (1 - alpha)
                scales = torch.where((x_max == 0) | (w_max == 0), torch.ones_like(scales), scales)
                rows = scales[torch.arange(len(weight)) % len(scales)]
                return gain / scales, weight * rows[:, None]
            """,
        ),
        Mutant(
            "You used the maximum of the whole weight. Every input channel has its own.",
            swap=("weight.abs().amax(dim=0)", "weight.abs().amax().expand(weight.shape[1])"),
        ),
        Mutant(
            "A channel that is silent on one side gives s = 0 or infinity, and the fold makes it "
            "NaN. There is nothing to balance there: s = 1.",
            swap=(
                "torch.where((x_max == 0) | (w_max == 0), torch.ones_like(scales), scales)",
                "scales",
            ),
        ),
    ),
    hints=(
        "s has one number for each input channel: x_max [in], and the largest |w| of each column.",
        "s = x_max**alpha / w_max**(1 - alpha). Where either maximum is 0, s = 1.",
        "x = norm * gain. To divide x by s, divide the gain; to make up for it, multiply the "
        "columns of the weight: weight * s broadcasts along its last axis.",
    ),
)
