"""Exercise 04.4: a rotation whose entries are all alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.rotation import hadamard


def _sizes(rng: np.random.Generator) -> Iterator[tuple[int]]:
    for size in (1, 2, 4, 8, 16, 64):
        yield (size,)
    for size in (3, 12, int(rng.choice([5, 6, 7, 9, 10, 20, 48]))):
        yield (size,)


def _orthonormal(trial: Trial) -> str | None:
    """rows have length 1 and stand at right angles: Q @ Q.T is the identity"""
    got = trial.got.double()
    if got.ndim != 2 or got.shape[0] != got.shape[1]:
        return f"the shape is {list(got.shape)}"
    product = got @ got.T
    if torch.allclose(product, torch.eye(len(got), dtype=product.dtype), atol=1e-4):
        return None
    length = float(product.diagonal()[0].clamp(min=0).sqrt())
    if abs(length - 1) > 1e-3:
        return f"the first row has length {length:.4g}"
    return "two rows are not at right angles"


def _spreads(trial: Trial) -> str | None:
    """a single loud channel is spread evenly over all of them"""
    size = len(trial.got)
    off = (trial.got.abs().double() * size**0.5 - 1).abs().max()
    return None if float(off) < 1e-3 else "the entries are not all of one size"


HADAMARD = Exercise(
    id="04.4",
    title="Build a Hadamard matrix",
    minutes=8,
    difficulty=2,
    goal="build the rotation that spreads one channel over all",
    stub='''
    def hadamard(n):
        """Sylvester's Hadamard matrix, orthonormal, float64 [n, n]; n is a power of two."""
        ...
    ''',
    solution='''
    def hadamard(n):
        """Sylvester's Hadamard matrix, orthonormal, float64 [n, n]; n is a power of two."""
        if n < 1 or n & (n - 1):
            raise ValueError(f"{n} is not a power of two")
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < n:
            top, bottom = torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)
            matrix = torch.cat([top, bottom], 0)
        return matrix / math.sqrt(n)
    ''',
    reference=hadamard,
    generate=_sizes,
    bounds=(_orthonormal, _spreads, matches_reference(rtol=1e-5, atol=1e-7)),
    mutants=(
        Mutant(
            "The rows have length sqrt(n), not 1: rotating by this makes every activation sqrt(n) "
            "times larger, and undoing it needs a division by n. Divide by sqrt(n).",
            swap=("matrix / math.sqrt(n)", "matrix"),
        ),
        Mutant(
            "You divided by n. A row of n entries +-1 has length sqrt(n).",
            swap=("matrix / math.sqrt(n)", "matrix / n"),
        ),
        Mutant(
            "There is no minus sign: all rows are the same, and nothing can be undone. The lower "
            "right block is -H.",
            swap=("torch.cat([matrix, -matrix], 1)", "torch.cat([matrix, matrix], 1)"),
        ),
        Mutant(
            "The lower half is -H, -H: the same rows with the other sign, not at right angles to "
            "the first half. Only the lower *right* block changes its sign.",
            swap=("torch.cat([matrix, -matrix], 1)", "torch.cat([-matrix, -matrix], 1)"),
        ),
        Mutant(
            "This is the identity: it rotates nothing.",
            source="""
            def hadamard(n):
                if n < 1 or n & (n - 1):
                    raise ValueError(f"{n} is not a power of two")
                return torch.eye(n, dtype=torch.float64)
            """,
        ),
        Mutant(
            "A size that is no power of two gets a matrix of another size. Raise ValueError: there "
            "is no Sylvester matrix for it.",
            swap=("if n < 1 or n & (n - 1):", "if n < 1:"),
        ),
    ),
    hints=(
        "Start with [[1]]. Each step makes H twice as large: [[H, H], [H, -H]].",
        "torch.cat([H, H], dim=1) puts two blocks side by side; dim=0 stacks two rows of blocks.",
        "Every entry is +-1, so every row has length sqrt(n): divide by it at the end. "
        "n & (n - 1) is 0 for powers of two only.",
    ),
)
