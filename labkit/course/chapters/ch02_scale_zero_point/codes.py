"""Exercise 02.3: from real numbers to codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import choose_qparams, integer_range, quantize
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight

Arguments = tuple[torch.Tensor, float, int, int, int]


def _cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield torch.tensor([-2.0, -0.6, 0.0, 0.4, 1.0]), 0.25, 100, 0, 255
    yield torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), 1.0, 0, -127, 127  # ties
    yield torch.tensor([-300.0, 40.0, 127.4, 130.0, 1000.0]), 1.0, 0, -127, 127
    yield torch.tensor([-900.0, -3.0, 0.0, 9.0, 700.0]), 1.0, 40, 0, 255
    yield torch.tensor([-0.7, 0.2, 0.9]), 0.3, 8, 0, 15
    yield torch.zeros(4), 1.0, 0, -7, 7
    for index, (rows, columns) in enumerate(shapes(rng, 8)):
        x, symmetric = weight(rng, rows, columns), index % 2 == 0
        bits = 2 + index % 7
        scale, zero_point = choose_qparams(0.6 * x.min(), 0.6 * x.max(), bits, symmetric)
        yield x, float(scale), int(zero_point), *integer_range(bits, symmetric)


def _codes_are_in_range(trial: Trial) -> str | None:
    """codes lie in qmin .. qmax"""
    least, greatest = int(trial.got.min()), int(trial.got.max())
    if least < trial["qmin"] or greatest > trial["qmax"]:
        return f"they run from {least} to {greatest}, not {trial['qmin']} to {trial['qmax']}"
    return None


def _zero_is_exact(trial: Trial) -> str | None:
    """0 becomes the zero-point"""
    code = trial.call(torch.zeros(1), *list(trial.inputs.values())[1:])
    return None if int(code) == trial["zero_point"] else f"it becomes {int(code)}"


def _within_half_a_step(trial: Trial) -> str | None:
    """a value inside the grid comes back within half a step"""
    x, scale, zero_point = trial["x"], trial["scale"], trial["zero_point"]
    inside = (x >= (trial["qmin"] - zero_point) * scale) & (
        x <= (trial["qmax"] - zero_point) * scale
    )
    error = ((trial.got.double() - zero_point) * scale - x).abs() * inside
    if float(error.max()) > 0.5001 * scale:
        worst = int(error.argmax())
        return f"{float(x.flatten()[worst]):.4g} is off by {float(error.max()) / scale:.3g} steps"
    return None


CODES = Exercise(
    id="02.3",
    title="Quantize",
    minutes=6,
    difficulty=2,
    goal="turn real numbers into codes",
    stub='''
    def to_codes(x, scale, zero_point, qmin, qmax):
        """Integer codes (torch.int32, the shape of x) of real numbers x, from qmin to qmax."""
        ...
    ''',
    solution='''
    def to_codes(x, scale, zero_point, qmin, qmax):
        """Integer codes (torch.int32, the shape of x) of real numbers x, from qmin to qmax."""
        codes = torch.round(x / scale) + zero_point
        return torch.clamp(codes, qmin, qmax).to(torch.int32)
    ''',
    reference=quantize,
    generate=_cases,
    bounds=(_codes_are_in_range, _zero_is_exact, _within_half_a_step, matches_reference(rtol=0)),
    forbid=(torch.quantize_per_tensor, torch.fake_quantize_per_tensor_affine),
    mutants=(
        Mutant(
            "You cast to 8 bits before clamping. What does not fit wraps around, so the largest "
            "values come back with the wrong sign. Clamp while they are still floats.",
            swap=(
                "codes = torch.round(x / scale) + zero_point",
                "codes = (torch.round(x / scale) + zero_point).to(torch.int64)"
                ".to(torch.uint8 if qmin == 0 else torch.int8)",
            ),
        ),
        Mutant(
            "You clamped before adding the zero-point. The limits are those of the finished "
            "code: add first, clamp last.",
            source="""
            def to_codes(x, scale, zero_point, qmin, qmax):
                codes = torch.clamp(torch.round(x / scale), qmin, qmax)
                return (codes + zero_point).to(torch.int32)
            """,
        ),
        Mutant(
            "You cut fractions off; a cast to an integer does that too. 0.9 steps become 0, an "
            "error of nearly a whole step. Round to the nearest.",
            swap=("torch.round(x / scale)", "torch.trunc(x / scale)"),
        ),
        Mutant(
            "You rounded down (floor): every value moves towards minus infinity, half a step on "
            "average, and the errors add up in a sum. Round to the nearest.",
            swap=("torch.round(x / scale)", "torch.floor(x / scale)"),
        ),
        Mutant(
            "You rounded halves up. torch, NumPy and IEEE 754 round a half to the even "
            "neighbour, so that ties do not push the mean upwards: 0.5 becomes 0, 2.5 becomes 2.",
            swap=("torch.round(x / scale)", "torch.floor(x / scale + 0.5)"),
        ),
        Mutant(
            "You multiplied by the scale. One step is `scale` wide, so x is x / scale steps.",
            swap=("x / scale", "x * scale"),
        ),
        Mutant(
            "You subtracted the zero-point. It is the code of 0, so it is added here, and "
            "subtracted on the way back.",
            swap=("+ zero_point", "- zero_point"),
        ),
        Mutant(
            "You forgot the zero-point: with you, 0 becomes code 0.",
            swap=(" + zero_point", ""),
        ),
        Mutant(
            "You did not clamp. Values beyond the grid have no code of their own: they take the "
            "first or the last one. That is what clipping means.",
            swap=("torch.clamp(codes, qmin, qmax)", "codes"),
        ),
        Mutant(
            "Your codes are floats. A quantized tensor holds integers: .to(torch.int32).",
            swap=(".to(torch.int32)", ""),
        ),
    ),
    hints=(
        "How many steps is x away from 0? Which whole number is nearest?",
        "0 has the code zero_point. What has the code zero_point + 1?",
        "Round x / scale, add zero_point, clamp to qmin and qmax, and cast last.",
    ),
)
