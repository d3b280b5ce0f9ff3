"""Exercise 09.1: operations per byte of a linear layer, for one token and for many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.evaluate.roofline import linear_work


def intensity(rows: int, columns: int, tokens: int, bits: int, group_size: int) -> float:
    """Operations per byte of a product with `bits`-bit codes and a float16 scale for each group."""
    return linear_work(rows, columns, tokens, bits + 16 / group_size).intensity


def _cases(rng: np.random.Generator) -> Iterator[tuple[int, int, int, int, int]]:
    yield 4096, 4096, 1, 4, 128
    yield 4096, 4096, 1, 16, 4096
    yield 4096, 4096, 512, 4, 128
    yield 11008, 4096, 64, 8, 32
    for _ in range(8):
        group = int(2 ** rng.integers(4, 8))
        columns = group * int(rng.integers(2, 40))
        rows, tokens = int(rng.integers(64, 5000)), int(rng.integers(2, 600))
        yield rows, columns, tokens, int(rng.choice([2, 3, 4, 8])), group


def _more_tokens_more_work(trial: Trial) -> str | None:
    """more tokens share one reading of the weights: operations per byte grow"""
    names = ("rows", "columns", "tokens", "bits", "group_size")
    rows, columns, tokens, bits, group = (trial[name] for name in names)
    if not trial.call(rows, columns, 2 * tokens, bits, group) > trial.got:
        return f"{2 * tokens} tokens give no more operations per byte than {tokens}"
    return None


INTENSITY = Exercise(
    id="09.1",
    title="Operations per byte",
    minutes=8,
    difficulty=2,
    goal="say from a layer's shape whether memory or arithmetic sets its pace",
    stub='''
    def intensity(rows, columns, tokens, bits, group_size):
        """Operations per byte of x [tokens, columns] times a weight [rows, columns]."""
        ...
    ''',
    solution='''
    def intensity(rows, columns, tokens, bits, group_size):
        """Operations per byte of x [tokens, columns] times a weight [rows, columns]."""
        operations = 2 * rows * columns * tokens
        weights = rows * columns * bits / 8
        scales = rows * (columns // group_size) * 2
        activations = 2 * tokens * (rows + columns)
        return operations / (weights + scales + activations)
    ''',
    reference=intensity,
    answer_key=linear_work,
    generate=_cases,
    bounds=(_more_tokens_more_work, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "You counted a multiply-add as one operation. It is two, in this course as in the "
            "figures that makers of processors print.",
            swap=("2 * rows * columns * tokens", "rows * columns * tokens"),
        ),
        Mutant(
            "You divided by bits. Bandwidth is counted in bytes: eight bits each.",
            swap=("rows * columns * bits / 8", "rows * columns * bits"),
        ),
        Mutant(
            "You read the weights once for each token. All tokens of a pass share one reading; "
            "that is why a prompt is read so much faster than an answer is written.",
            swap=("rows * columns * bits / 8", "tokens * rows * columns * bits / 8"),
        ),
        Mutant(
            "You left out the scales. With groups of 32 they are half a bit a weight, an eighth of "
            "a 4-bit code.",
            swap=("weights + scales + activations", "weights + activations"),
        ),
        Mutant(
            "You left out x and y. For one token they hardly count; for 512 they weigh as much as "
            "the 4-bit weights.",
            swap=("weights + scales + activations", "weights + scales"),
        ),
        Mutant(
            "You counted x and not y. The results have to be written, too: rows numbers a token.",
            swap=("(rows + columns)", "columns"),
        ),
        Mutant(
            "You counted group_size scales a row. A row has columns / group_size groups, a scale "
            "for each.",
            swap=("columns // group_size", "group_size"),
        ),
        Mutant(
            "You divided bytes by operations. Intensity is operations per byte: large means that "
            "arithmetic sets the pace.",
            swap=(
                "operations / (weights + scales + activations)",
                "(weights + scales + activations) / operations",
            ),
        ),
    ),
    hints=(
        "A multiplication and an addition for each weight and token. Which bytes must come from "
        "memory, and which are read once for all tokens?",
        "Weights: rows * columns * bits / 8. Scales: 2 bytes for each group of each row.",
        "x is [tokens, columns] and y [tokens, rows], 2 bytes a number.",
    ),
)
