"""Exercise 02.6: a matrix product on integers, and what the zero-points add to it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.affine import dequantize
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes

Arguments = tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]


def matmul_reference(
    x_codes: torch.Tensor, x_zero: int, w_codes: torch.Tensor, w_zero: torch.Tensor
) -> torch.Tensor:
    """Both operands with the zero-points taken off (scale 1), multiplied exactly in float64."""
    x = dequantize(x_codes, 1.0, x_zero).double()
    w = dequantize(w_codes, 1.0, w_zero).double()
    return (x @ w.T).to(torch.int64)


def _codes(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape).astype(np.uint8))


def _cases(rng: np.random.Generator) -> Iterator[Arguments]:
    square = torch.tensor([[255, 3, 90], [0, 200, 17], [128, 64, 250]], dtype=torch.uint8)
    turned = torch.tensor([[7, 130, 255], [90, 0, 201], [33, 180, 60]], dtype=torch.uint8)
    yield square, 10, turned, torch.tensor([[120], [7], [200]])
    yield torch.tensor([[255, 255]], dtype=torch.uint8), 0, turned[:2, :2], torch.zeros(2, 1).int()
    yield _codes(rng, 1, 5), 128, _codes(rng, 1, 5), torch.tensor([[131]])
    for index, (rows, columns) in enumerate(shapes(rng, 8)):
        tokens = columns if index % 2 else int(rng.integers(1, 6))
        zeros = torch.from_numpy(rng.integers(0, 256, (rows, 1)))
        yield (
            _codes(rng, tokens, columns),
            int(rng.integers(1, 255)),
            _codes(rng, rows, columns),
            zeros,
        )


def _real_zeros_give_zero(trial: Trial) -> str | None:
    """activations that all stand for 0 give 0, whatever the weights"""
    zeros = torch.full_like(trial["x_codes"], trial["x_zero"])
    product = trial.call(zeros, trial["x_zero"], trial["w_codes"], trial["w_zero"])
    if bool((product != 0).any()):
        return f"codes of {trial['x_zero']} give {int(product.abs().max())}"
    return None


MATMUL = Exercise(
    id="02.6",
    title="Integer matmul with zero-points",
    minutes=10,
    difficulty=4,
    goal="multiply matrices on integers and correct for the zero-points afterwards",
    stub='''
    def integer_matmul(x_codes, x_zero, w_codes, w_zero):
        """sum_k (x_codes[t,k] - x_zero) * (w_codes[o,k] - w_zero[o,0]), integers [tokens, out]."""
        ...
    ''',
    solution='''
    def integer_matmul(x_codes, x_zero, w_codes, w_zero):
        """sum_k (x_codes[t,k] - x_zero) * (w_codes[o,k] - w_zero[o,0]), integers [tokens, out]."""
        product = x_codes.to(torch.int32) @ w_codes.to(torch.int32).T
        x_sums = x_codes.sum(dim=1, keepdim=True)
        w_sums = w_codes.sum(dim=1)
        zeros = w_zero.reshape(1, -1)
        depth = x_codes.shape[1]
        return product - x_zero * w_sums - x_sums * zeros + depth * x_zero * zeros
    ''',
    reference=matmul_reference,
    generate=_cases,
    bounds=(_real_zeros_give_zero, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You multiplied in 8 bits. One product of two codes can be 65025, and an 8-bit "
            "accumulator wraps at 256: hardware adds them up in 32 bits, and so must you.",
            swap=(
                "x_codes.to(torch.int32) @ w_codes.to(torch.int32).T",
                "(x_codes.to(torch.int32) @ w_codes.to(torch.int32).T).to(torch.uint8).int()",
            ),
        ),
        Mutant(
            "The term x_zero * (sum of each weight row) is missing. It depends on the weights "
            "alone, so a kernel computes it once and adds it to the bias.",
            swap=(" - x_zero * w_sums", ""),
        ),
        Mutant(
            "The term w_zero * (sum of each activation row) is missing. It depends on the input, "
            "so it costs something in every call: that is why weights are quantized "
            "symmetrically.",
            swap=(" - x_sums * zeros", ""),
        ),
        Mutant(
            "The last term is missing: both zero-points multiplied, once for every k. Without it "
            "they are subtracted once too often.",
            swap=(" + depth * x_zero * zeros", ""),
        ),
        Mutant(
            "Your constant term is added once. It stands inside of the sum over k, so it occurs "
            "x_codes.shape[1] times.",
            swap=("depth * x_zero * zeros", "x_zero * zeros"),
        ),
        Mutant(
            "Your constant term has the wrong sign: minus times minus is plus.",
            swap=("+ depth", "- depth"),
        ),
        Mutant(
            "You summed the weights over axis 0, the outputs. Each output needs the sum of its "
            "own row, over the inputs k: dim=1.",
            swap=("w_codes.sum(dim=1)", "w_codes.sum(dim=0)"),
        ),
        Mutant(
            "You summed the activations over the tokens. Each token needs the sum of its own "
            "row, over k: dim=1, keepdim=True.",
            swap=("x_codes.sum(dim=1, keepdim=True)", "x_codes.sum(dim=0, keepdim=True)"),
        ),
        Mutant(
            "Your weight zero-points run along the tokens. They belong to the outputs, the "
            "columns of the product: shape [1, out] there.",
            swap=("w_zero.reshape(1, -1)", "w_zero"),
        ),
        Mutant(
            "You multiplied the codes as if both zero-points were 0. A code is an offset from "
            "its zero-point: (x_codes - x_zero) * (w_codes - w_zero), multiplied out.",
            source="""
            def integer_matmul(x_codes, x_zero, w_codes, w_zero):
                return x_codes.to(torch.int32) @ w_codes.to(torch.int32).T
            """,
        ),
    ),
    hints=(
        "Multiply out (x - a) * (w - b): four terms. Which of them is the product of the codes?",
        "sum_k a * w[o,k] is a times the sum of a row of w_codes. What is sum_k of a * b?",
        "product - x_zero * w_row_sums - x_row_sums * w_zero.T + depth * x_zero * w_zero.T",
    ),
)
