"""Exercise 08.1: the straight-through estimator, both ways."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.training import ste

Case = tuple[torch.Tensor, torch.Tensor, int, int, int, torch.Tensor]


def straight_through(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: int,
    qmin: int,
    qmax: int,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x rounded to the grid, gradient by x), grad being the loss's gradient by the rounded x."""
    leaf = x.clone().requires_grad_(True)
    rounded = ste.fake_quantize(leaf, scale, torch.tensor(zero_point), qmin, qmax)
    (by_x,) = torch.autograd.grad(rounded, leaf, grad)
    return rounded.detach(), by_x


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(0.5, 2.0, x.shape).astype(np.float32))

    # Quarters of a step, from beyond one end to beyond the other: ties, and codes just kept.
    x = torch.arange(-4.25, 4.5, 0.25)
    yield x, torch.tensor(1.0), 0, -2, 1, gradient(x)
    yield x * 0.5, torch.tensor(0.5), 3, 0, 7, gradient(x)
    x = torch.zeros(4)
    yield x, torch.tensor(0.25), 0, -4, 3, gradient(x)
    for number in range(9):
        bits = int(rng.integers(2, 5))
        qmin, qmax = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if number % 2 else (0, 2**bits - 1)
        zero_point = 0 if number % 2 else int(rng.integers(1, qmax))
        x = torch.from_numpy(rng.standard_normal((3, 5)).astype(np.float32) * 2)
        yield x, torch.tensor(rng.uniform(0.3, 0.9)).float(), zero_point, qmin, qmax, gradient(x)


def _clipped_stay(trial: Trial) -> str | None:
    """no gradient where the value was clipped"""
    _, by_x = trial.got
    codes = torch.round(trial["x"] / trial["scale"]) + trial["zero_point"]
    beyond = (codes < trial["qmin"]) | (codes > trial["qmax"])
    wrong = beyond & (by_x != 0)
    if wrong.any():
        return f"x = {float(trial['x'][wrong][0]):.3g} was clipped and has a gradient"
    return None


STRAIGHT_THROUGH = Exercise(
    id="08.1",
    title="Straight through",
    minutes=10,
    difficulty=2,
    goal="round on the way forward, and let the gradient pass on the way back",
    stub='''
    def straight_through(x, scale, zero_point, qmin, qmax, grad):
        """(x rounded to the grid, gradient by x), from `grad`, the gradient by the rounded x."""
        ...
    ''',
    solution='''
    def straight_through(x, scale, zero_point, qmin, qmax, grad):
        """(x rounded to the grid, gradient by x), from `grad`, the gradient by the rounded x."""
        codes = torch.round(x / scale) + zero_point
        inside = (codes >= qmin) & (codes <= qmax)
        rounded = (codes.clamp(qmin, qmax) - zero_point) * scale
        return rounded, grad * inside
    ''',
    reference=straight_through,
    answer_key=ste.fake_quantize,
    generate=_cases,
    bounds=(_clipped_stay, matches_reference(rtol=1e-6)),
    forbid=(torch.fake_quantize_per_tensor_affine, torch.fake_quantize_per_channel_affine),
    mutants=(
        Mutant(
            "You pass the gradient where the value was clipped, too. Moving such a value does not "
            "move its code: nothing pulls it back, and it drifts away.",
            swap=("grad * inside", "grad.clone()"),
        ),
        Mutant(
            "You block the gradient everywhere. That is the staircase's true derivative, and "
            "nothing learns from it; the estimator takes the slope of the line it follows, 1.",
            swap=("grad * inside", "grad * 0"),
        ),
        Mutant(
            "You let the gradient pass where the value was clipped, and block it elsewhere.",
            swap=("grad * inside", "grad * ~inside"),
        ),
        Mutant(
            "You compare x / scale with the ends before rounding it. With qmax = 1, 1.4 steps "
            "still get code 1 by rounding alone: nothing was clipped.",
            swap=(
                "inside = (codes >= qmin) & (codes <= qmax)",
                "steps = x / scale + zero_point\n    inside = (steps >= qmin) & (steps <= qmax)",
            ),
        ),
        Mutant(
            "Whether a value is clipped is decided on its code, zero_point included.",
            swap=(
                "(codes >= qmin) & (codes <= qmax)",
                "(codes - zero_point >= qmin) & (codes - zero_point <= qmax)",
            ),
        ),
        Mutant(
            "The first and the last code are codes as well: a value there was rounded, not "
            "clipped. Compare with >= and <=.",
            swap=("(codes >= qmin) & (codes <= qmax)", "(codes > qmin) & (codes < qmax)"),
        ),
        Mutant(
            "You multiply the gradient by the scale. x is divided by it and multiplied by it "
            "again: the two cancel.",
            swap=("grad * inside", "grad * inside * scale"),
        ),
        Mutant(
            "You return codes. Fake quantization goes there and back: real numbers on the grid.",
            swap=("(codes.clamp(qmin, qmax) - zero_point) * scale", "codes.clamp(qmin, qmax)"),
        ),
    ),
    hints=(
        "Forward: codes, clamped, and back to real numbers. Backward: grad, or nothing.",
        "A value has a gradient where its code, before the clamp, lies in qmin .. qmax.",
        "codes = torch.round(x / scale) + zero_point; inside = (codes >= qmin) & (codes <= qmax); "
        "the gradient is grad * inside.",
    ),
)
