"""Exercise 07.5: what a block type really costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial

Arguments = tuple[int, int, int, int, bool]

# sub-blocks, weights of each, bits of a code, bits of a scale, mins: as the types are built.
BUILT = {
    "Q4_0": (1, 32, 4, 16, False),
    "Q4_1": (1, 32, 4, 16, True),
    "Q5_0": (1, 32, 5, 16, False),
    "Q5_1": (1, 32, 5, 16, True),
    "Q8_0": (1, 32, 8, 16, False),
    "Q2_K": (16, 16, 2, 4, True),
    "Q3_K": (16, 16, 3, 6, False),
    "Q4_K": (8, 32, 4, 6, True),
    "Q5_K": (8, 32, 5, 6, True),
    "Q6_K": (16, 16, 6, 8, False),
    "IQ4_NL": (1, 32, 4, 16, False),
    "IQ4_XS": (8, 32, 4, 6, False),
}


def bits_per_weight(
    sub_blocks: int, size: int, code_bits: int, scale_bits: int, mins: bool
) -> float:
    """Bits per weight of a block type, scales counted."""
    shared = 2 if mins else 1
    total = sub_blocks * (size * code_bits + shared * scale_bits)
    if scale_bits < 16:
        total += 16 * shared
    return total / (sub_blocks * size)


def _cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield from BUILT.values()
    for _ in range(6):
        sub_blocks, size = int(rng.integers(2, 17)), 8 * int(rng.integers(1, 9))
        bits = int(rng.integers(2, 9)), int(rng.integers(4, 9))
        yield sub_blocks, size, *bits, bool(rng.integers(2))


def _above_codes(trial: Trial) -> str | None:
    """scales cost something: a weight takes more bits than its code"""
    bits = float(trial.got)
    if bits <= trial["code_bits"]:
        return f"{bits:g} bits for codes of {trial['code_bits']}"
    return None


BITS = Exercise(
    id="07.5",
    title="True bits per weight",
    minutes=7,
    difficulty=1,
    goal="say what a type costs from how it is built",
    stub='''
    def bits_per_weight(sub_blocks, size, code_bits, scale_bits, mins):
        """All bits of a (super-)block over its weights; scales of 16 bits are float16 already."""
        ...
    ''',
    solution='''
    def bits_per_weight(sub_blocks, size, code_bits, scale_bits, mins):
        """All bits of a (super-)block over its weights; scales of 16 bits are float16 already."""
        shared = 2 if mins else 1
        total = sub_blocks * (size * code_bits + shared * scale_bits)
        if scale_bits < 16:
            total += 16 * shared
        return total / (sub_blocks * size)
    ''',
    reference=bits_per_weight,
    answer_key=bits_per_weight,
    generate=_cases,
    bounds=(_above_codes, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "The float16 that turns the small whole scales into real ones is missing: one for the "
            "scales of a super-block, one more for its mins.",
            swap=("total += 16 * shared", "pass"),
        ),
        Mutant(
            "With mins there are two float16 a super-block, d and dmin.",
            swap=("total += 16 * shared", "total += 16"),
        ),
        Mutant(
            "A min takes as many bits as a scale, in every sub-block.",
            swap=("shared * scale_bits", "scale_bits"),
        ),
        Mutant(
            "A scale of 16 bits is a float16: nothing stands above it.",
            swap=("if scale_bits < 16:", "if True:"),
        ),
        Mutant(
            "You counted one scale for the whole super-block: every sub-block has its own.",
            swap=(
                "sub_blocks * (size * code_bits + shared * scale_bits)",
                "sub_blocks * size * code_bits + shared * scale_bits",
            ),
        ),
        Mutant(
            "The two float16 are shared by the whole super-block, not repeated in each sub-block.",
            swap=("total += 16 * shared", "total += 16 * shared * sub_blocks"),
        ),
        Mutant(
            "A float16 has 16 bits; you added its 2 bytes.",
            swap=("total += 16 * shared", "total += 2 * shared"),
        ),
    ),
    hints=(
        "Count the bits of a whole super-block, then divide by its sub_blocks * size weights.",
        "A sub-block: size codes, a scale, and with mins a min of as many bits.",
        "On top, once: a float16 for the scales (and one for the mins), unless scale_bits is 16.",
    ),
)
