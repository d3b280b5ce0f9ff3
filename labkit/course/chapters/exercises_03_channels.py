"""Exercise 03.1: a scale for each output channel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import choose_qparams
from labkit.core.granularity import block_range
from labkit.core.scheme import QuantScheme
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight


def channel_scales(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric scales of a [out, in] weight, one for each output channel: float32 [out, 1]."""
    lo, hi = block_range(weight, QuantScheme(bits, symmetric=True, granularity="channel"))
    return choose_qparams(lo, hi, bits, symmetric=True)[0]


def _matrices(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, int]]:
    yield torch.tensor([[1.0, -3.5, 2.0], [0.5, 0.25, -7.0], [7.0, 1.0, 1.5]]), 4
    yield torch.tensor([[-2.0, -1.0], [-8.0, -4.0], [0.0, 0.0]]), 3
    yield torch.tensor([[1.0], [-20.0]]), 8
    yield torch.tensor([[3.0, -1.0, 6.0, 0.5]]), 4
    for rows, columns in shapes(rng, 9):
        yield weight(rng, rows, columns), int(rng.integers(2, 9))


def _largest_is_a_code(trial: Trial) -> str | None:
    """the largest |w| of a row lands on the largest code"""
    qmax = 2 ** (trial["bits"] - 1) - 1
    steps = trial["weight"].abs().amax(dim=1, keepdim=True) / trial.got
    off = (steps - qmax).abs() * (steps > 0)
    row = int(off.argmax())
    if float(off[row]) > 1e-3 * qmax:
        return f"in row {row} it is {float(steps[row]):.4g} steps from zero, not {qmax}"
    return None


def _rows_are_independent(trial: Trial) -> str | None:
    """a row's scale depends on that row alone"""
    if len(trial["weight"]) < 2:
        return None
    louder = trial["weight"].clone()
    louder[0] *= 100.0
    again = trial.call(louder, trial["bits"])
    if not torch.allclose(again[1:], trial.got[1:], rtol=1e-5):
        return "row 0 times 100 changed the scale of another row"
    return None


CHANNEL_SCALES = Exercise(
    id="03.1",
    title="A scale for each output channel",
    minutes=6,
    difficulty=1,
    goal="find the scales of a weight per output channel",
    stub='''
    def channel_scales(weight, bits):
        """Symmetric scales of `weight` [out, in], one for each output channel: [out, 1]."""
        ...
    ''',
    solution='''
    def channel_scales(weight, bits):
        """Symmetric scales of `weight` [out, in], one for each output channel: [out, 1]."""
        largest = weight.abs().amax(dim=1, keepdim=True)
        scale = largest / (2 ** (bits - 1) - 1)
        return torch.where(largest > 0, scale, torch.ones_like(scale))
    ''',
    reference=channel_scales,
    generate=_matrices,
    bounds=(_largest_is_a_code, _rows_are_independent, matches_reference(rtol=1e-5)),
    mutants=(
        Mutant(
            "You reduced over axis 0: that gives one scale for each input channel, [1, in]. A row "
            "of [out, in] is an output channel: reduce over axis 1, the scales are [out, 1].",
            swap=("dim=1", "dim=0"),
        ),
        Mutant(
            "The shape is right and the numbers are not: you took the maxima of the columns and "
            "stood them up as [n, 1]. A square matrix hides this. Reduce over axis 1.",
            swap=("amax(dim=1, keepdim=True)", "amax(dim=0)[:, None]"),
        ),
        Mutant(
            "The scales are [out], without the axis that was reduced. weight / scale would then "
            "line them up with the columns, silently if the matrix is square: keepdim=True.",
            swap=("dim=1, keepdim=True", "dim=1"),
        ),
        Mutant(
            "Every row has the same scale, that of the largest weight of all: this is still one "
            "scale per tensor, written out many times.",
            swap=("amax(dim=1, keepdim=True)", "amax().expand(len(weight), 1)"),
        ),
        Mutant(
            "You took the largest value, not the largest |w|: a row whose negative end is longer "
            "gets clipped. Take abs() first.",
            swap=("weight.abs()", "weight"),
        ),
        Mutant(
            "You divided by 2**(bits - 1). The largest code of a symmetric grid is one less: 7 for "
            "4 bits, 127 for 8.",
            swap=("(2 ** (bits - 1) - 1)", "2 ** (bits - 1)"),
        ),
        Mutant(
            "A row of zeros has scale 0, and weight / scale is NaN there. Give such a row scale 1.",
            swap=("torch.where(largest > 0, scale, torch.ones_like(scale))", "scale"),
        ),
        Mutant(
            "You spread max - min over the grid. A symmetric grid is centred on 0: it must reach "
            "the end that lies farther from 0, so the scale comes from the largest |w|.",
            swap=(
                "weight.abs().amax(dim=1, keepdim=True)",
                "(weight.amax(dim=1, keepdim=True) - weight.amin(dim=1, keepdim=True)) / 2",
            ),
        ),
    ),
    hints=(
        "Which elements feed one output? In y = x @ weight.T, output j uses row j alone.",
        "weight.abs().amax(dim=..., keepdim=True) gives the largest magnitudes. Which dim goes?",
        "Divide by the largest code, 2**(bits - 1) - 1; torch.where puts 1 where the row is zero.",
    ),
)
