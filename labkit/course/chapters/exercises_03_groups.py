"""Exercise 03.4: a scale for each group of neighbours in a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.course.inputs import weight
from labkit.quantize import rtn


def quantize_groups(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8 [out, in], scale float32 [out, in / group_size]): symmetric round-to-nearest."""
    scheme = QuantScheme(bits, symmetric=True, granularity="group", group_size=group_size)
    quantized = rtn.quantize(weight, scheme, scale_dtype=torch.float32)
    return quantized.codes, quantized.scale


def _grouped(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, int, int]]:
    yield torch.tensor([[0.9, -1.0, 0.1, 0.35], [6.5, -7.0, -30.0, 70.0]]), 4, 2
    yield torch.tensor([[-5.0, -1.0, 0.0, 0.0], [1.0, 2.0, -0.5, 0.1]]), 3, 2
    yield weight(rng, 4, 10), 4, 4
    yield weight(rng, 6, 7), 4, 3
    yield weight(rng, 3, 6), 8, 6
    yield weight(rng, 8, 8), 4, 4
    for _ in range(8):
        size = int(rng.choice([2, 3, 4, 6]))
        rows, columns = size * int(rng.integers(1, 4)), size * int(rng.integers(1, 5))
        yield weight(rng, rows, columns), int(rng.integers(2, 9)), size


def _scales_reach_the_group(trial: Trial) -> str | None:
    """a scale is the largest |w| of its group over the largest code"""
    wrong = ~torch.isclose(trial.got[1].float(), trial.expected[1], rtol=1e-4)
    if not bool(wrong.any()):
        return None
    row, group = (int(i) for i in wrong.nonzero()[0])
    got, right = float(trial.got[1][row, group]), float(trial.expected[1][row, group])
    return f"scale [{row}, {group}] is {got:.4g}, not {right:.4g}"


