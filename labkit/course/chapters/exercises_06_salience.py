"""Exercise 06.1: which input channels matter most."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import weight
from labkit.quantize.awq_scales import salience
from labkit.quantize.hessian import InputStats


def salient_channels(x: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` input channels of largest mean |x|, in ascending order."""
    mean = salience(InputStats(weight.shape[1]).add(x))
    return mean.topk(count).indices.sort().values


def _activations(rng: np.random.Generator, sequences: int, tokens: int, columns: int):
    """x [sequences, tokens, columns]: biased, spiky, quiet and loud channels."""
    loudness = rng.permutation(np.geomspace(0.05, 20.0, columns))
    x = rng.standard_normal((sequences, tokens, columns)) * loudness
    x += rng.permutation(np.linspace(-1.0, 1.0, columns)) * loudness * 0.5
    return torch.from_numpy(x.astype(np.float32))


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    # Channel 0 is quiet but for one spike, 1 is loud around 0, 2 is never far from 0.8.
    x = torch.zeros(2, 10, 4)
    x[0, 3, 0] = 30.0
    x[:, :, 1] = torch.tensor([2.0, -2.0] * 5)
    x[:, :, 2] = -0.8
    x[:, :, 3] = 0.1
    heavy = torch.tensor([[0.1, 0.1, 0.1, 9.0], [0.1, 0.2, 0.1, -9.0], [0.2, 0.1, 5.0, 9.0]])
    yield x, heavy, 1
    yield x, heavy, 2
    yield x, heavy, 4
    yield x[:, :, [2, 3, 0, 1]], heavy, 2
    y = torch.zeros(2, 10, 4)
    y[0, :, 0], y[1, :, 1], y[1, 4, 2] = 1.0, 3.0, 10.0
    yield y, heavy, 1
    for _ in range(8):
        columns = int(rng.integers(4, 12))
        x = _activations(rng, int(rng.integers(1, 4)), int(rng.integers(3, 12)), columns)
        w = weight(rng, int(rng.integers(2, 8)), columns)
        yield x, w, int(rng.integers(1, columns))


def _as_many_as_asked(trial: Trial) -> str | None:
    """`count` different channels"""
    found = len(torch.unique(trial.got))
    return None if found == trial["count"] else f"{found} different ones"


def _none_left_is_louder(trial: Trial) -> str | None:
    """no channel that is left out has a larger mean |x|"""
    mean = trial["x"].abs().mean(dim=(0, 1))
    chosen = torch.zeros(len(mean), dtype=torch.bool)
    chosen[trial.got.long()] = True
    if bool(chosen.all()) or float(mean[~chosen].max()) <= float(mean[chosen].min()) * 1.00001:
        return None
    left = int(torch.where(chosen, -1.0, mean).argmax())
    return f"channel {left} is left out; its mean |x| is {float(mean[left]):.3g}"


SALIENT_CHANNELS = Exercise(
    id="06.1",
    title="The channels that matter",
    minutes=6,
    difficulty=1,
    goal="find the salient channels of a layer",
    stub='''
    def salient_channels(x, weight, count):
        """The `count` input channels whose weights matter most: int64 [count], ascending."""
        ...
    ''',
    solution='''
    def salient_channels(x, weight, count):
        """The `count` input channels whose weights matter most: int64 [count], ascending."""
        loudness = x.abs().mean(dim=(0, 1))
        return loudness.topk(count).indices.sort().values
    ''',
    reference=salient_channels,
    answer_key=salience,
    generate=_cases,
    bounds=(_as_many_as_asked, _none_left_is_louder, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You asked the weights. A large weight that meets a small input moves the output "
            "little: the *activations* decide what an error of a weight costs.",
            swap=("x.abs().mean(dim=(0, 1))", "weight.norm(dim=0)"),
        ),
        Mutant(
            "You took the mean of x, not of |x|: a channel that swings between -2 and 2 has mean "
            "0, and matters as much as one that stays at 2.",
            swap=("x.abs().mean(dim=(0, 1))", "x.mean(dim=(0, 1)).abs()"),
        ),
        Mutant(
            "You took the largest |x|. One spike in one token makes a channel salient then; AWQ "
            "averages over tokens. (SmoothQuant takes the maximum, for another purpose.)",
            swap=("x.abs().mean(dim=(0, 1))", "x.abs().amax(dim=(0, 1))"),
        ),
        Mutant(
            "Those are the quietest channels: topk has largest=True for a reason.",
            swap=("topk(count)", "topk(count, largest=False)"),
        ),
        Mutant(
            "You looked at the first sequence alone. Calibration is there to average over texts.",
            swap=("x.abs().mean(dim=(0, 1))", "x[0].abs().mean(dim=0)"),
        ),
        Mutant(
            "The channels come in order of loudness. They are asked for in ascending order, as one "
            "indexes a matrix with them.",
            swap=("indices.sort().values", "indices"),
        ),
        Mutant(
            "You multiplied the loudness by the norm of the weight column. That product says how "
            "much the channel contributes; what an *error* contributes does not depend on the "
            "weight, because rounding errors are of the size of the step, not of the weight.",
            swap=("x.abs().mean(dim=(0, 1))", "x.abs().mean(dim=(0, 1)) * weight.norm(dim=0)"),
        ),
    ),
    hints=(
        "The error of y = W x is D x. Which column of D hurts most: that of a large weight, or "
        "that which meets a large x?",
        "x is [sequences, tokens, in]: two axes are averaged, one is left.",
        "abs, mean over both, topk, then sort the indices.",
    ),
)
