"""Exercise 09.3: a row of 4-bit codes times x, with scale and zero-point outside of the sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.core.scheme import QuantScheme
from labkit.core.tensor import QuantizedTensor
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant
from labkit.kernels import Int4Weight, int4_linear


def group_gemv(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """y [out] of codes [out, in], scale and zero [out, groups], x [in]."""
    scheme = QuantScheme(4, False, "group", codes.shape[1] // scale.shape[1])
    weight = Int4Weight.from_quantized(QuantizedTensor(codes, scale, zero, scheme))
    return int4_linear(x, weight, implementation="reference")


Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _cases(rng: np.random.Generator) -> Iterator[Case]:
    def drawn(rows: int, groups: int, size: int) -> Case:
        codes = rng.integers(0, 16, (rows, groups * size)).astype(np.uint8)
        zero = rng.integers(1, 8, (rows, groups)).astype(np.uint8)
        scale = (0.01 * 2.0 ** rng.uniform(0, 3, (rows, groups))).astype(np.float32)
        x = rng.standard_normal(groups * size).astype(np.float32) + np.float32(0.5)
        return tuple(torch.from_numpy(part) for part in (codes, scale, zero, x))

    yield drawn(1, 1, 8)
    yield drawn(3, 2, 16)
    yield drawn(16, 4, 4)
    for _ in range(8):
        yield drawn(*(int(n) for n in rng.integers(2, 6, 2)), int(rng.choice([4, 8, 16, 32])))


GEMV = Exercise(
    id="09.3",
    title="A 4-bit product, group by group",
    minutes=15,
    difficulty=3,
    goal="multiply with 4-bit codes without writing the weights out",
    stub='''
    def group_gemv(codes, scale, zero, x):
        """y [out] = sum of scale * (code - zero) * x; codes uint8 [out, in], x float32 [in].

        scale float32 and zero uint8 are [out, groups]; a group is in / groups neighbours.
        """
        ...
    ''',
    solution='''
    def group_gemv(codes, scale, zero, x):
        """y [out] = sum of scale * (code - zero) * x; codes uint8 [out, in], x float32 [in].

        scale float32 and zero uint8 are [out, groups]; a group is in / groups neighbours.
        """
        out, groups = scale.shape
        c = codes.to(torch.float32).reshape(out, groups, -1)
        v = x.reshape(groups, -1)
        dots = (c * v).sum(dim=2)
        sums = v.sum(dim=1)
        return (scale * (dots - zero.to(torch.float32) * sums)).sum(dim=1)
    ''',
    reference=group_gemv,
    answer_key=int4_linear,
    generate=_cases,
    bounds=(matches_reference(rtol=1e-4, atol=1e-4),),
    mutants=(
        Mutant(
            "You left the zero-point out. Codes are 0 to 15, the weights they mean are not.",
            swap=("dots - zero.to(torch.float32) * sums", "dots"),
        ),
        Mutant(
            "You took the zero-point off once a group. Every weight of the group is zero too "
            "large, so it is zero times the sum of x that has to come off.",
            swap=("zero.to(torch.float32) * sums", "zero.to(torch.float32)"),
        ),
        Mutant(
            "You multiplied the zero-point by the sum of all of x. Only the group's own columns "
            "carry that zero-point.",
            swap=("v.sum(dim=1)", "x.sum()"),
        ),
        Mutant(
            "You took one mean scale for the row. Each group has its own: scale the group's sum "
            "before the groups are added up.",
            swap=(
                "(scale * (dots - zero.to(torch.float32) * sums)).sum(dim=1)",
                "scale.mean(dim=1) * (dots - zero.to(torch.float32) * sums).sum(dim=1)",
            ),
        ),
        Mutant(
            "Your groups take every groups-th column. A group is a run of neighbours.",
            swap=(
                ("codes.to(torch.float32).reshape(out, groups, -1)",
                 "codes.to(torch.float32).reshape(out, -1, groups).transpose(1, 2)"),
                ("x.reshape(groups, -1)", "x.reshape(-1, groups).T"),
            ),
        ),
        Mutant(
            "You subtracted in uint8: 3 - 8 is 251 there. Widen the codes before you subtract.",
            source="""
            def group_gemv(codes, scale, zero, x):
                out, groups = scale.shape
                steps = codes.reshape(out, groups, -1) - zero[:, :, None]
                return (scale[:, :, None] * steps * x.reshape(groups, -1)).sum(dim=(1, 2))
            """,
        ),
        Mutant(
            "You took the zero-point for 8 everywhere. That is the symmetric scheme; here each "
            "group brings its own.",
            swap=("zero.to(torch.float32) * sums", "8 * sums"),
        ),
        Mutant(
            "Your zero-point is not scaled. It is a code: subtract it before you multiply by the "
            "scale.",
            swap=(
                "scale * (dots - zero.to(torch.float32) * sums)",
                "scale * dots - zero.to(torch.float32) * sums",
            ),
        ),
    ),
    hints=(
        "Inside a group scale and zero-point are constants. What can leave the sum?",
        "sum (c - z) x = sum c x - z sum x, and the second sum is the same for all rows.",
        "Reshape codes to [out, groups, size] and x to [groups, size]; sum over the last axis; "
        "then scale; then sum over groups.",
    ),
)  # fmt: skip
