"""Exercises 01.3 and 01.4: a scale that saves gradients from zero, and levels made for weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.codebooks import normal_float4
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import vector


def power_of_two_scale(gradients: torch.Tensor, largest: float) -> float:
    """The largest power of two by which `gradients` can be multiplied without overflow."""
    peak = float(gradients.abs().max())
    if peak == 0.0:
        return 1.0
    return 2.0 ** (math.frexp(largest / peak)[1] - 1)


def _gradients(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, float]]:
    yield torch.tensor([1e-7, -3e-6, 2e-8]), 65504.0  # the largest magnitude is negative
    yield torch.tensor([0.5, 0.25]), 65504.0
    yield torch.tensor([1.0, -0.75]), 64.0  # 64 itself still fits
    yield torch.tensor([300.0, 1.0]), 10.0  # too large already: the scale is below 1
    yield torch.zeros(3), 448.0
    for _ in range(8):
        sizes = vector(rng, 6, skew=-1.0) * 2.0 ** float(rng.integers(-30, 3))
        yield sizes, float(rng.choice([65504.0, 57344.0, 448.0]))


def _nothing_overflows(trial: Trial) -> str | None:
    """no scaled gradient may exceed the largest number"""
    peak = float(trial["gradients"].abs().max()) * float(trial.got)
    return f"one becomes {peak:.6g}" if peak > trial["largest"] else None


def _is_power_of_two(trial: Trial) -> str | None:
    """a power of two changes the exponent alone, so that scaling back is exact"""
    if trial.got <= 0 or math.frexp(trial.got)[0] != 0.5:
        return f"{trial.got:.6g} is none"
    return None


def _is_largest(trial: Trial) -> str | None:
    """twice the scale must overflow, or the small gradients are not lifted as far as possible"""
    peak = float(trial["gradients"].abs().max()) * float(trial.got)
    if 0 < 2 * peak <= trial["largest"]:
        return f"twice {trial.got:.6g} would still fit"
    return None


LOSS_SCALE = Exercise(
    id="01.3",
    title="Choose a loss scale",
    minutes=6,
    difficulty=1,
    goal="lift gradients into the range of a 16-bit format without loss",
    stub='''
    def loss_scale(gradients, largest):
        """The largest power of two, a Python float, that keeps every |gradient| * scale
        within `largest`, the largest number of the format.

        gradients: float32 tensor. All zero: the scale is 1.
        """
        ...
    ''',
    solution='''
    def loss_scale(gradients, largest):
        """The largest power of two, a Python float, that keeps every |gradient| * scale
        within `largest`, the largest number of the format.

        gradients: float32 tensor. All zero: the scale is 1.
        """
        peak = gradients.abs().max().item()
        if peak == 0:
            return 1.0
        return 2.0 ** math.floor(math.log2(largest / peak))
    ''',
    reference=power_of_two_scale,
    generate=_gradients,
    bounds=(_nothing_overflows, _is_power_of_two, _is_largest, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You ignored negative gradients: -3 overflows as soon as 3 does. Take the largest "
            "absolute value.",
            swap=("gradients.abs().max().item()", "max(gradients.max().item(), 0)"),
        ),
        Mutant(
            "You looked at the smallest gradient. The largest one decides: it overflows first.",
            swap=("gradients.abs().max()", "gradients.abs().min()"),
        ),
        Mutant(
            "You looked at the average gradient. The largest one decides: it overflows first, and "
            "one infinity spoils the whole step.",
            swap=("gradients.abs().max()", "gradients.abs().mean()"),
        ),
        Mutant(
            "You rounded the exponent up: the largest gradient then exceeds the largest number.",
            swap=("math.floor(", "math.ceil("),
        ),
        Mutant(
            "You gave the ratio itself. Only a power of two leaves the mantissas as they are, so "
            "that dividing by it afterwards is exact.",
            swap=("2.0 ** math.floor(math.log2(largest / peak))", "largest / peak"),
        ),
        Mutant(
            "You gave the exponent. The scale is two to that power.",
            swap=(
                "2.0 ** math.floor(math.log2(largest / peak))",
                "float(math.floor(math.log2(largest / peak)))",
            ),
        ),
        Mutant(
            "You gave the factor that undoes the scaling: the gradients must grow to fill the "
            "range, so divide `largest` by the peak.",
            swap=("largest / peak", "peak / largest"),
        ),
        Mutant(
            "You used the natural logarithm. The exponent of a power of two is log2.",
            swap=("math.log2(", "math.log("),
        ),
    ),
    hints=(
        "Which gradient overflows first? By what factor may it grow at most?",
        "The factor is largest / peak. Which power of two is the last one below it? "
        "math.log2 and math.floor tell.",
    ),
)


def normal_float_levels(bits: int, offset: float) -> torch.Tensor:
    """NF4's construction for any number of bits: float32 ``[2**bits]``, ascending."""
    half = 2 ** (bits - 1)
    above = torch.special.ndtri(torch.linspace(0.5, offset, half + 1, dtype=torch.float64))
    below = torch.special.ndtri(torch.linspace(0.5, offset, half, dtype=torch.float64))
    levels = torch.cat([-below[1:].flip(0), above])
    return (levels / levels.max()).float()


def _level_cases(rng: np.random.Generator) -> Iterator[tuple[int, float]]:
    yield 4, 0.9677083
    yield 2, 0.9
    yield 3, 0.95
    for _ in range(8):
        yield int(rng.integers(2, 7)), float(rng.uniform(0.8, 0.995))


