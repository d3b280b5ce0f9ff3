"""Exercise 05.2: round one weight, and let the ones to its right make up for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial


def compensate(
    row: torch.Tensor, j: int, rounded: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """The row [in] after weight ``j`` became ``rounded``, later weights moved (Optimal Brain

    Surgeon, Frantar et al. 2023, equation 2): w_k ← w_k - (w_j - q) [F⁻¹]_jk / [F⁻¹]_jj for k ≥ j,
    where F is the Hessian ([in, in]) of the columns that are left, j and later.
    """
    left = torch.linalg.inv(hessian[j:, j:])
    moved = row.clone()
    moved[j:] -= (row[j] - rounded) / left[0, 0] * left[0]
    return moved


def hessian_of(rng: np.random.Generator, columns: int) -> torch.Tensor:
    """A well-conditioned Hessian of correlated inputs, float64 [in, in]."""
    x = rng.standard_normal((4 * columns + 8, columns)) @ rng.standard_normal((columns, columns))
    x = x + rng.standard_normal(x.shape)
    h = torch.from_numpy(2 * x.T @ x / len(x))
    return h + 0.05 * h.diagonal().mean() * torch.eye(columns, dtype=h.dtype)


def _cases(
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
    yield (
        torch.tensor([0.4, 0.4], dtype=torch.float64),
        0,
        torch.tensor(0.0, dtype=torch.float64),
        torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64),
    )
    for number in range(11):
        columns = int(rng.integers(3, 8))
        row = torch.from_numpy(rng.standard_normal(columns) * 3)
        j = (0, 1, columns - 2)[number % 3]
        yield row, j, row[j].round(), hessian_of(rng, columns)


def _done_is_done(trial: Trial) -> str | None:
    """weights before j are done and stay; weight j becomes its rounded value"""
    j, row = trial["j"], trial["row"]
    if not torch.equal(trial.got[:j], row[:j]):
        return "weights before j have moved"
    if abs(float(trial.got[j] - trial["rounded"])) > 1e-9:
        return f"weight {j} is {float(trial.got[j]):.6g}, not {float(trial['rounded']):.6g}"
    return None


def _least_damage(trial: Trial) -> str | None:
    """no other move of the later weights has less damage: its gradient H d is 0 there"""
    change = trial.got - trial["row"]
    gradient = (trial["hessian"] @ change)[trial["j"] + 1 :]
    scale = float((trial["hessian"].abs() @ change.abs()).max()) + 1e-12
    if float(gradient.abs().max()) < 1e-6 * scale:
        return None
    return "the later weights could move further and do less damage"


STEP = Exercise(
    id="05.2",
    title="One compensated error",
    minutes=12,
    difficulty=3,
    goal="round one weight and move the others so that the output changes least",
    stub='''
    def compensate(row, j, rounded, hessian):
        """row [in] after weight j became `rounded` and the later ones moved; hessian [in, in]."""
        ...
    ''',
    solution='''
    def compensate(row, j, rounded, hessian):
        """row [in] after weight j became `rounded` and the later ones moved; hessian [in, in]."""
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = (row[j] - rounded) / inverse[0, 0]
        moved = row.clone()
        moved[j:] = moved[j:] - error * inverse[0]
        return moved
    ''',
    reference=compensate,
    generate=_cases,
    bounds=(_done_is_done, _least_damage, matches_reference(rtol=1e-6, atol=1e-9)),
    mutants=(
        Mutant(
            "You used H where its inverse belongs. H says how much two errors hurt together; H⁻¹ "
            "says how one weight answers to another.",
            swap=("torch.linalg.inv(hessian[j:, j:])", "hessian[j:, j:]"),
        ),
        Mutant(
            "You divided by the square of the diagonal. Then weight j does not even arrive at its "
            "rounded value.",
            swap=("/ inverse[0, 0]", "/ inverse[0, 0] ** 2"),
        ),
        Mutant(
            "You moved the weights before j as well. They are codes already, and cannot move.",
            source="""
            def compensate(row, j, rounded, hessian):
                inverse = torch.linalg.inv(hessian)
                return row - (row[j] - rounded) / inverse[j, j] * inverse[j]
            """,
        ),
        Mutant(
            "You inverted the whole H and then took a piece of it. The columns before j are fixed, "
            "so they must leave H before it is inverted.",
            swap=(
                "torch.linalg.inv(hessian[j:, j:])",
                "torch.linalg.inv(hessian)[j:, j:]",
            ),
        ),
        Mutant(
            "You moved the others the wrong way: they now add to the damage. The update is "
            "subtracted.",
            source="""
            def compensate(row, j, rounded, hessian):
                inverse = torch.linalg.inv(hessian[j:, j:])
                moved = row.clone()
                moved[j:] = moved[j:] + (row[j] - rounded) / inverse[0, 0] * inverse[0]
                moved[j] = rounded
                return moved
            """,
        ),
        Mutant(
            "You rounded weight j and moved nothing else: that is round-to-nearest.",
            source="""
            def compensate(row, j, rounded, hessian):
                moved = row.clone()
                moved[j] = rounded
                return moved
            """,
        ),
        Mutant(
            "You did not divide by the diagonal of H⁻¹. The error counts in units of how far "
            "weight j moves when the loss pulls at it.",
            swap=("(row[j] - rounded) / inverse[0, 0]", "(row[j] - rounded)"),
        ),
    ),
    hints=(
        "Only columns j and later are free. Which part of H describes them?",
        "Its inverse has one row for weight j: the direction in which the others answer.",
        "moved[j:] -= (row[j] - rounded) / inverse[0, 0] * inverse[0], with "
        "inverse = torch.linalg.inv(hessian[j:, j:]).",
    ),
)
