"""Exercise 10.6: an FP8 product with a calibrated activation scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.float8_tensor import Float8Tensor
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import weight
from labkit.quantize.float8_activation import quantize_float8

Tensor = torch.Tensor


def fp8_product(x: Tensor, w: Tensor, x_amax: float) -> Tensor:
    """[n, out] float32."""
    scale = torch.tensor([[x_amax / 448]])
    codes, _ = quantize_float8(x, scale=scale)
    stored = Float8Tensor.quantize(w)
    return (codes.float() @ stored.codes.float().T) * scale * stored.scale.T


def _cases(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, float]]:
    for number in range(10):
        rows = int(rng.integers(2, 6))
        out = rows if number % 2 else int(rng.integers(2, 7))
        columns = out if number % 3 == 0 else int(rng.integers(3, 9))
        x, w = weight(rng, rows, columns), weight(rng, out, columns)
        x[0, 0], w[-1, -1] = -3 * float(x.abs().max()), -2 * float(w.abs().max())
        if number == 2:
            w[0] = 0  # a channel that was pruned
        if number == 3:
            x = x * 1e-6
        # Calibration saw less than this x in some cases, and more in others.
        yield x, w, float(x.abs().max()) * (0.5 if number % 2 else 1.7)


def _finite(trial: Trial) -> str | None:
    """an x beyond the calibrated range is clipped: it does not become NaN"""
    if bool(torch.isfinite(trial.got).all()):
        return None
    return "there are NaN in the product"


_DOC = '''
    def fp8_product(x, w, x_amax):
        """x @ w.T with E4M3 codes on both sides: float32 [n, out].

        x: float [n, in]; its one scale maps x_amax, found in calibration, to 448. w: float
        [out, in]; each output channel's largest magnitude is mapped to 448.
        """

        def cast(t):
            """t in E4M3, as chips without saturation do it: what is too large becomes NaN."""
            return torch.where(t.abs() > 464, math.nan, t.to(torch.float8_e4m3fn).float())
'''

FP8 = Exercise(
    id="10.6",
    title="A product in FP8",
    minutes=12,
    difficulty=3,
    goal="scale both sides of a product into FP8, and out again",
    stub=f"{_DOC}\n        ...\n    ",
    solution=f"""{_DOC}
        end = 448.0
        x_scale = x_amax / end
        x_codes = cast((x / x_scale).clamp(-end, end))
        reach = w.abs().amax(dim=1, keepdim=True)
        w_scale = torch.where(reach > 0, reach / end, torch.ones_like(reach))
        w_codes = cast(w / w_scale)
        return (x_codes @ w_codes.T) * x_scale * w_scale.T
    """,
    reference=fp8_product,
    answer_key=Float8Tensor.quantize,
    generate=_cases,
    bounds=(_finite, matches_reference(rtol=1e-3, atol=0)),
    mutants=(
        Mutant(
            "Where x is larger than calibration saw, the cast gives NaN: E4M3 has no infinity. "
            "Clamp to ±448 first.",
            swap=(".clamp(-end, end)", ""),
        ),
        Mutant(
            "That is the amax of the wrong tensor: you scaled x by the largest weight.",
            swap=("x_scale = x_amax / end", "x_scale = float(w.abs().max()) / end"),
        ),
        Mutant(
            "You measured x again. The static scale comes from calibration: reading all of x "
            "before the product is what it saves.",
            swap=("x_scale = x_amax / end", "x_scale = float(x.abs().max()) / end"),
        ),
        Mutant(
            "The largest magnitude, not the largest number: you ignored negative weights.",
            swap=("w.abs().amax(dim=1", "w.amax(dim=1"),
        ),
        Mutant(
            "One scale for the whole weight; each output channel has its own.",
            swap=(
                "w.abs().amax(dim=1, keepdim=True)",
                "w.abs().amax(dim=1, keepdim=True).max().expand(len(w), 1)",
            ),
        ),
        Mutant(
            "You went into FP8 but not out again: multiply by both scales.",
            swap=(" * x_scale * w_scale.T", ""),
        ),
        Mutant(
            "The weight's scale is missing on the way out.",
            swap=(" * w_scale.T", ""),
        ),
        Mutant(
            "That is E5M2: more range, one bit of mantissa less. Here E4M3 is asked for.",
            swap=(
                ("t.abs() > 464", "t.abs() > 61440"),
                ("torch.float8_e4m3fn", "torch.float8_e5m2"),
                ("448.0", "57344.0"),
            ),
        ),
        Mutant(
            "E4M3 of the OCP standard (e4m3fn) ends at 448. 240 is the end of another variant, and "
            "leaves almost one binade unused.",
            swap=("end = 448.0", "end = 240.0"),
        ),
        Mutant(
            "A channel of zeros: 0 / 0 is NaN. Any scale but 0 will do there.",
            swap=("torch.where(reach > 0, reach / end, torch.ones_like(reach))", "reach / end"),
        ),
    ),
    hints=(
        "scale = amax / 448 puts the largest number on the end of the format.",
        "cast((x / scale).clamp(-448, 448)); for w one amax a row, axis 1.",
        "Multiply codes as floats, then by x_scale and, column by column, by w_scale.T.",
    ),
)
