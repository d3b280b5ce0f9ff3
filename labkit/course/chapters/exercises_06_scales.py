"""Exercise 06.2: search the exponent that makes scales of activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize import awq
from labkit.quantize.awq_scales import ScaleSpace
from labkit.quantize.clipping import rounded


def search_scales(
    weight: torch.Tensor, x: torch.Tensor, bits: int, steps: int
) -> tuple[float, torch.Tensor]:
    """(alpha, scales) of least output error, rounding each row to a symmetric grid."""
    scheme = QuantScheme(bits)
    space = ScaleSpace(x.abs().mean(dim=0), [weight], scheme)

    def loss(scales: torch.Tensor) -> float:
        error = rounded(weight * scales, scheme, torch.float32) / scales - weight
        return float((x @ error.T).square().mean())

    best = awq.choose(space.grid(steps, ("plain",)), loss).best
    return best.alpha, best.scales


def _loud(rng: np.random.Generator, rows: int, columns: int, tokens: int = 48):
    """(weight, x): channels of x differ a hundredfold; weights of loud channels are small."""
    order = rng.permutation(columns)
    loudness = np.geomspace(0.2, 20.0, columns)[order]
    weight = rng.standard_normal((rows, columns)) / loudness**0.4
    x = rng.standard_normal((tokens, columns)) * loudness
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(x.astype(np.float32))


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int, int]]:
    flat = np.random.default_rng(1)
    w, x = _loud(flat, 8, 8)
    yield w, x, 3, 20
    yield w * torch.logspace(0, 1, 8), torch.sign(x), 3, 10  # nothing is louder than the rest
    # On the grid as it is, with the largest weights in the loudest column: any scale is too much.
    w = torch.from_numpy(flat.integers(-3, 4, (8, 8)) * 0.5).float()
    w[:, 0], x[:, 0] = 1.5, 30.0
    yield w, x, 3, 10
    w, x = _loud(flat, 12, 16)
    yield w, x, 4, 20
    yield w, x.flip(1), 3, 20
    for index in range(8):
        columns = int(rng.integers(6, 17))
        w, x = _loud(rng, columns if index % 3 == 0 else int(rng.integers(6, 17)), columns)
        yield w, x, int(rng.integers(3, 5)), int(rng.choice([10, 20]))


def _rounded_error(trial: Trial, scales: torch.Tensor) -> float:
    weight, x = trial["weight"], trial["x"]
    scaled = weight * scales
    step = scaled.abs().amax(dim=1, keepdim=True) / (2 ** (trial["bits"] - 1) - 1)
    error = torch.round(scaled / step) * step / scales - weight
    return float((x @ error.T).square().mean())


def _normalised(trial: Trial) -> str | None:
    """sqrt(largest scale * smallest scale) is 1"""
    scales = trial.got[1].float()
    if not bool((scales > 0).all()):
        return "a scale is not positive"
    middle = float((scales.max() * scales.min()).sqrt())
    return None if abs(middle - 1) < 1e-3 else f"it is {middle:.4g}"


def _scales_follow_alpha(trial: Trial) -> str | None:
    """scales are proportional to mean|x| ** alpha, for the alpha that is returned"""
    expected = trial["x"].abs().mean(dim=0).pow(float(trial.got[0]))
    ratio = trial.got[1].float() / expected
    if float(ratio.max() / ratio.min()) < 1.001:
        return None
    return f"the ratio of the two goes from {float(ratio.min()):.3g} to {float(ratio.max()):.3g}"


def _alpha_is_on_the_grid(trial: Trial) -> str | None:
    """alpha is one of 0, 1/steps, ... and below 1"""
    step = float(trial.got[0]) * trial["steps"]
    fine = abs(step - round(step)) < 1e-6 and -1e-9 <= step < trial["steps"] - 1e-9
    return None if fine else f"alpha is {float(trial.got[0]):.4g}"


def _least_output_error(trial: Trial) -> str | None:
    """no alpha of the grid has a smaller mean squared error of the *outputs*"""
    got = _rounded_error(trial, trial.got[1].float())
    best = _rounded_error(trial, trial.expected[1])
    if got <= best * 1.001 + 1e-9:
        return None
    right = f"alpha {trial.expected[0]:.2f} has {best:.4g}"
    return f"with alpha {float(trial.got[0]):.2f} it is {got:.4g}; {right}"


SEARCH_SCALES = Exercise(
    id="06.2",
    title="The scale search",
    minutes=15,
    difficulty=3,
    goal="search the exponent of the scales with the loss on the outputs",
    stub='''
    def search_scales(weight, x, bits, steps):
        """(alpha, scales [in]) of least output error; scales = mean|x| ** alpha, normalised."""

        def rounded(w):
            step = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            return torch.round(w / step) * step

        ...
    ''',
    solution='''
    def search_scales(weight, x, bits, steps):
        """(alpha, scales [in]) of least output error; scales = mean|x| ** alpha, normalised."""

        def rounded(w):
            step = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            return torch.round(w / step) * step

        loudness = x.abs().mean(dim=0)
        best = (math.inf, 0.0, None)
        for step in range(steps):
            alpha = step / steps
            scales = loudness**alpha
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = rounded(weight * scales) / scales - weight
            loss = float((x @ error.T).square().mean())
            if loss < best[0]:
                best = (loss, alpha, scales)
        return best[1], best[2]
    ''',
    reference=search_scales,
    answer_key=awq.search_scales,
    generate=_cases,
    bounds=(_alpha_is_on_the_grid, _scales_follow_alpha, _normalised, _least_output_error),
    mutants=(
        Mutant(
            "The normalisation is missing. The rounding does not mind a common factor, but the "
            "module before is divided by it: divide by sqrt(max · min), so that float16 is safe "
            "on both sides.",
            swap=("scales / (scales.max() * scales.min()).sqrt()", "scales + 0.0"),
        ),
        Mutant(
            "Your loss is on the weights. It cannot see that some columns meet large inputs, which "
            "is all that AWQ is about: take the error of the outputs, x @ error.T.",
            swap=("(x @ error.T).square()", "error.square()"),
        ),
        Mutant(
            "You forgot to divide by the scales again after rounding: the layer that runs sees "
            "x / scales, so what acts on x is rounded(W · s) / s.",
            swap=(
                "rounded(weight * scales) / scales - weight",
                "rounded(weight * scales) - weight",
            ),
        ),
        Mutant(
            "You return the reciprocal, what the module before is multiplied by. Loud channels "
            "must be scaled *up* before rounding, so that their error shrinks on the way back.",
            swap=("return best[1], best[2]", "return best[1], 1 / best[2]"),
        ),
        Mutant(
            "You normalised by the largest scale. AWQ takes sqrt(max · min), so that the scales go "
            "as far above 1 as below.",
            swap=("(scales.max() * scales.min()).sqrt()", "scales.max()"),
        ),
        Mutant(
            "Your loudness is the largest |x|: one outlier token decides. AWQ takes the mean |x|.",
            swap=("x.abs().mean(dim=0)", "x.abs().amax(dim=0)"),
        ),
        Mutant(
            "You return the worst alpha of the grid: the comparison is the wrong way round.",
            swap=(
                ("(math.inf, 0.0, None)", "(-math.inf, 0.0, None)"),
                ("loss < best[0]", "loss > best[0]"),
            ),
        ),
        Mutant(
            "You never try alpha = 0, which is plain rounding: where nothing is salient it is the "
            "best there is.",
            swap=("range(steps)", "range(1, steps)"),
        ),
    ),
    hints=(
        "For one alpha: scales, rounded(weight * scales) / scales, and the error of x @ W.T.",
        "Divide the scales by sqrt(max · min) before they are used. Keep loss, alpha and scales of "
        "the best so far.",
        "error = rounded(weight * scales) / scales - weight; loss = (x @ error.T).square().mean(); "
        "alpha runs over step / steps for step in range(steps).",
    ),
)
