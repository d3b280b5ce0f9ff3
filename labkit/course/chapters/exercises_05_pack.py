"""Exercise 05.6: GPTQ's words of 32 bits, and the minus one of version 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.formats.words import pack_rows

Packed = tuple[torch.Tensor, torch.Tensor]


def pack_gptq(codes: torch.Tensor, zeros: torch.Tensor) -> Packed:
    """(qweight [in / 8, out], qzeros [groups, out / 8]) of 4-bit codes and zero-points."""
    return pack_rows(codes, 4).T.contiguous(), pack_rows((zeros - 1).T.contiguous(), 4)


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    def drawn(low: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(low, 16, shape).astype(np.int32))

    first = torch.arange(8, dtype=torch.int32).repeat(8, 1)
    yield first, torch.arange(1, 9, dtype=torch.int32)[:, None]
    yield torch.full((8, 8), 15, dtype=torch.int32), torch.full((8, 1), 8, dtype=torch.int32)
    yield drawn(0, 16, 16), drawn(1, 16, 2)
    yield drawn(0, 8, 32), drawn(1, 8, 8)
    for _ in range(6):
        out, columns = (8 * int(rng.integers(1, 5)) for _ in range(2))
        yield drawn(0, out, columns), drawn(1, out, int(rng.integers(1, 5)))


def _shapes(trial: Trial) -> str | None:
    """qweight is int32 [in / 8, out], qzeros int32 [groups, out / 8]"""
    out, columns = trial["codes"].shape
    wanted = ([columns // 8, out], [trial["zeros"].shape[1], out // 8])
    for name, part, shape in zip(("qweight", "qzeros"), trial.got, wanted, strict=True):
        if list(part.shape) != shape or part.dtype != torch.int32:
            return f"{name} is {part.dtype} {list(part.shape)}, not int32 {shape}"
    return None


PACK = Exercise(
    id="05.6",
    title="Eight codes in a word",
    minutes=15,
    difficulty=3,
    goal="pack codes and zero-points as a GPTQ checkpoint stores them",
    stub='''
    def pack_gptq(codes, zeros):
        """int32 [in / 8, out] of codes [out, in], [groups, out / 8] of zeros [out, groups]."""
        ...
    ''',
    solution='''
    def pack_gptq(codes, zeros):
        """int32 [in / 8, out] of codes [out, in], [groups, out / 8] of zeros [out, groups]."""
        def words(rows):
            eights = rows.to(torch.int64).reshape(len(rows), -1, 8)
            shifts = 4 * torch.arange(8)
            return (eights << shifts).sum(dim=2).to(torch.int32)

        return words(codes).T.contiguous(), words((zeros - 1).T)
    ''',
    reference=pack_gptq,
    answer_key=pack_rows,
    generate=_cases,
    bounds=(_shapes, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You stored the zero-points as they are. Version 1 of the format stores z - 1, and "
            "every reader of it adds 1 again.",
            swap=("(zeros - 1).T", "zeros.T"),
        ),
        Mutant(
            "You added 1 to the zero-points: that is what the reader does. The writer takes 1 off.",
            swap=("(zeros - 1).T", "((zeros + 1) % 16).T"),
        ),
        Mutant(
            "You packed the codes along out. A word of qweight holds eight neighbours along in, "
            "of one output.",
            swap=("words(codes).T.contiguous()", "words(codes.T).reshape(-1, len(codes))"),
        ),
        Mutant(
            "You put the first code into the highest bits. Code i of a word is at bits 4i to "
            "4i + 3, low bits first.",
            swap=("4 * torch.arange(8)", "4 * torch.arange(7, -1, -1)"),
        ),
        Mutant(
            "You took 1 off the codes too. Only the zero-points have this habit.",
            swap=("words(codes)", "words((codes - 1) % 16)"),
        ),
        Mutant(
            "You packed zero-points out of their order: transpose to [groups, out] first, then "
            "pack along out.",
            swap=(
                "words((zeros - 1).T)",
                "words((zeros - 1).reshape(zeros.shape[1], zeros.shape[0]))",
            ),
        ),
    ),
    hints=(
        "A word is the sum of code i shifted left by 4 i bits, i from 0 to 7.",
        "Sum in int64 and convert to int32 last: the top code may set the sign bit.",
        "qweight: pack [out, in] along in, then transpose. qzeros: zeros - 1, transposed to "
        "[groups, out], packed along out.",
    ),
)
