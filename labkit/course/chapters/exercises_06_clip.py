"""Exercise 06.4: how far may a row's range be cut?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize import clipping


def best_clip(weight: torch.Tensor, x: torch.Tensor, bits: int) -> torch.Tensor:
    """The bound [out, 1] of least output error for each row, of ten from 1.0 to 0.55 of it."""
    gram = x.T @ x / len(x)
    return clipping.search_clip(weight, QuantScheme(bits), gram, scale_dtype=torch.float32)


def _heavy(rng: np.random.Generator, rows: int, columns: int, tokens: int = 32):
    """(weight, x): heavy-tailed rows of different loudness; the outlying weights meet small x."""
    weight = rng.standard_normal((rows, columns)) * np.exp(rng.uniform(-2, 2, (rows, 1)))
    loudness = np.exp(rng.uniform(-2, 2, columns))
    weight[:, : columns // 4] *= 3.0
    loudness[: columns // 4] *= np.where(np.arange(columns // 4) % 2, 4.0, 0.05)
    x = rng.standard_normal((tokens, columns)) * loudness
    return torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(x.astype(np.float32))


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    x = torch.eye(6)
    x[0, 0] = 1e-3
    row = torch.tensor([[1.0, 0.42, -0.31, 0.2, -0.47, 0.11]])
    yield torch.cat([row, -row, row * 8]), x, 3
    x = torch.eye(6)
    x[0, 0] = 50.0
    yield torch.cat([row, row.flip(1), -row]), x, 3
    fixed = np.random.default_rng(3)
    for rows, columns, bits in ((8, 8, 3), (6, 12, 3), (12, 16, 4)):
        yield *_heavy(fixed, rows, columns), bits
    for index in range(6):
        columns = int(rng.integers(8, 17))
        rows = columns if index % 3 == 0 else int(rng.integers(4, 12))
        yield *_heavy(rng, rows, columns), int(rng.integers(3, 5))


def _errors(trial: Trial, bound: torch.Tensor) -> torch.Tensor:
    """Output error of each row, rounded with these bounds."""
    weight, qmax = trial["weight"], 2 ** (trial["bits"] - 1) - 1
    step = bound / qmax
    codes = torch.clamp(torch.round(weight.clamp(-bound, bound) / step), -qmax, qmax)
    return ((codes * step - weight) @ trial["x"].T).square().mean(dim=1)


def _one_bound_a_row(trial: Trial) -> str | None:
    """bounds are [out, 1], and each is 1.0, 0.95, ... 0.55 times the row's largest |w|"""
    expected = (len(trial["weight"]), 1)
    if tuple(trial.got.shape) != expected:
        return f"the shape is {tuple(trial.got.shape)}, not {expected}"
    steps = (1 - trial.got / trial["weight"].abs().amax(dim=1, keepdim=True)) * 20
    fine = ((steps - steps.round()).abs() < 1e-2) & (steps > -0.01) & (steps < 9.01)
    if bool(fine.all()):
        return None
    row = int((~fine).nonzero()[0, 0])
    return f"in row {row} the ratio is {1 - float(steps[row, 0]) / 20:.3g}"


def _least_output_error(trial: Trial) -> str | None:
    """no bound of the ten has a smaller output error in its row"""
    got, best = _errors(trial, trial.got.float()), _errors(trial, trial.expected)
    worse = got > best * 1.001 + 1e-12
    if not bool(worse.any()):
        return None
    row = int(worse.nonzero()[0])
    bounds = f"bound {float(trial.got[row]):.3g}, where {float(trial.expected[row]):.3g} has"
    return f"in row {row} it is {float(got[row]):.4g} with {bounds} {float(best[row]):.4g}"


BEST_CLIP = Exercise(
    id="06.4",
    title="The clip search",
    minutes=12,
    difficulty=3,
    goal="search how far the range of each row may be cut",
    stub='''
    def best_clip(weight, x, bits):
        """Bounds [out, 1]: of 1.0, 0.95 ... 0.55 times max|w| the one of least output error."""

        def rounded(w):
            step = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            return torch.round(w / step) * step

        ...
    ''',
    solution='''
    def best_clip(weight, x, bits):
        """Bounds [out, 1]: of 1.0, 0.95 ... 0.55 times max|w| the one of least output error."""

        def rounded(w):
            step = w.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            return torch.round(w / step) * step

        largest = weight.abs().amax(dim=1, keepdim=True)
        best = largest.clone()
        least = torch.full_like(largest, math.inf)
        for k in range(10):
            bound = largest * (1 - k / 20)
            error = rounded(weight.clamp(-bound, bound)) - weight
            loss = (error @ x.T).square().mean(dim=1, keepdim=True)
            best = torch.where(loss < least, bound, best)
            least = torch.minimum(loss, least)
        return best
    ''',
    reference=best_clip,
    answer_key=clipping.search_clip,
    generate=_cases,
    bounds=(_one_bound_a_row, _least_output_error),
    mutants=(
        Mutant(
            "You minimise the error of the weights. A large weight that meets a small input may be "
            "clipped at no cost, and one that meets a large input must not: ask the outputs.",
            swap=("(error @ x.T).square()", "error.square()"),
        ),
        Mutant(
            "You compare with the clipped weight. What clipping itself destroys is then no error, "
            "and the hardest clipping always wins.",
            swap=(
                "rounded(weight.clamp(-bound, bound)) - weight",
                "rounded(weight.clamp(-bound, bound)) - weight.clamp(-bound, bound)",
            ),
        ),
        Mutant(
            "One ratio for the whole matrix: each row has a range of its own, and may be cut by a "
            "ratio of its own.",
            swap=("mean(dim=1, keepdim=True)", "mean() + torch.zeros_like(largest)"),
        ),
        Mutant(
            "You clip after rounding, so the step stays that of the full range: nothing is gained "
            "for the small weights.",
            swap=(
                "rounded(weight.clamp(-bound, bound)) - weight",
                "rounded(weight).clamp(-bound, bound) - weight",
            ),
        ),
        Mutant(
            "You leave out 1.0: a row that is best left alone is clipped.",
            swap=("range(10)", "range(1, 10)"),
        ),
        Mutant(
            "These are ratios. Bounds are in the unit of the weights: ratio times max|w|.",
            swap=("return best", "return best / largest"),
        ),
        Mutant(
            "You averaged the error of outputs before squaring: positive and negative errors "
            "cancel.",
            swap=(
                "(error @ x.T).square().mean(dim=1, keepdim=True)",
                "(error @ x.T).mean(dim=1, keepdim=True).square()",
            ),
        ),
    ),
    hints=(
        "For one ratio: bound = ratio * max|w|, weight.clamp(-bound, bound), rounded, error "
        "against the *original* weight, times x.T.",
        "Each row keeps its own best: loss is [out, 1]; torch.where(loss < least, bound, best).",
        "loss = ((rounded(weight.clamp(-bound, bound)) - weight) @ x.T).square()"
        ".mean(dim=1, keepdim=True)",
    ),
)
