"""Exercise 02.5: the range with the least squared error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import choose_qparams, fake_quantize, integer_range
from labkit.core.observers import MSEObserver
from labkit.course.chapters.ch02_scale_zero_point.samples import normal
from labkit.course.exercise import Exercise, Mutant, Trial


def clip_error(x: torch.Tensor, threshold: float, bits: int) -> float:
    """Sum of squared errors of x, quantized symmetrically over [-threshold, threshold]."""
    scale, zero_point = choose_qparams(-threshold, threshold, bits, symmetric=True)
    x_hat = fake_quantize(x, scale, zero_point, *integer_range(bits, symmetric=True))
    return float((x - x_hat).double().square().sum())


def threshold_reference(x: torch.Tensor, bits: int, steps: int) -> float:
    """The best of the thresholds max|x| * k / steps, by the library's own quantizer."""
    largest = float(x.abs().max())
    return min(
        (largest * k / steps for k in range(steps, 0, -1)),
        key=lambda threshold: clip_error(x, threshold, bits),
    )


def _samples(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, int, int]]:
    yield torch.tensor([1.0, -1.0] * 100 + [10.0]), 3, 20
    yield torch.arange(-7, 8).float(), 4, 20
    yield torch.tensor([-3.0, -1.0, 0.5, 2.0]), 2, 10
    yield torch.cat([normal(rng, 300), torch.tensor([12.0])]), 4, 25
    for index in range(8):
        x = normal(rng, int(rng.integers(100, 300)))
        yield x.pow(3) if index % 2 else x, 2 + index % 4, int(rng.choice([20, 40]))


def _threshold_is_in_range(trial: Trial) -> str | None:
    """the threshold is above 0 and at most the largest |x|"""
    largest, got = float(trial["x"].abs().max()), float(trial.got)
    if not 0 < got <= largest * (1 + 1e-5):
        return f"it is {got:.4g}, and the largest |x| is {largest:.4g}"
    return None


def _none_is_better(trial: Trial) -> str | None:
    """no candidate threshold has a smaller squared error"""
    got, best = (
        clip_error(trial["x"], float(threshold), trial["bits"])
        for threshold in (trial.got, trial.expected)
    )
    if got > best * 1.0001 + 1e-9:
        return (
            f"{float(trial.got):.4g} has {got:.4g}, and {float(trial.expected):.4g} has {best:.4g}"
        )
    return None


BEST_THRESHOLD = Exercise(
    id="02.5",
    title="MSE observer",
    minutes=8,
    difficulty=3,
    goal="find the range with the least squared error",
    stub='''
    def best_threshold(x, bits, steps):
        """Of max|x| * k / steps, k = 1 .. steps, the t whose grid over [-t, t] fits x best."""
        ...
    ''',
    solution='''
    def best_threshold(x, bits, steps):
        """Of max|x| * k / steps, k = 1 .. steps, the t whose grid over [-t, t] fits x best."""
        qmax = 2 ** (bits - 1) - 1
        best, least = None, math.inf
        for k in range(steps, 0, -1):
            threshold = float(x.abs().max()) * k / steps
            scale = threshold / qmax
            x_hat = torch.clamp(torch.round(x / scale), -qmax, qmax) * scale
            error = ((x - x_hat) ** 2).sum()
            if error < least:
                best, least = threshold, error
        return best
    ''',
    reference=threshold_reference,
    answer_key=MSEObserver,
    generate=_samples,
    bounds=(_threshold_is_in_range, _none_is_better),
    mutants=(
        Mutant(
            "Your search leaves out the whole range, k = steps. Not clipping is sometimes the "
            "best answer, above all at 8 bits, and without it the observer can be worse than "
            "min-max.",
            swap=("range(steps, 0, -1)", "range(steps - 1, 0, -1)"),
        ),
        Mutant(
            "You minimised the largest error instead of the squared error. One outlier rules "
            "again, and that is what the search was for.",
            swap=("((x - x_hat) ** 2).sum()", "(x - x_hat).abs().max()"),
        ),
        Mutant(
            "You counted errors inside the range only. Clipping is then free, so the smallest "
            "range always wins. Clipped values count, and they count most.",
            swap=("((x - x_hat) ** 2).sum()", "((x - x_hat)[x.abs() <= threshold] ** 2).sum()"),
        ),
        Mutant(
            "You counted the clipping error alone. Rounding is what clipping buys: without it "
            "the widest range always wins.",
            swap=("((x - x_hat) ** 2).sum()", "((x - x.clamp(-threshold, threshold)) ** 2).sum()"),
        ),
        Mutant(
            "You added signed errors, and they cancel. Square them first.",
            swap=("((x - x_hat) ** 2).sum()", "(x - x_hat).sum().abs()"),
        ),
        Mutant(
            "You returned the ratio k / steps. The caller wants the threshold itself, in the "
            "units of x.",
            swap=("best, least = threshold, error", "best, least = k / steps, error"),
        ),
        Mutant(
            "You stopped where the error first rose. The curve is bumpy, because values jump "
            "from one code to the next as the step changes: look at every candidate.",
            swap=(
                "            best, least = threshold, error\n",
                "            best, least = threshold, error\n        else:\n            break\n",
            ),
        ),
        Mutant(
            "You used 2**bits - 1 positive codes. That is a grid with one bit more: signed codes "
            "end at 2**(bits-1) - 1.",
            swap=("2 ** (bits - 1) - 1", "2**bits - 1"),
        ),
    ),
    hints=(
        "For one threshold: what is the scale, what does x come back as, what is the error?",
        "Clipping happens by itself if you clamp the codes to -qmax .. qmax. Loop over k and "
        "keep the best.",
        "Sum (x - x_hat) ** 2 over all values, clipped ones too, and begin with k = steps.",
    ),
)
