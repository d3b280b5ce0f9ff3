"""Exercise 07.2: Q8_0, the simplest block, encoded byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize import gguf
from labkit.quantize.legacy_blocks import encode_q8_0 as answer_key


def encode_q8_0(x: np.ndarray) -> np.ndarray:
    """Blocks uint8 [n, 34] of float32 [n, 32]: a float16 scale, then 32 codes int8."""
    return gguf.quantize(x, "Q8_0", loop="plain")


def _cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray]]:
    ties = np.arange(32, dtype=np.float32) - 15.5
    ties[0] = 127  # the step is 1, and every other value lies between two codes
    yield (ties[None],)
    yield (np.zeros((2, 32), np.float32),)
    yield (np.stack([np.linspace(-3, 1, 32), np.linspace(-0.1, 0.4, 32)]).astype(np.float32),)
    # A step that float16 rounds by almost half a unit in the last place, and large codes.
    step = np.float32(1 + 2.0**-11 - 2.0**-20)
    fine = np.linspace(60, 127, 32).astype(np.float32) * step
    yield (fine[None],)
    yield (rng.standard_normal((32, 32)).astype(np.float32),)
    for _ in range(6):
        rows = int(rng.integers(1, 6))
        sizes = rng.uniform(0.01, 10, (rows, 1))
        yield ((rng.standard_normal((rows, 32)) * sizes).astype(np.float32),)


def _bytes(trial: Trial) -> str | None:
    """a block is 34 bytes: float16 scale, 32 codes"""
    rows = len(trial["x"])
    if trial.got.shape != (rows, 34) or trial.got.dtype != np.uint8:
        return f"you return {trial.got.dtype} {list(trial.got.shape)}, not uint8 [{rows}, 34]"
    return None


ENCODE_Q8_0 = Exercise(
    id="07.2",
    title="Encode Q8_0",
    minutes=10,
    difficulty=2,
    goal="write a block that llama.cpp would have written, bit for bit",
    stub='''
    def encode_q8_0(x):
        """uint8 [n, 34] of float32 x [n, 32]: step as float16, little-endian; 32 codes int8."""
        ...
    ''',
    solution='''
    def encode_q8_0(x):
        """uint8 [n, 34] of float32 x [n, 32]: step as float16, little-endian; 32 codes int8."""
        step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        inverse = np.where(step > 0, np.float32(1) / np.where(step > 0, step, 1), np.float32(0))
        scaled = (x * inverse).astype(np.float64)
        codes = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int8)
        scale = step.astype("<f2").view(np.uint8)
        return np.concatenate([scale, codes.view(np.uint8)], axis=1)
    ''',
    reference=encode_q8_0,
    answer_key=answer_key,
    generate=_cases,
    bounds=(_bytes, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "np.round rounds halves to even: 0.5 to 0, 2.5 to 2. Q8_0 rounds with C's roundf, "
            "halves away from zero: 1 and 3.",
            swap=("np.trunc(scaled + np.copysign(0.5, scaled))", "np.round(scaled)"),
        ),
        Mutant(
            "floor(x + 0.5) rounds halves up, also those below zero: -0.5 becomes 0, and should "
            "become -1.",
            swap=("np.trunc(scaled + np.copysign(0.5, scaled))", "np.floor(scaled + 0.5)"),
        ),
        Mutant(
            "You cut off instead of rounding: astype(int) drops the fraction.",
            swap=("np.trunc(scaled + np.copysign(0.5, scaled))", "np.trunc(scaled)"),
        ),
        Mutant(
            "You took the codes with the step that float16 left. ggml takes them with the float32 "
            "step, and only stores float16.",
            swap=(
                "/ np.float32(127)",
                "/ np.float32(127)\n    step = np.float32(np.float16(step))",
            ),
        ),
        Mutant(
            "The step is max|x| / 127, the largest code of a symmetric grid; with 128 the largest "
            "weight would need code 128, which int8 has not.",
            swap=(
                ("/ np.float32(127)", "/ np.float32(128)"),
                (".astype(np.int8)", ".clip(-128, 127).astype(np.int8)"),
            ),
        ),
        Mutant(
            "One step for all rows: every block of 32 has its own.",
            swap=(
                "np.abs(x).max(axis=1, keepdims=True)",
                "np.full((len(x), 1), np.abs(x).max())",
            ),
        ),
        Mutant(
            "The scale comes first: bytes 0 and 1, then the 32 codes.",
            swap=("[scale, codes.view(np.uint8)]", "[codes.view(np.uint8), scale]"),
        ),
        Mutant(
            "The two bytes of the scale are the wrong way round: GGUF is little-endian, <f2.",
            swap=('"<f2"', '">f2"'),
        ),
    ),
    hints=(
        "step = max|x| / 127 of each row, in float32; codes are x * (1 / step), rounded; a row of "
        "zeros has step 0 and codes 0.",
        "Halves go away from zero: add 0.5 with the sign of the value, then drop the fraction. Do "
        "that in float64: just below a half, the sum would be rounded in float32.",
        "step.astype('<f2').view(np.uint8) gives the scale's two bytes; codes.view(np.uint8) the "
        "others; np.concatenate along axis 1.",
    ),
)
