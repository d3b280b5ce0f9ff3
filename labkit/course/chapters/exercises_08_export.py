"""Exercise 08.6: the integers of a trained weight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import shapes, weight
from labkit.training.fake_quant import to_integers
from labkit.training.lsq import LearnedScale

Case = tuple[torch.Tensor, torch.Tensor, int]


@torch.no_grad()
def export_integers(
    weight: torch.Tensor, scale: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8 [out, in], scale float16 [out, 1]) of a weight and its learned scales."""
    scheme = QuantScheme(bits, narrow_range=False)
    learned = LearnedScale.of_weight(weight, scheme, scale_dtype=torch.float16)
    learned.scale.copy_(scale)
    quantized = learned.quantized(weight)
    return quantized.codes, quantized.scale


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    # float16 rounds this scale to 1: whoever divides by it unrounded gets 100 for 101.
    scale = torch.tensor([[1 + 2.0**-11 - 2.0**-20]])
    yield torch.tensor([[100.52, -100.52, 1.5, -2.5, 0.5]]), scale, 8
    # Beyond both ends, and the most negative code.
    yield torch.tensor([[9.0, -9.0, -4.0, 3.0, -3.6]]), torch.tensor([[1.0]]), 3
    for rows, columns in shapes(rng, 10, largest=9):
        w = weight(rng, rows, columns)
        bits = int(rng.integers(2, 6))
        # Learned scales: below the one that would clip nothing.
        scale = w.abs().amax(dim=1, keepdim=True) / 2 ** (bits - 1) * float(rng.uniform(0.6, 0.9))
        yield w, scale, bits


def _dtypes(trial: Trial) -> str | None:
    """codes are int8, scales float16, as the file stores them"""
    codes, scale = trial.got
    if codes.dtype != torch.int8 or scale.dtype != torch.float16:
        return f"codes are {codes.dtype}, scales {scale.dtype}"
    return None


def _what_was_trained(trial: Trial) -> str | None:
    """codes times scales are the very weights that training computed with"""
    codes, scale = trial.got
    stored = trial["scale"].half().float()
    last = 2 ** (trial["bits"] - 1) - 1
    trained = torch.round(trial["weight"] / stored).clamp(-last - 1, last) * stored
    wrong = codes.float() * scale.float() != trained
    if wrong.any():
        first = tuple(int(i) for i in wrong.nonzero()[0])
        return (
            f"weight {list(first)} was {float(trained[first]):.6g} in training and is "
            f"{float((codes.float() * scale.float())[first]):.6g} now"
        )
    return None


EXPORT = Exercise(
    id="08.6",
    title="Export what was trained",
    minutes=10,
    difficulty=2,
    goal="turn a trained weight into integers that give the same model, to the bit",
    stub='''
    def export_integers(weight, scale, bits):
        """(codes int8 [out, in], scale float16 [out, 1]); weight and learned scale are float32."""
        ...
    ''',
    solution='''
    def export_integers(weight, scale, bits):
        """(codes int8 [out, in], scale float16 [out, 1]); weight and learned scale are float32."""
        stored = scale.half()
        last = 2 ** (bits - 1) - 1
        steps = torch.round(weight / stored.float())
        return steps.clamp(-last - 1, last).to(torch.int8), stored
    ''',
    reference=export_integers,
    answer_key=to_integers,
    generate=_cases,
    bounds=(_dtypes, _what_was_trained, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You divide by the float32 scale and store the float16 one. Training divided by the "
            "number that is stored; near a tie the other gives another code.",
            swap=("weight / stored.float()", "weight / scale"),
        ),
        Mutant(
            "You chose the scales anew from the largest weight. They were learned: with others "
            "this is another model, one that was never trained.",
            swap=(
                "stored = scale.half()\n    last = 2 ** (bits - 1) - 1",
                "last = 2 ** (bits - 1) - 1\n"
                "    stored = (weight.abs().amax(dim=1, keepdim=True) / (last + 0.5)).half()",
            ),
        ),
        Mutant(
            "You cut the fraction off: a cast to int8 does not round.",
            swap=("torch.round(weight / stored.float())", "torch.trunc(weight / stored.float())"),
        ),
        Mutant(
            "You round halves up, floor(x + 0.5). Training rounded with torch.round: halves to "
            "even.",
            swap=(
                "torch.round(weight / stored.float())",
                "torch.floor(weight / stored.float() + 0.5)",
            ),
        ),
        Mutant(
            "You left the most negative code out. This grid is the full one: -2^(b-1) to "
            "2^(b-1) - 1.",
            swap=("clamp(-last - 1, last)", "clamp(-last, last)"),
        ),
        Mutant(
            "You did not clamp. Learned scales clip on purpose: weights beyond the last code take "
            "the last code.",
            swap=(
                "steps.clamp(-last - 1, last).to(torch.int8)",
                "steps.clamp(-128, 127).to(torch.int8)",
            ),
        ),
        Mutant(
            "The scale goes out in float32. The file has float16, and the weights that come back "
            "differ from those that were trained.",
            swap=(
                ("stored = scale.half()", "stored = scale.float()"),
                ("weight / stored.float()", "weight / scale.half().float()"),
            ),
        ),
        Mutant(
            "You round weight · scale. A code is how many steps fit into the weight.",
            swap=("weight / stored.float()", "weight * stored.float()"),
        ),
    ),
    hints=(
        "Which scale did training divide by? The one that will be stored.",
        "stored = scale.half(); the codes come from weight / stored.float().",
        "Round, clamp to -2**(bits-1) .. 2**(bits-1) - 1, then .to(torch.int8).",
    ),
)
