"""Exercise 02.1: the scale of a symmetric grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import choose_qparams
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight


def symmetric_reference(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale of the narrow symmetric range, by the library."""
    return choose_qparams(x.min(), x.max(), bits, symmetric=True)[0]


def _tensors(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, int]]:
    yield torch.tensor([-3.0, 1.0]), 4
    yield torch.tensor([-0.5, 1.0, 6.35]), 8
    yield torch.tensor([-8.0, -2.0]), 8
    yield torch.zeros(3), 8
    yield torch.tensor([0.75]), 2
    for index, (rows, columns) in enumerate(shapes(rng, 8)):
        yield weight(rng, rows, columns), 2 + index % 7


def _scale_is_positive(trial: Trial) -> str | None:
    """a scale is a distance, so it is greater than 0"""
    return None if float(trial.got) > 0 else f"it is {float(trial.got):.4g}"


def _largest_value_is_the_last_code(trial: Trial) -> str | None:
    """the largest |x| must land on the largest code, 2**(bits-1) - 1"""
    last, largest = 2 ** (trial["bits"] - 1) - 1, float(trial["x"].abs().max())
    steps = largest / float(trial.got)
    if largest > 0 and abs(steps - last) > 1e-3 * last:
        return f"{largest:.4g} is {steps:.4g} steps from 0, and the largest code is {last}"
    return None


SYMMETRIC = Exercise(
    id="02.1",
    title="Symmetric parameters",
    minutes=5,
    difficulty=1,
    goal="choose the scale of a symmetric grid",
    stub='''
    def symmetric_scale(x, bits):
        """The step of a symmetric grid that just covers the tensor x; 1 if x is all zeros."""
        ...
    ''',
    solution='''
    def symmetric_scale(x, bits):
        """The step of a symmetric grid that just covers the tensor x; 1 if x is all zeros."""
        largest = x.abs().max()
        if largest == 0:
            return 1.0
        return largest / (2 ** (bits - 1) - 1)
    ''',
    reference=symmetric_reference,
    answer_key=choose_qparams,
    generate=_tensors,
    bounds=(_scale_is_positive, _largest_value_is_the_last_code, matches_reference(rtol=1e-5)),
    mutants=(
        Mutant(
            "You divided by 2**bits. That counts all codes; from 0 up to the largest code there "
            "are only 2**(bits-1) - 1 steps, 127 for 8 bits.",
            swap=("2 ** (bits - 1) - 1", "2 ** bits"),
        ),
        Mutant(
            "You divided by 2**(bits-1), as if there were a code +128. An 8-bit integer ends at "
            "127; -128 has no partner and stays unused here. The largest value would be clipped.",
            swap=("2 ** (bits - 1) - 1", "2 ** (bits - 1)"),
        ),
        Mutant(
            "You took the largest value, not the largest magnitude. In [-3, 1] it is -3 that "
            "needs the room.",
            swap=("x.abs().max()", "x.max()"),
        ),
        Mutant(
            "You took the magnitude of the largest value. Take magnitudes first, then the "
            "largest: in [-3, 1] that is 3, not 1.",
            swap=("x.abs().max()", "x.max().abs()"),
        ),
        Mutant(
            "You divided the range from least to greatest by the number of steps. That is the "
            "asymmetric scale: a symmetric grid has its middle at 0, wherever the data lies.",
            swap=(
                ("x.abs().max()", "x.max() - x.min().clamp(max=0)"),
                ("2 ** (bits - 1) - 1", "2 ** bits - 1"),
            ),
        ),
        Mutant(
            "A tensor of zeros has scale 0 with you, and dividing by it gives NaN. Any positive "
            "scale will do there; the convention is 1.",
            swap=("    if largest == 0:\n        return 1.0\n", ""),
        ),
        Mutant(
            "You divided by 2**(bits-1) - 1/2. GPTQ and compressed-tensors do that to use the "
            "code -128 too; here the range is symmetric, and the largest |x| lands on 127.",
            swap=("2 ** (bits - 1) - 1", "2 ** (bits - 1) - 0.5"),
        ),
        Mutant(
            "You returned steps per unit, the inverse. The scale is the width of one step: the "
            "real number that code 1 stands for.",
            swap=(
                "largest / (2 ** (bits - 1) - 1)",
                "(2 ** (bits - 1) - 1) / largest",
            ),
        ),
    ),
    hints=(
        "Which value of x is hardest to reach from 0? Its sign does not matter.",
        "How many steps lie between code 0 and the largest code? For 8 bits the codes are "
        "-127 to 127.",
        "x.abs().max() / (2 ** (bits - 1) - 1), and 1 where that maximum is 0.",
    ),
)