def _codes_are_the_nearest(trial: Trial) -> str | None:
    """|w - code * scale| is at most half a step"""
    columns = trial["weight"].shape[1]
    scale = trial.expected[1].repeat_interleave(columns // trial.expected[1].shape[1], dim=1)
    error = (trial["weight"] - trial.got[0].float() * scale).abs() / scale
    if float(error.max()) <= 0.5 + 1e-3:
        return None
    row, column = divmod(int(error.argmax()), columns)
    return f"at [{row}, {column}] it is {float(error.max()):.3g} steps"


def _codes_fit(trial: Trial) -> str | None:
    """codes lie in -qmax .. qmax"""
    qmax = 2 ** (trial["bits"] - 1) - 1
    largest = int(trial.got[0].to(torch.int32).abs().max())
    return f"one is {largest} from 0; qmax is {qmax}" if largest > qmax else None


QUANTIZE_GROUPS = Exercise(
    id="03.4",
    title="Groups along a row",
    minutes=12,
    difficulty=3,
    goal="quantize a weight with a scale for each group of neighbours",
    stub='''
    def quantize_groups(weight, bits, group_size):
        """Return (codes int8 [out, in], scale [out, in / group_size]); symmetric, nearest."""
        ...
    ''',
    solution='''
    def quantize_groups(weight, bits, group_size):
        """Return (codes int8 [out, in], scale [out, in / group_size]); symmetric, nearest."""
        rows, columns = weight.shape
        if columns % group_size:
            raise ValueError(f"{group_size} does not divide {columns} columns")
        qmax = 2 ** (bits - 1) - 1
        groups = weight.reshape(rows, columns // group_size, group_size)
        largest = groups.abs().amax(dim=2)
        scale = torch.where(largest > 0, largest / qmax, torch.ones_like(largest))
        codes = torch.clamp(torch.round(groups / scale[..., None]), -qmax, qmax)
        return codes.reshape(rows, columns).to(torch.int8), scale
    ''',
    reference=quantize_groups,
    answer_key=rtn.quantize,
    generate=_grouped,
    bounds=(_scales_reach_the_group, _codes_fit, _codes_are_the_nearest),
    mutants=(
        Mutant(
            "Your groups run down a column, along out. The sum of one output runs along a row, so "
            "groups are neighbours in a row and the scales are [out, in / group_size].",
            source="""
            def quantize_groups(weight, bits, group_size):
                turned = weight.t()
                rows, columns = turned.shape
                if columns % group_size:
                    raise ValueError("ragged")
                qmax = 2 ** (bits - 1) - 1
                groups = turned.reshape(rows, columns // group_size, group_size)
                largest = groups.abs().amax(dim=2)
                scale = torch.where(largest > 0, largest / qmax, torch.ones_like(largest))
                codes = torch.clamp(torch.round(groups / scale[..., None]), -qmax, qmax)
                return codes.reshape(rows, columns).t().to(torch.int8), scale.t()
            """,
        ),
        Mutant(
            "Where group_size does not divide the row you dropped the columns that were left over: "
            "the weight came back narrower, without a word. Raise ValueError.",
            swap=(
                """if columns % group_size:
        raise ValueError(f"{group_size} does not divide {columns} columns")""",
                """columns -= columns % group_size
    weight = weight[:, :columns]""",
            ),
        ),
        Mutant(
            "Where group_size does not divide the row you filled it up with zeros. The file format "
            "and the kernel know the weight as [out, in]: raise ValueError, let the caller decide.",
            swap=(
                'raise ValueError(f"{group_size} does not divide {columns} columns")',
                "weight = F.pad(weight, (0, -columns % group_size)); columns = weight.shape[1]",
            ),
        ),
        Mutant(
            "You read group_size as the number of groups. It is how many neighbours share a scale: "
            "a row of 4096 has 32 groups of size 128.",
            swap=(
                "weight.reshape(rows, columns // group_size, group_size)",
                "weight.reshape(rows, group_size, columns // group_size)",
            ),
        ),
        Mutant(
            "Your groups take every n-th column. Members of a group are neighbours: columns "
            "0 .. g-1, then g .. 2g-1, as they lie in memory.",
            swap=(
                (
                    "weight.reshape(rows, columns // group_size, group_size)",
                    "weight.reshape(rows, group_size, columns // group_size).transpose(1, 2)",
                ),
                ("codes.reshape(rows, columns)", "codes.transpose(1, 2).reshape(rows, columns)"),
            ),
        ),
        Mutant(
            "Every group of a row has the same scale: you took the maximum of the whole row, so "
            "this is one scale per channel, stored many times.",
            swap=(
                "groups.abs().amax(dim=2)",
                "groups.abs().amax(dim=2).amax(1, True) + torch.zeros_like(groups[..., 0])",
            ),
        ),
        Mutant(
            "The scales are one long list. Keep them [out, in / group_size], so that row r and "
            "group k are found by index.",
            swap=("to(torch.int8), scale", "to(torch.int8), scale.reshape(-1)"),
        ),
        Mutant(
            "You cut the fraction off instead of rounding: the error reaches a whole step, and "
            "all weights shrink towards zero.",
            swap=(
                "torch.round(groups / scale[..., None])",
                "torch.trunc(groups / scale[..., None])",
            ),
        ),
        Mutant(
            "You took the largest value of a group, not the largest |w|: groups with a longer "
            "negative end are clipped.",
            swap=("groups.abs()", "groups"),
        ),
        Mutant(
            "A group of zeros has scale 0, and 0 / 0 is NaN, which has no integer code. Give it "
            "scale 1.",
            swap=(
                "torch.where(largest > 0, largest / qmax, torch.ones_like(largest))",
                "largest / qmax",
            ),
        ),
    ),
    hints=(
        "One reshape does it: [out, in] becomes [out, groups, group_size]. Which axis is reduced?",
        "scale is [out, groups]; scale[..., None] broadcasts over the members of a group.",
        "Check columns % group_size first and raise ValueError. Clamp before the cast to int8, and "
        "reshape the codes back to [out, in].",
    ),
)
