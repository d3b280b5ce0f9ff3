"""Exercise 02.2: scale and zero-point for any range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import choose_qparams
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import vector


def asymmetric_reference(lo: float, hi: float, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point of the unsigned range, by the library."""
    return choose_qparams(lo, hi, bits, symmetric=False)


def _bounds_of_ranges(rng: np.random.Generator) -> Iterator[tuple[float, float, int]]:
    yield -1.0, 3.0, 8
    yield -1.1, 0.9, 2
    yield -0.28, 6.1, 8
    yield 2.0, 6.0, 8
    yield -6.5, -2.5, 4
    yield 0.0, 0.0, 8
    yield 5.0, 5.0, 8
    yield -3.0, -3.0, 4
    for index in range(10):
        lo, hi = vector(rng, 2, skew=float(rng.normal())).sort().values.tolist()
        yield lo, hi, 2 + index % 7


def _zero_point_is_a_code(trial: Trial) -> str | None:
    """the zero-point is a code, 0 to 2**bits - 1"""
    zero_point, last = int(trial.got[1]), 2 ** trial["bits"] - 1
    return None if 0 <= zero_point <= last else f"{zero_point} is not in 0..{last}"


def _scale_covers(trial: Trial) -> str | None:
    """2**bits - 1 steps must span the range, widened to contain 0"""
    got, expected = float(trial.got[0]), float(trial.expected[0])
    if abs(got - expected) > 1e-5 * expected:
        return f"the scale is {got:.6g}, not {expected:.6g}"
    return None


def _ends_within_half_a_step(trial: Trial) -> str | None:
    """the grid must reach lo and hi to within half a step"""
    scale, zero_point = float(trial.got[0]), int(trial.got[1])
    first, last = -zero_point * scale, (2 ** trial["bits"] - 1 - zero_point) * scale
    lo, hi, slack = min(trial["lo"], 0.0), max(trial["hi"], 0.0), 0.501 * scale
    if first > lo + slack or last < hi - slack:
        return f"it runs from {first:.4g} to {last:.4g}, the data from {lo:.4g} to {hi:.4g}"
    # A range of nothing fits anywhere; its zero-point is a convention.
    if lo == hi and zero_point != 0:
        return f"a range of zeros alone has zero-point 0, not {zero_point}"
    return None


ASYMMETRIC = Exercise(
    id="02.2",
    title="Asymmetric parameters",
    minutes=6,
    difficulty=2,
    goal="choose scale and zero-point for any range",
    stub='''
    def asymmetric_params(lo, hi, bits):
        """(scale, zero_point) of codes 0 .. 2**bits - 1 for real numbers from lo to hi."""
        ...
    ''',
    solution='''
    def asymmetric_params(lo, hi, bits):
        """(scale, zero_point) of codes 0 .. 2**bits - 1 for real numbers from lo to hi."""
        lo, hi = min(lo, 0.0), max(hi, 0.0)
        if lo == hi:
            return 1.0, 0
        scale = (hi - lo) / (2**bits - 1)
        zero_point = round(-lo / scale)
        return scale, zero_point
    ''',
    reference=asymmetric_reference,
    answer_key=choose_qparams,
    generate=_bounds_of_ranges,
    bounds=(_zero_point_is_a_code, _scale_covers, _ends_within_half_a_step),
    mutants=(
        Mutant(
            "You left 0 out of the range. For data from 2 to 6 the zero-point then lies outside "
            "of the codes. Widen the range first: lo = min(lo, 0), hi = max(hi, 0).",
            swap=("min(lo, 0.0), max(hi, 0.0)", "lo, hi"),
        ),
        Mutant(
            "You left 0 out of the range and clamped the zero-point instead. The clamp moves the "
            "whole grid away from the data: for 2 to 6 it now covers 0 to 4. Widen the range.",
            swap=(
                ("min(lo, 0.0), max(hi, 0.0)", "lo, hi"),
                ("round(-lo / scale)", "min(max(round(-lo / scale), 0), 2**bits - 1)"),
            ),
        ),
        Mutant(
            "Your zero-point is not rounded. It is a code, and codes are integers: otherwise 0 "
            "falls between two of them and padding, ReLU and masks stop being exact.",
            swap=("round(-lo / scale)", "-lo / scale"),
        ),
        Mutant(
            "You cut the zero-point off (int) where it should be rounded. The grid is then up to "
            "a whole step away from the data, not half a step.",
            swap=("round(-lo / scale)", "int(-lo / scale)"),
        ),
        Mutant(
            "Your zero-point has the wrong sign. lo must become code 0: "
            "lo / scale + zero_point = 0.",
            swap=("round(-lo / scale)", "round(lo / scale)"),
        ),
        Mutant(
            "You divided by 2**bits. Between 2**bits codes there are 2**bits - 1 steps: fence "
            "posts and gaps.",
            swap=("(2**bits - 1)", "2**bits"),
        ),
        Mutant(
            "A range of zeros alone has scale 0 with you, and the division by it fails. The "
            "convention is scale 1 and zero-point 0.",
            swap=("    if lo == hi:\n        return 1.0, 0\n", ""),
        ),
        Mutant(
            "You returned scale 1 for every constant. Only a constant 0 is an empty range: "
            "5 alone becomes the range 0 to 5 once 0 is in it, and comes back exactly.",
            swap=(
                ("    lo, hi = min(lo, 0.0), max(hi, 0.0)\n    if lo == hi:\n"
                 "        return 1.0, 0\n",
                 "    if lo == hi:\n        return 1.0, 0\n"
                 "    lo, hi = min(lo, 0.0), max(hi, 0.0)\n"),
            ),
        ),
        Mutant(
            "You made the range symmetric. Then half of the codes are spent on values that do "
            "not occur, for instance after SiLU, whose minimum is -0.28.",
            swap=(
                "min(lo, 0.0), max(hi, 0.0)",
                "-max(abs(lo), abs(hi)), max(abs(lo), abs(hi))",
            ),
        ),
        Mutant(
            "Your zero-point belongs to signed codes, -2**(bits-1) and up. Here codes start "
            "at 0.",
            swap=("round(-lo / scale)", "round(-lo / scale) - 2 ** (bits - 1)"),
        ),
    ),
    hints=(
        "0 must be in the range, whatever the data. What are lo and hi then?",
        "2**bits codes have 2**bits - 1 steps between them. That gives the scale.",
        "Which code makes (0 - zero_point) * scale equal to lo? Round it. And what if lo == hi?",
    ),
)  # fmt: skip
