"""Exercise 05.4: scales of groups, chosen inside of the loop."""

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

Found = tuple[torch.Tensor, torch.Tensor]


def gptq_groups(weight: torch.Tensor, upper: torch.Tensor, bits: int, group_size: int) -> Found:
    """(codes [out, in], scales [out, in / group_size]); grids of corrected weights."""
    w = weight.clone()
    grid = Grid.empty(w, QuantScheme(bits, True, "group", group_size), w.dtype)
    grid.scale, grid.zero = grid.scale.to(w.dtype), grid.zero.to(w.dtype)
    codes = torch.empty(w.shape, dtype=torch.int8)
    for start in range(0, w.shape[1], group_size):
        stop = start + group_size
        grid.fit(w[:, start:stop], start // group_size)
        block = w[:, start:stop].contiguous()
        errors = round_block(
            block, upper[start:stop, start:stop], grid, start, codes[:, start:stop]
        )
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes, grid.scale


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int, int]]:
    for number in range(12):
        size = (2, 3, 4)[number % 3]
        columns = size * int(rng.integers(3, 5))
        rows = columns if number % 4 == 0 else int(rng.integers(4, 8))
        weight = torch.from_numpy(rng.standard_normal((rows, columns)))
        weight[:, -size:] *= 0.3
        upper = torch.linalg.cholesky(torch.linalg.inv(hessian_of(rng, columns)), upper=True)
        yield weight, upper, (3, 4)[number % 2], size


def _first_group(trial: Trial) -> str | None:
    """nothing has moved yet when the first group's scale is chosen"""
    scales = trial.got[1]
    expected = (trial["weight"].shape[0], trial["weight"].shape[1] // trial["group_size"])
    if tuple(scales.shape) != expected:
        return f"scales are {list(scales.shape)}, not {list(expected)}"
    largest = trial["weight"][:, : trial["group_size"]].abs().amax(dim=1)
    wanted = largest / (2 ** (trial["bits"] - 1) - 1)
    same = torch.allclose(scales[:, 0].double(), wanted, rtol=1e-6)
    return None if same else "the first group's scales are not max|w| / (2^(b-1) - 1) of its rows"


GROUPS = Exercise(
    id="05.4",
    title="Groups inside the loop",
    minutes=15,
    difficulty=4,
    goal="choose a group's scale at the moment when its weights are known",
    stub='''
    def gptq_groups(weight, upper, bits, group_size):
        """(codes [out, in], scales [out, in / group_size]); upper: the factor of H⁻¹ [in, in]."""
        ...
    ''',
    solution='''
    def gptq_groups(weight, upper, bits, group_size):
        """(codes [out, in], scales [out, in / group_size]); upper: the factor of H⁻¹ [in, in]."""
        w, largest = weight.clone(), 2 ** (bits - 1) - 1
        codes, scales = torch.zeros(w.shape, dtype=torch.int64), []
        for j in range(w.shape[1]):
            if j % group_size == 0:
                group = w[:, j : j + group_size]
                scale = group.abs().amax(dim=1) / largest
                scales.append(scale)
            codes[:, j] = (w[:, j] / scale).round().clamp(-largest, largest)
            error = (w[:, j] - codes[:, j] * scale) / upper[j, j]
            w[:, j:] -= error[:, None] * upper[j, j:]
        return codes, torch.stack(scales, dim=1)
    ''',
    reference=gptq_groups,
    answer_key=Grid.fit_groups,
    generate=_cases,
    bounds=(_first_group, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "You chose the grid from stale weights. When a group is reached its weights have "
            "taken the errors of all columns before; fit what will be rounded.",
            swap=("group = w[:,", "group = weight[:,"),
        ),
        Mutant(
            "You chose a new scale at every column from what is left of the group, and stored the "
            "first. A group has one scale, and all of its codes must use it.",
            swap=(
                "codes[:, j] = (w",
                "scale = w[:, j : j - j % group_size + group_size].abs().amax(dim=1) / largest\n"
                "        codes[:, j] = (w",
            ),
        ),
        Mutant(
            "You chose the scale at a group's last column, when most of it was rounded with the "
            "scale of the group before.",
            source="""
            def gptq_groups(weight, upper, bits, group_size):
                w, largest = weight.clone(), 2 ** (bits - 1) - 1
                codes, scales = torch.zeros(w.shape, dtype=torch.int64), []
                scale = w[:, :group_size].abs().amax(dim=1) / largest
                for j in range(w.shape[1]):
                    if j % group_size == group_size - 1:
                        start = j - group_size + 1
                        scale = w[:, start : j + 1].abs().amax(dim=1) / largest
                        if start == 0:
                            scale = weight[:, :group_size].abs().amax(dim=1) / largest
                        scales.append(scale)
                    codes[:, j] = (w[:, j] / scale).round().clamp(-largest, largest)
                    error = (w[:, j] - codes[:, j] * scale) / upper[j, j]
                    w[:, j:] -= error[:, None] * upper[j, j:]
                return codes, torch.stack(scales, dim=1)
            """,
        ),
        Mutant(
            "You took the largest weight, not the largest |w|: negative ones are cut off.",
            swap=("group.abs().amax(dim=1)", "group.amax(dim=1).abs()"),
        ),
        Mutant(
            "You divided by 2^b - 1. A symmetric code has 2^(b-1) - 1 steps on each side of 0.",
            swap=(
                "scale = group.abs().amax(dim=1) / largest",
                "scale = group.abs().amax(dim=1) / (2**bits - 1)",
            ),
        ),
        Mutant(
            "You gave the whole row one scale, and repeated it for every group.",
            swap=("group = w[:, j : j + group_size]", "group = weight"),
        ),
        Mutant(
            "You passed no errors on: that is round-to-nearest with groups.",
            swap=("w[:, j:] -= error[:, None] * upper[j, j:]", "pass"),
        ),
    ),
    hints=(
        "The loop is that of 05.3. What changes when j % group_size is 0?",
        "Take the scale from w, the clone that has been moved, columns j to j + group_size.",
        "Append it to a list; torch.stack(scales, dim=1) is [out, groups].",
    ),
)
