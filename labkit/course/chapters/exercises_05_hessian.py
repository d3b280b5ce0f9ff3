"""Exercise 05.1: the Hessian of a layer's output error, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.hessian import InputStats


def hessian(batches: list[torch.Tensor]) -> torch.Tensor:
    """(2/N) Σ x xᵀ over all tokens of all batches."""
    stats = InputStats(batches[0].shape[-1])
    for batch in batches:
        stats.add(batch)
    return stats.hessian()


def _cases(rng: np.random.Generator) -> Iterator[tuple[list[torch.Tensor]]]:
    def batch(tokens: int, columns: int) -> torch.Tensor:
        size = rng.permutation(np.linspace(0.5, 2.0, columns))
        values = rng.standard_normal((tokens, columns)) * size + 0.5
        return torch.from_numpy(values.astype(np.float32))

    yield ([torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])],)
    yield ([batch(4, 4), batch(1, 4)],)
    yield ([batch(6, 3)],)
    for _ in range(8):
        columns = int(rng.integers(2, 9))
        lengths = rng.permutation(np.arange(1, 10))[: int(rng.integers(2, 5))]
        yield ([batch(int(length), columns) for length in lengths],)


def _symmetric(trial: Trial) -> str | None:
    """H is symmetric, and its diagonal is not negative"""
    got = trial.got
    if not torch.allclose(got, got.T, rtol=1e-4, atol=1e-5):
        return "H[i, j] and H[j, i] differ"
    return None if bool((got.diagonal() >= 0).all()) else "its diagonal has negative entries"


def _cut_anywhere(trial: Trial) -> str | None:
    """how the tokens are cut into batches changes nothing"""
    whole = trial.call([torch.cat(trial["batches"])])
    if torch.allclose(whole, trial.got, rtol=1e-4, atol=1e-5):
        return None
    return "all tokens in one batch give another H"


HESSIAN = Exercise(
    id="05.1",
    title="The Hessian, batch by batch",
    minutes=8,
    difficulty=2,
    goal="accumulate H over batches of different length",
    stub='''
    def hessian(batches):
        """H = 2/N Σ x xᵀ over all N tokens; batches: a list of float [tokens, in]. [in, in]"""
        ...
    ''',
    solution='''
    def hessian(batches):
        """H = 2/N Σ x xᵀ over all N tokens; batches: a list of float [tokens, in]. [in, in]"""
        total, tokens = 0, 0
        for x in batches:
            total = total + x.T @ x
            tokens = tokens + len(x)
        return 2 * total / tokens
    ''',
    reference=hessian,
    answer_key=InputStats.add,
    generate=_cases,
    bounds=(_symmetric, _cut_anywhere, matches_reference(rtol=1e-4, atol=1e-5)),
    mutants=(
        Mutant(
            "You averaged the batches' own averages. A token of a short batch then counts more "
            "than one of a long batch: add the sums, and divide by all tokens once.",
            swap=(
                ("x.T @ x", "x.T @ x / len(x)"),
                ("tokens + len(x)", "tokens + 1"),
            ),
        ),
        Mutant(
            "You divided by the number of batches. N counts tokens.",
            swap=("tokens + len(x)", "tokens + 1"),
        ),
        Mutant(
            "You left out the 2. The second derivative of a square has it; damping and published "
            "values of H count on it.",
            swap=("2 * total", "total"),
        ),
        Mutant(
            "You kept the last batch alone: each one overwrites the sum of those before.",
            swap=("total = total + x.T @ x", "total = x.T @ x"),
        ),
        Mutant(
            "You took the mean off, which gives the covariance. A layer multiplies the inputs as "
            "they are, mean included.",
            swap=("x.T @ x", "(x - x.mean(0)).T @ (x - x.mean(0))"),
        ),
        Mutant(
            "You kept the diagonal alone. What lies beside it says which column can repair which.",
            swap=("x.T @ x", "torch.diag((x * x).sum(0))"),
        ),
        Mutant(
            "You multiplied the wrong way round: X Xᵀ compares tokens, Xᵀ X compares columns. "
            "With as many tokens as columns the shape does not show it.",
            source="""
            def hessian(batches):
                x = torch.cat(batches)
                size = x.shape[1]
                full = torch.zeros(max(x.shape), max(x.shape))
                full[: len(x), : len(x)] = x @ x.T
                return 2 * full[:size, :size] / len(x)
            """,
        ),
    ),
    hints=(
        "For one token, x xᵀ is an outer product [in, in]. How does one product do all tokens?",
        "Sums can be added from batch to batch, means cannot.",
        "Sum x.T @ x and len(x) over the batches; at the end 2 * sum / tokens.",
    ),
)
