"""Exercises 03.2 and 03.3: two ways to say how far a quantized tensor is from the original."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from labkit.core import metrics
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight


def sqnr_db(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """10 log10(sum x² / sum (x - x̂)²)."""
    return metrics.sqnr_db(reference, approximation)


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    """Cosine of the angle between the flattened tensors."""
    return metrics.cosine(x, y)


def _pairs(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.5]])
    yield torch.tensor([[5.0, 5.0], [5.0, 6.0]]), torch.tensor([[4.5, 4.5], [4.5, 5.0]])
    yield torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]])
    yield torch.zeros(2, 2), torch.zeros(2, 2)
    yield torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 2)
    yield torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[-2.0, -1.0], [-4.0, 2.5]])
    for rows, columns in shapes(rng, 8):
        x = weight(rng, rows + 1, columns + 1) + float(rng.uniform(0.2, 2.0))
        step = float(rng.uniform(0.05, 0.6))
        # Floor, so that the error has a mean of its own.
        yield x, torch.floor(x / step) * step


def _unit_does_not_matter(trial: Trial) -> str | None:
    """both tensors times 10 have the same ratio"""
    again = trial.call(trial["reference"] * 10, trial["approximation"] * 10)
    if math.isfinite(trial.got) and abs(again - trial.got) > 1e-2:
        return f"{float(again):.4g} dB, before {float(trial.got):.4g}"
    return None


def _twice_the_error(trial: Trial) -> str | None:
    """twice the error is 6.02 dB less"""
    x, y = trial["reference"], trial["approximation"]
    if not math.isfinite(trial.expected):
        return None
    lost = trial.got - trial.call(x, x + 2 * (y - x))
    return None if abs(lost - 6.0206) < 1e-2 else f"it is {float(lost):.4g} dB less"


SQNR = Exercise(
    id="03.2",
    title="Signal to quantization noise",
    minutes=6,
    difficulty=2,
    goal="measure quantization error in decibels",
    stub='''
    def sqnr_db(reference, approximation):
        """10 log10(power of the signal / power of the error), over all elements; inf if exact."""
        ...
    ''',
    solution='''
    def sqnr_db(reference, approximation):
        """10 log10(power of the signal / power of the error), over all elements; inf if exact."""
        error = reference - approximation
        signal, noise = reference.square().sum(), error.square().sum()
        if noise == 0:
            return math.inf
        return float(10 * torch.log10(signal / noise))
    ''',
    reference=sqnr_db,
    answer_key=metrics.sqnr_db,
    generate=_pairs,
    bounds=(_unit_does_not_matter, _twice_the_error, matches_reference(rtol=1e-4, atol=1e-3)),
    mutants=(
        Mutant(
            "You used 20 log10 on a ratio of powers. 20 belongs to amplitudes: the square is "
            "already in the power, so it is 10.",
            swap=("10 * torch.log10", "20 * torch.log10"),
        ),
        Mutant(
            "You took the ratio of amplitudes (square roots, or sums of |x|) and 10 log10: that is "
            "half of the decibels. Use sums of squares with 10.",
            swap=("signal / noise)", "signal.sqrt() / noise.sqrt())"),
        ),
        Mutant(
            "You removed the mean from the signal (a variance). The mean is part of what the "
            "tensor says, and of what must be kept: use the mean square.",
            swap=(
                "reference.square().sum()",
                "(reference - reference.mean()).square().sum()",
            ),
        ),
        Mutant(
            "You removed the mean from the error (a variance), so a grid that shifts every value "
            "by the same amount looks exact. Square the error as it is.",
            swap=("error.square().sum()", "(error - error.mean()).square().sum()"),
        ),
        Mutant(
            "Your ratio is upside down: noise over signal. Better must be larger.",
            swap=("signal / noise)", "noise / signal)"),
        ),
        Mutant(
            "You used the natural logarithm. A decibel is a tenth of a power of ten: log10.",
            swap=("torch.log10", "torch.log"),
        ),
        Mutant(
            "You took the power of the approximation as the signal. The original is the signal; "
            "a quantizer that clips would otherwise lower its own standard.",
            swap=("reference.square()", "approximation.square()"),
        ),
        Mutant(
            "You averaged the decibels of the rows. Add the powers of all elements first, and take "
            "one logarithm: the average of logarithms hides one bad row.",
            source="""
            def sqnr_db(reference, approximation):
                noise = (reference - approximation).square().sum(dim=1)
                if noise.sum() == 0:
                    return math.inf
                signal = reference.square().sum(dim=1)
                return float((10 * torch.log10(signal / noise)).mean())
            """,
        ),
        Mutant(
            "Zeros rebuilt as zeros gave NaN, from 0 / 0. There is no error there: answer infinity "
            "before you divide.",
            swap=("if noise == 0:", "if noise < 0:"),
        ),
    ),
    hints=(
        "Power is the sum (or the mean) of squares. Which two tensors have a power here?",
        "signal = sum of reference**2; noise = sum of (reference - approximation)**2.",
        "If noise is 0 return math.inf, else 10 * log10(signal / noise).",
    ),
)


def _length_does_not_matter(trial: Trial) -> str | None:
    """a positive factor on either tensor changes nothing"""
    again = trial.call(trial["x"] * 4, trial["y"] * 0.5)
    if abs(again - trial.got) > 1e-4:
        return f"{float(again):.4g}, before {float(trial.got):.4g}"
    return None


COSINE = Exercise(
    id="03.3",
    title="Cosine similarity",
    minutes=4,
    difficulty=1,
    goal="measure the angle between two tensors",
    stub='''
    def cosine(x, y):
        """Cosine of the angle between all of x and all of y; two zeros: 1, one zero: 0."""
        ...
    ''',
    solution='''
    def cosine(x, y):
        """Cosine of the angle between all of x and all of y; two zeros: 1, one zero: 0."""
        x, y = x.flatten(), y.flatten()
        lengths = x.norm() * y.norm()
        if lengths == 0:
            return float(x.norm() == y.norm())
        return float(torch.dot(x, y) / lengths)
    ''',
    reference=cosine,
    answer_key=metrics.cosine,
    generate=_pairs,
    bounds=(_length_does_not_matter, matches_reference(rtol=1e-4, atol=1e-5)),
    forbid=(functional.cosine_similarity, torch.cosine_similarity),
    mutants=(
        Mutant(
            "You removed the means first: that is the correlation. The cosine of a quantized "
            "tensor keeps them, for a shifted output is a different output.",
            swap=(
                "x, y = x.flatten(), y.flatten()",
                "x, y = x.flatten() - x.mean(), y.flatten() - y.mean()",
            ),
        ),
        Mutant(
            "You did not divide by the lengths: this is the inner product, and grows with the "
            "size of the numbers.",
            swap=("torch.dot(x, y) / lengths", "torch.dot(x, y)"),
        ),
        Mutant(
            "You divided by the length of x twice. Both lengths belong there, or a factor on y "
            "changes the result.",
            swap=("torch.dot(x, y) / lengths", "torch.dot(x, y) / x.norm() ** 2"),
        ),
        Mutant(
            "You divided by the squared lengths: the square roots are missing.",
            swap=("torch.dot(x, y) / lengths", "torch.dot(x, y) / lengths**2"),
        ),
        Mutant(
            "You took the absolute value. A tensor with all signs flipped is as wrong as can be, "
            "and its cosine is -1.",
            swap=("torch.dot(x, y) / lengths", "torch.dot(x, y).abs() / lengths"),
        ),
        Mutant(
            "You averaged the cosines of the rows. Flatten first: one angle between two long "
            "vectors, in which large rows count for more.",
            source="""
            def cosine(x, y):
                if x.norm() * y.norm() == 0:
                    return float(x.norm() == y.norm())
                lengths = x.norm(dim=1) * y.norm(dim=1)
                return float(((x * y).sum(dim=1) / lengths.clamp(min=1e-12)).mean())
            """,
        ),
        Mutant(
            "You gave the cosine distance, 1 - cos. Here 1 means the same direction.",
            swap=("torch.dot(x, y) / lengths", "1 - torch.dot(x, y) / lengths"),
        ),
        Mutant(
            "A zero tensor gave NaN: its length is 0, and 0 / 0 has no value. The text says what "
            "to answer there.",
            swap=("if lengths == 0:", "if lengths < 0:"),
        ),
    ),
    hints=(
        "cos = <x, y> / (|x| |y|), with x and y as long vectors.",
        "torch.dot(x.flatten(), y.flatten()), and .norm() for the lengths.",
        "Handle lengths of 0 first: both zero give 1.0, one zero gives 0.0.",
    ),
)
