"""Exercise 08.7: an adapter goes into the weight that it was trained beside."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight
from labkit.training.qlora import merge as answer_key

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]


def merge(
    original: torch.Tensor, base: torch.Tensor, A: torch.Tensor, B: torch.Tensor, alpha: float
) -> torch.Tensor:
    """[out, in]: base + alpha / rank · B A, as `labkit.training.qlora.merge` adds them."""
    return base + alpha / len(A) * (B @ A)


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    for rows, columns in shapes(rng, 12, largest=9):
        original = weight(rng, rows, columns)
        step = original.abs().max() / 7
        base = torch.round(original / step) * step
        rank = int(rng.integers(2, 5))
        A = torch.from_numpy(rng.standard_normal((rank, columns)).astype(np.float32))
        B = torch.from_numpy(rng.standard_normal((rows, rank)).astype(np.float32))
        yield original, base, A, B, float(rng.choice([3.0, 8.0, 16.0, 32.0]))


def _the_same_outputs(trial: Trial) -> str | None:
    """the one weight gives what base and adapter gave together"""
    x = torch.linspace(-1, 1, trial["A"].shape[1])
    beside = trial["B"] @ (trial["A"] @ x) * trial["alpha"] / len(trial["A"])
    wanted = trial["base"] @ x + beside
    if not torch.allclose(trial.got @ x, wanted, rtol=1e-3, atol=1e-3):
        return "your weight gives other outputs than base and adapter did in training"
    return None


MERGE = Exercise(
    id="08.7",
    title="Merge a LoRA adapter",
    minutes=6,
    difficulty=1,
    goal="add an adapter to the weight that it was trained beside",
    stub='''
    def merge(original, base, A, B, alpha):
        """[out, in]; A [rank, in], B [out, rank]; base is what NF4 made of the original."""
        ...
    ''',
    solution='''
    def merge(original, base, A, B, alpha):
        """[out, in]; A [rank, in], B [out, rank]; base is what NF4 made of the original."""
        rank = A.shape[0]
        return base + alpha / rank * (B @ A)
    ''',
    reference=merge,
    answer_key=answer_key,
    generate=_cases,
    bounds=(_the_same_outputs, matches_reference(rtol=1e-4, atol=1e-4)),
    mutants=(
        Mutant(
            "You added the adapter to the original weight. It was trained beside the rounded one, "
            "and has learned to make up for its errors; now they are made up for twice.",
            swap=("return base +", "return original +"),
        ),
        Mutant(
            "The factor alpha / rank is missing.",
            swap=("base + alpha / rank * (B @ A)", "base + B @ A"),
        ),
        Mutant(
            "alpha is divided by the rank, so that the adapter counts the same whatever its rank.",
            swap=("alpha / rank", "alpha"),
        ),
        Mutant(
            "alpha is missing in alpha / rank.",
            swap=("alpha / rank", "1 / rank"),
        ),
        Mutant(
            "You divided by the number of inputs. The rank is the short side of A, its rows.",
            swap=("A.shape[0]", "A.shape[1]"),
        ),
        Mutant(
            "That is rank-stabilised LoRA, alpha / sqrt(rank). This adapter was trained with "
            "alpha / rank.",
            swap=("alpha / rank", "alpha / math.sqrt(rank)"),
        ),
        Mutant(
            "You subtracted the adapter.",
            swap=("base + alpha", "base - alpha"),
        ),
        Mutant(
            "You returned the change alone, without the weight that it changes.",
            swap=("return base + alpha", "return alpha"),
        ),
    ),
    hints=(
        "In training: y = base x + alpha / rank · B (A x). Which one matrix gives the same?",
        "Beside which weight was the adapter trained?",
        "base + alpha / A.shape[0] * (B @ A).",
    ),
)
