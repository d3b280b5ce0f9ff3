"""Exercise of notebook 00: meet the checker with the smallest useful sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial


def weight_gibibytes(billions: float, bits: float) -> float:
    """Memory of `billions` x 10^9 weights of `bits` bits each, in GiB (2^30 bytes)."""
    return billions * 1e9 * bits / 8 / 2**30


def _cases(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    yield 7, 4
    yield 7, 16
    yield 0, 4
    yield 70, 8
    for _ in range(8):
        yield float(rng.uniform(0.1, 400)), int(rng.integers(1, 33))


def _doubles_with_bits(trial: Trial) -> str | None:
    """twice the bits take twice the memory"""
    twice = trial.call(trial["billions"], 2 * trial["bits"])
    if abs(twice - 2 * trial.got) > 1e-9 * abs(twice):
        return f"{2 * trial['bits']} bits give {twice:.6g} GiB, not {2 * trial.got:.6g}"
    return None


WEIGHT_MEMORY = Exercise(
    id="00.1",
    title="Memory of the weights",
    minutes=3,
    difficulty=1,
    goal="say how much memory a model's weights take at a given number of bits",
    stub='''
    def weight_gib(billions, bits):
        """GiB (1 GiB = 2**30 bytes) taken by `billions` x 10**9 weights of `bits` bits each."""
        ...
    ''',
    solution='''
    def weight_gib(billions, bits):
        """GiB (1 GiB = 2**30 bytes) taken by `billions` x 10**9 weights of `bits` bits each."""
        return billions * 1e9 * bits / 8 / 2**30
    ''',
    reference=weight_gibibytes,
    generate=_cases,
    bounds=(_doubles_with_bits, matches_reference(rtol=1e-9)),
    mutants=(
        Mutant(
            "You gave GB (10**9 bytes). The exercise asks for GiB (2**30 bytes), the unit in which "
            "GPU memory is sold and reported: a GiB is 7 % larger.",
            swap=("2**30", "1e9"),
        ),
        Mutant(
            "You counted bits as bytes. There are 8 bits in a byte.",
            swap=(" / 8", ""),
        ),
        Mutant(
            "You multiplied by 8. Bits become bytes by dividing: 4 bits are half a byte.",
            swap=("/ 8", "* 8"),
        ),
        Mutant(
            "You gave bytes. Divide by the number of bytes in a GiB, 2**30.",
            swap=(" / 2**30", ""),
        ),
        Mutant(
            "You took the model for `billions` weights: 7 means 7 x 10**9 of them.",
            swap=(" * 1e9", ""),
        ),
        Mutant(
            "You gave MiB (2**20 bytes). A GiB is 2**30 bytes.",
            swap=("2**30", "2**20"),
        ),
        Mutant(
            "You rounded each weight up to whole bytes (or down to none). Packed codes share "
            "bytes: two 4-bit codes fit in one.",
            source="""
            def weight_gib(billions, bits):
                return billions * 1e9 * (bits // 8) / 2**30
            """,
            recognise=lambda trial: _whole_bytes(trial),
        ),
    ),
    hints=(
        "How many bits do all the weights take together? How many bytes is that?",
        "7 billion weights at 16 bits take 7e9 * 2 bytes. Now divide by the bytes in a GiB.",
        "weights * bits / 8 gives bytes; one GiB is 2**30 of them.",
    ),
)


def _whole_bytes(trial: Trial) -> bool:
    down, up = trial["bits"] // 8, -(-trial["bits"] // 8)
    answers = [weight_gibibytes(trial["billions"], 8 * whole) for whole in (down, up)]
    return any(abs(trial.got - answer) <= 1e-9 * answer for answer in answers)


EXERCISES = [WEIGHT_MEMORY]
