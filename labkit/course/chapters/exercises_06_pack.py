"""Exercise 06.5: the order of AWQ's nibbles."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.formats.awq import BITS, ORDER
from labkit.formats.words import pack_rows

Packed = tuple[torch.Tensor, torch.Tensor]


def pack_awq(codes: torch.Tensor, zeros: torch.Tensor) -> Packed:
    """(qweight, qzeros) of codes [out, in] and zero-points [out, groups], as AWQ GEMM has them."""

    def interleaved(values: torch.Tensor) -> torch.Tensor:
        turned = values.T.contiguous()
        eights = turned.reshape(len(turned), -1, 8)[:, :, list(ORDER)]
        return pack_rows(eights.reshape(turned.shape), BITS)

    return interleaved(codes), interleaved(zeros)


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, 16, shape).astype(np.int32))

    yield torch.arange(8, dtype=torch.int32)[:, None], torch.tensor([[0], [15]] * 4).int()
    yield torch.full((8, 2), 15, dtype=torch.int32), torch.zeros(8, 1, dtype=torch.int32)
    yield drawn(8, 8), drawn(8, 2)
    yield drawn(16, 16), drawn(16, 4)
    for _ in range(6):
        out = 8 * int(rng.integers(1, 5))
        yield drawn(out, 8 * int(rng.integers(1, 4))), drawn(out, int(rng.integers(1, 4)))


def _shapes(trial: Trial) -> str | None:
    """qweight is [in, out / 8], qzeros [groups, out / 8]"""
    out = len(trial["codes"])
    for name, part, rows in zip(
        ("qweight", "qzeros"),
        trial.got,
        (trial["codes"].shape[1], trial["zeros"].shape[1]),
        strict=True,
    ):
        if tuple(part.shape) != (rows, out // 8):
            return f"{name} is {list(part.shape)}, not [{rows}, {out // 8}]"
    return None


def _thirty_two_bits(trial: Trial) -> str | None:
    """words are int32"""
    kinds = {str(part.dtype) for part in trial.got}
    return None if kinds == {"torch.int32"} else f"they are {', '.join(sorted(kinds))}"


PACK_AWQ = Exercise(
    id="06.5",
    title="The interleaved nibbles",
    minutes=12,
    difficulty=3,
    goal="pack 4-bit codes as AWQ's kernel reads them",
    stub='''
    def pack_awq(codes, zeros):
        """(qweight int32 [in, out / 8], qzeros int32 [groups, out / 8]) of values 0..15."""
        ...
    ''',
    solution='''
    def pack_awq(codes, zeros):
        """(qweight int32 [in, out / 8], qzeros int32 [groups, out / 8]) of values 0..15."""
        order = [0, 2, 4, 6, 1, 3, 5, 7]

        def packed(values):
            eights = values.T.reshape(values.shape[1], -1, 8).to(torch.int64)
            words = torch.zeros(eights.shape[:2], dtype=torch.int64)
            for nibble, column in enumerate(order):
                words |= eights[:, :, column] << (4 * nibble)
            return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

        return packed(codes), packed(zeros)
    ''',
    reference=pack_awq,
    answer_key=pack_awq,
    generate=_cases,
    bounds=(_shapes, _thirty_two_bits, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "Natural order: nibble i holds column i. AWQ's kernel splits a word into 16-bit lanes, "
            "and nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i].",
            swap=("[0, 2, 4, 6, 1, 3, 5, 7]", "[0, 1, 2, 3, 4, 5, 6, 7]"),
        ),
        Mutant(
            "That is the inverse order: you asked which nibble a column goes to, "
            "[0, 4, 1, 5, 2, 6, 3, 7]. Nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i].",
            swap=("[0, 2, 4, 6, 1, 3, 5, 7]", "[0, 4, 1, 5, 2, 6, 3, 7]"),
        ),
        Mutant(
            "You stored the zero-points minus 1, as the GPTQ format of version 1 does. AWQ stores "
            "them as they are.",
            swap=("packed(codes), packed(zeros)", "packed(codes), packed((zeros - 1) & 15)"),
        ),
        Mutant(
            "You put the first column into the highest bits. Nibble 0 is the lowest four.",
            swap=("4 * nibble", "28 - 4 * nibble"),
        ),
        Mutant(
            "You packed along in. AWQ GEMM packs eight *outputs* into a word: the codes "
            "[out, in] are turned first.",
            source="""
            def pack_awq(codes, zeros):
                order = [0, 2, 4, 6, 1, 3, 5, 7]

                def packed(values):
                    rows, columns = values.shape
                    if columns % 8:
                        values = F.pad(values, (0, -columns % 8))
                    eights = values.reshape(rows, -1, 8).to(torch.int64)
                    words = torch.zeros(eights.shape[:2], dtype=torch.int64)
                    for nibble, column in enumerate(order):
                        words |= eights[:, :, column] << (4 * nibble)
                    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

                return packed(codes), packed(zeros)
            """,
        ),
        Mutant(
            "The zero-points are in natural order: they are packed exactly as the codes are.",
            source="""
            def pack_awq(codes, zeros):
                def packed(values, order):
                    eights = values.T.reshape(values.shape[1], -1, 8).to(torch.int64)
                    words = torch.zeros(eights.shape[:2], dtype=torch.int64)
                    for nibble, column in enumerate(order):
                        words |= eights[:, :, column] << (4 * nibble)
                    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)

                order = [0, 2, 4, 6, 1, 3, 5, 7]
                return packed(codes, order), packed(zeros, list(range(8)))
            """,
        ),
        Mutant(
            "Words above 2**31 were clamped. The highest nibble reaches the sign bit: such a word "
            "is a negative int32, words - 2**32.",
            swap=("words - 2**32, words)", "words * 0 + 2**31 - 1, words)"),
        ),
    ),
    hints=(
        "Turn the codes, [in, out], cut the rows into eights, and add up eight shifted nibbles.",
        "Nibble i, at bits 4i, holds column [0, 2, 4, 6, 1, 3, 5, 7][i] of its eight.",
        "Sum in int64; a word of 2**31 or more becomes itself minus 2**32 in int32. The zeros are "
        "packed in the same way, without an offset.",
    ),
)