def _zero_is_exact(trial: Trial) -> str | None:
    """zero must be a level, once: padding and pruned weights are exactly 0"""
    zeros = int((trial.got == 0).sum())
    if zeros == 1:
        return None
    return f"it occurs {zeros} times; the nearest level is {float(trial.got.abs().min()):.4g}"


def _spans_one(trial: Trial) -> str | None:
    """the levels ascend from -1 to 1"""
    low, high = float(trial.got[0]), float(trial.got[-1])
    if not bool((trial.got[1:] > trial.got[:-1]).all()):
        return "they do not ascend"
    return None if abs(low + 1) + abs(high - 1) < 1e-5 else f"they span {low:.4g} to {high:.4g}"


def _one_more_above_zero(trial: Trial) -> str | None:
    """half of the levels lie above zero, one fewer below it"""
    above, below = int((trial.got > 0).sum()), int((trial.got < 0).sum())
    if (above, below) == (2 ** (trial["bits"] - 1), 2 ** (trial["bits"] - 1) - 1):
        return None
    return f"{above} lie above and {below} below"


NORMAL_FLOAT = Exercise(
    id="01.4",
    title="Build NF4 from quantiles",
    minutes=10,
    difficulty=3,
    goal="place the levels of a format where the weights are",
    stub='''
    def normal_float(bits, offset):
        """The 2**bits levels of NormalFloat in ascending order, a float32 tensor.

        2**(bits - 1) levels above zero, one fewer below it, and zero itself. On each side
        they are quantiles of the normal distribution (torch.special.ndtri) at evenly spaced
        probabilities from 0.5 to `offset`, 0.5 being the zero. All divided by the largest.
        """
        ...
    ''',
    solution='''
    def normal_float(bits, offset):
        """The 2**bits levels of NormalFloat in ascending order, a float32 tensor.

        2**(bits - 1) levels above zero, one fewer below it, and zero itself. On each side
        they are quantiles of the normal distribution (torch.special.ndtri) at evenly spaced
        probabilities from 0.5 to `offset`, 0.5 being the zero. All divided by the largest.
        """
        half = 2 ** (bits - 1)
        above = torch.special.ndtri(torch.linspace(0.5, offset, half + 1))[1:]
        below = -torch.special.ndtri(torch.linspace(0.5, offset, half))[1:]
        levels = torch.cat([below.flip(0), torch.zeros(1), above])
        return levels / levels.max()
    ''',
    reference=normal_float_levels,
    answer_key=normal_float4,
    generate=_level_cases,
    bounds=(
        _zero_is_exact,
        _spans_one,
        _one_more_above_zero,
        matches_reference(rtol=1e-4, atol=1e-5),
    ),
    mutants=(
        Mutant(
            "You spread all levels symmetrically over 1 - offset to offset. Then none of them is "
            "zero: the middle pair lies to its left and right.",
            source="""
            def normal_float(bits, offset):
                levels = torch.special.ndtri(torch.linspace(1 - offset, offset, 2**bits))
                return levels / levels.max()
            """,
        ),
        Mutant(
            "You did not normalise. The block's largest weight is scaled to 1, so the largest "
            "level must be 1 too.",
            swap=("levels / levels.max()", "levels"),
        ),
        Mutant(
            "You spaced the levels evenly. That is INT4; NF4 has evenly spaced probabilities, and "
            "the levels are their quantiles.",
            swap=(
                (
                    "torch.special.ndtri(torch.linspace(0.5, offset, half + 1))[1:]",
                    "torch.linspace(0, 1, half + 1)[1:]",
                ),
                (
                    "-torch.special.ndtri(torch.linspace(0.5, offset, half))[1:]",
                    "-torch.linspace(0, 1, half)[1:]",
                ),
            ),
        ),
        Mutant(
            "Your longer half lies below zero. NF4 gives the extra level to the positive side.",
            swap=(("offset, half)", "offset, 1 + half)"), ("offset, half + 1)", "offset, half)")),
        ),
        Mutant(
            "You let the probabilities run up to 1, whose quantile is infinite. That is what "
            "`offset` is for: the last probability stays short of 1.",
            swap=(("offset, half + 1", "1.0, half + 1"), ("offset, half)", "1.0, half)")),
        ),
        Mutant(
            "You used the distribution function where its inverse is needed: ndtri turns a "
            "probability into a number, ndtr does the opposite.",
            swap=(
                (
                    "torch.special.ndtri(torch.linspace(0.5, offset, half + 1))",
                    "torch.special.ndtr(torch.linspace(0.5, offset, half + 1))",
                ),
                (
                    "torch.special.ndtri(torch.linspace(0.5, offset, half))",
                    "torch.special.ndtr(torch.linspace(0.5, offset, half))",
                ),
            ),
        ),
        Mutant(
            "Your codebook holds zero twice, once from each side: one code is wasted. Leave it out "
            "on the side below, and space the other side for one level more.",
            source="""
            def normal_float(bits, offset):
                half = torch.special.ndtri(torch.linspace(0.5, offset, 2 ** (bits - 1)))
                levels = torch.cat([-half.flip(0), half])
                return levels / levels.max()
            """,
        ),
        Mutant(
            "The levels below zero are in the wrong order: mirrored, they must be turned round.",
            swap=("below.flip(0)", "below"),
        ),
    ),
    hints=(
        "Build the two sides apart: probabilities from 0.5 to `offset` with torch.linspace, then "
        "torch.special.ndtri. How many points does each side need, counting its zero?",
        "The side above needs 2**(bits-1) + 1 points, the side below 2**(bits-1): both contain "
        "probability 0.5, whose quantile is 0. Keep one zero.",
        "Below: negate and flip. Join below, zero, above; divide by the largest.",
    ),
)
