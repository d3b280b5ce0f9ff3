"""Exercise 05.3: all columns, with one Cholesky factor in place of a new inverse each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.bounds import matches_reference
from labkit.course.chapters.exercises_05_step import hessian_of
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.gptq import round_block
from labkit.quantize.gptq_grid import Grid


def gptq_rows(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, bits: int
) -> torch.Tensor:
    """Codes [out, in] of the narrow symmetric grid with steps ``scale`` [out, 1]."""
    columns = weight.shape[1]
    scheme = QuantScheme(bits)
    zeros, one_group = torch.zeros_like(scale), torch.zeros(columns, dtype=torch.int64)
    grid = Grid(scheme, scale.dtype, scale, zeros, one_group)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    round_block(weight.clone(), upper, grid, 0, codes)
    return codes


def _cases(
    rng: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    two = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    yield torch.tensor([[0.45, 0.45]], dtype=torch.float64), two, one, 4
    yield torch.tensor([[1.4, 1.4]], dtype=torch.float64), two, one, 2
    for number in range(11):
        columns = int(rng.integers(5, 13))
        rows = columns if number % 3 == 0 else int(rng.integers(2, 6))
        size = rng.uniform(0.5, 2.0, (rows, 1))
        weight = torch.from_numpy(rng.standard_normal((rows, columns)) * size)
        bits = (2, 3, 4)[number % 3]
        scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        yield weight, hessian_of(rng, columns), scale, bits


def _in_range(trial: Trial) -> str | None:
    """codes are whole numbers from -(2^(b-1) - 1) to 2^(b-1) - 1"""
    largest = 2 ** (trial["bits"] - 1) - 1
    beyond = int((trial.got.abs() > largest).sum())
    return f"{beyond} codes are beyond ±{largest}" if beyond else None


def _first_column(trial: Trial) -> str | None:
    """nothing has moved yet when the first column is rounded"""
    largest = 2 ** (trial["bits"] - 1) - 1
    first = (trial["weight"][:, :1] / trial["scale"]).round().clamp(-largest, largest)
    same = torch.equal(trial.got[:, :1].double(), first)
    return None if same else "column 0 is not its nearest code"


ROWS = Exercise(
    id="05.3",
    title="GPTQ, all columns",
    minutes=20,
    difficulty=4,
    goal="run GPTQ over a weight with one Cholesky factor",
    stub='''
    def gptq_rows(weight, hessian, scale, bits):
        """Integer codes [out, in] of `weight`, column by column; scale [out, 1], symmetric grid."""
        ...
    ''',
    solution='''
    def gptq_rows(weight, hessian, scale, bits):
        """Integer codes [out, in] of `weight`, column by column; scale [out, 1], symmetric grid."""
        upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
        w, largest = weight.clone(), 2 ** (bits - 1) - 1
        codes = torch.zeros(weight.shape, dtype=torch.int64)
        for j in range(w.shape[1]):
            code = (w[:, j] / scale[:, 0]).round().clamp(-largest, largest)
            error = (w[:, j] - code * scale[:, 0]) / upper[j, j]
            w[:, j:] -= error[:, None] * upper[j, j:]
            codes[:, j] = code
        return codes
    ''',
    reference=gptq_rows,
    answer_key=round_block,
    generate=_cases,
    bounds=(_in_range, _first_column, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "These are the codes of round-to-nearest: no error has reached a later column. Round "
            "what has been moved, not the weights of the beginning; and read rows of the *upper* "
            "factor, for a row of the lower one looks back at columns that are done.",
            swap=(
                "torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)",
                "torch.linalg.cholesky(torch.linalg.inv(hessian))",
            ),
        ),
        Mutant(
            "You factored H, not its inverse. The rows of H's factor say how errors add up, not "
            "how to make up for them.",
            swap=(
                "torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)",
                "torch.linalg.cholesky(hessian, upper=True)",
            ),
        ),
        Mutant(
            "You measured the error against the weight as it was in the beginning. What has to be "
            "made up for is the distance from where the column had been moved.",
            swap=("error = (w[:, j]", "error = (weight[:, j]"),
        ),
        Mutant(
            "You used H⁻¹ of the whole matrix for every column. It must shrink as columns are "
            "fixed; that is what the rows of the factor are.",
            swap=(
                "torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)",
                "torch.linalg.inv(hessian)",
            ),
        ),
        Mutant(
            "You did not divide by the diagonal: the error is passed on too small or too large.",
            swap=(") / upper[j, j]", ")"),
        ),
        Mutant(
            "You divided by the square of the diagonal.",
            swap=("/ upper[j, j]", "/ upper[j, j] ** 2"),
        ),
        Mutant(
            "You added the correction. What was rounded up must be taken off elsewhere.",
            swap=("w[:, j:] -=", "w[:, j:] +="),
        ),
        Mutant(
            "You forgot to clamp: a column that was pushed far gets a code that does not exist.",
            swap=(".clamp(-largest, largest)", ""),
        ),
    ),
    hints=(
        "torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True) is made once. Row j of it, "
        "from j on, does for column j what the inverse did in 05.2.",
        "For each column: the nearest code, the error over upper[j, j], then take error times "
        "upper[j, j:] off the columns from j on.",
        "Work on a clone of the weight, and read column j from that clone.",
    ),
)
