"""Exercise 07.4: sixteen numbers of 6 bits in the twelve bytes of Q4_K."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize.kquants import pack_pairs, unpack_pairs


def unpack_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales, mins), uint8 [n, 8] each, of packed uint8 [n, 12]."""
    return unpack_pairs(packed)


def _cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray]]:
    first = np.arange(8, dtype=np.uint8)[None]
    yield (pack_pairs(first, first + 8),)
    yield (pack_pairs(first * 9, 63 - first * 9),)
    yield (pack_pairs(np.full((1, 8), 63, np.uint8), np.zeros((1, 8), np.uint8)),)
    yield (rng.integers(0, 256, (12, 12)).astype(np.uint8),)
    for _ in range(6):
        yield (rng.integers(0, 256, (int(rng.integers(1, 6)), 12)).astype(np.uint8),)


def _six_bits(trial: Trial) -> str | None:
    """scales and mins are uint8 [n, 8], none above 63"""
    rows = len(trial["packed"])
    for name, part in zip(("scales", "mins"), trial.got, strict=True):
        if part.shape != (rows, 8):
            return f"{name} is {list(part.shape)}"
        if part.max() > 63:
            return f"{name} reaches {part.max()}"
    return None


UNPACK_SCALES = Exercise(
    id="07.4",
    title="Six bits, twelve bytes",
    minutes=12,
    difficulty=3,
    goal="find the eight scales and eight mins of a Q4_K super-block",
    stub='''
    def unpack_scales(packed):
        """(scales, mins): uint8 [n, 8] each, 0 to 63, of the uint8 [n, 12] of Q4_K."""
        ...
    ''',
    solution='''
    def unpack_scales(packed):
        """(scales, mins): uint8 [n, 8] each, 0 to 63, of the uint8 [n, 12] of Q4_K."""
        a, b, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
        scales = np.concatenate([a & 63, (rest & 15) | (a >> 6) << 4], axis=1)
        mins = np.concatenate([b & 63, (rest >> 4) | (b >> 6) << 4], axis=1)
        return scales, mins
    ''',
    reference=unpack_scales,
    answer_key=unpack_pairs,
    generate=_cases,
    bounds=(_six_bits, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "The halves of bytes 8 to 11 are swapped: the low 4 bits belong to scales 4 to 7, the "
            "high 4 to mins 4 to 7.",
            swap=(("(rest & 15)", "(rest  >> 4)"), ("(rest >> 4)", "(rest & 15)")),
        ),
        Mutant(
            "Scales 4 to 7 and mins 4 to 7 took their high bits from the wrong place: those of the "
            "scales are on top of bytes 0 to 3, those of the mins on top of bytes 4 to 7.",
            swap=(("(a >> 6)", "(b  >> 6)"), ("(b >> 6)", "(a >> 6)")),
        ),
        Mutant(
            "Scales and mins 4 to 7 have 4 bits only: their high 2 bits, on top of bytes 0 to 7, "
            "are missing.",
            swap=((" | (a >> 6) << 4", ""), (" | (b >> 6) << 4", "")),
        ),
        Mutant(
            "Bytes 0 to 7 hold 6 bits of one number and 2 of another: mask the first with & 63.",
            swap=(("a & 63", "a"), ("b & 63", "b")),
            recognise=lambda trial: all(
                np.array_equal(part[:, :4], trial["packed"][:, at : at + 4])
                for part, at in zip(trial.got, (0, 4), strict=True)
            ),
        ),
        Mutant(
            "The two high bits came out as the low ones: the number is (high << 4) | low.",
            swap=(
                ("(rest & 15) | (a >> 6) << 4", "(rest & 15) << 2 | (a >> 6)"),
                ("(rest >> 4) | (b >> 6) << 4", "(rest >> 4) << 2 | (b >> 6)"),
            ),
        ),
        Mutant(
            "That is a plain stream of 6-bit numbers. Q4_K keeps the first four of each in bytes "
            "of their own, so that one mask gets them, and cuts up the last four.",
            source="""
            def unpack_scales(packed):
                bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
                numbers = (bits << np.arange(6, dtype=np.uint8)).sum(axis=2).astype(np.uint8)
                return numbers[:, :8], numbers[:, 8:]
            """,
        ),
        Mutant(
            "Scales and mins are exchanged: bytes 0 to 3 begin with the scales.",
            swap=("return scales, mins", "return mins, scales"),
        ),
    ),
    hints=(
        "Cut the twelve bytes into three fours: a, b, rest. Scales 0 to 3 are a & 63, mins 0 to 3 "
        "are b & 63.",
        "What is left of a and b, >> 6, are the high 2 bits of scales 4 to 7 and of mins 4 to 7.",
        "Their low 4 bits are in rest: scales in the low half, mins in the high half. "
        "Scale 4 is (rest[0] & 15) | (a[0] >> 6) << 4.",
    ),
)
