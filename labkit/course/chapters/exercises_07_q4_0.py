"""Exercise 07.3: Q4_0 taken apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.quantize import gguf
from labkit.quantize.block_decode import decode_q4_0 as answer_key


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Weights float32 [n, 32] of blocks uint8 [n, 18]."""
    return gguf.dequantize(blocks, "Q4_0", loop="plain")


def _cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray]]:
    def block(scale: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.concatenate([np.array([scale], "<f2").view(np.uint8), low | high << 4])[None]

    count = np.arange(16, dtype=np.uint8)
    yield (block(1.0, count, count[::-1]),)
    yield (block(-0.5, np.full(16, 8, np.uint8), count),)
    yield (block(0.25, np.zeros(16, np.uint8), np.full(16, 15, np.uint8)),)
    for rows in (18, *rng.integers(1, 6, 6)):
        halves = rng.integers(0, 16, (2, rows, 16), np.uint8)
        halves[1, :, 15] &= 3  # who takes the last two bytes for the scale reads a finite one
        scales = rng.uniform(0.01, 2, rows) * rng.choice([-1, 1], rows)
        yield (np.concatenate([block(*parts) for parts in zip(scales, *halves, strict=True)]),)


def _shape(trial: Trial) -> str | None:
    """32 weights for every block of 18 bytes"""
    wanted = (len(trial["blocks"]), 32)
    return None if trial.got.shape == wanted else f"you return {list(trial.got.shape)}"


DECODE_Q4_0 = Exercise(
    id="07.3",
    title="Decode Q4_0",
    minutes=8,
    difficulty=2,
    goal="take a block of 4-bit codes apart",
    stub='''
    def decode_q4_0(blocks):
        """float32 [n, 32] of uint8 blocks [n, 18]: float16 scale, 16 bytes of two codes each."""
        ...
    ''',
    solution='''
    def decode_q4_0(blocks):
        """float32 [n, 32] of uint8 blocks [n, 18]: float16 scale, 16 bytes of two codes each."""
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        packed = blocks[:, 2:]
        low, high = packed & 15, packed >> 4
        codes = np.concatenate([low, high], axis=1).astype(np.float32)
        return scale * (codes - 8)
    ''',
    reference=decode_q4_0,
    answer_key=answer_key,
    generate=_cases,
    bounds=(_shape, matches_reference(rtol=1e-6)),
    mutants=(
        Mutant(
            "You took the two codes of a byte for neighbours. Byte j holds weight j in its low "
            "bits and weight j + 16 in its high bits: all low halves first.",
            swap=(
                "np.concatenate([low, high], axis=1)",
                "np.stack([low, high], axis=2).reshape(len(blocks), 32)",
            ),
        ),
        Mutant(
            "The halves of the bytes are swapped: the low 4 bits are weights 0 to 15.",
            swap=("[low, high]", "[high, low]"),
        ),
        Mutant(
            "The offset 8 is missing: codes 0 to 15 stand for -8 to 7.",
            swap=("(codes - 8)", "codes"),
        ),
        Mutant(
            "The offset is 8, not 7: codes 0 to 15 stand for -8 to 7, and -8 is used (the scale is "
            "the largest weight over -8).",
            swap=("codes - 8", "codes - 7"),
        ),
        Mutant(
            "You read the codes as two's complement. They are unsigned, 8 more than they mean.",
            swap=("(codes - 8)", "np.where(codes > 7, codes - 16, codes)"),
        ),
        Mutant(
            "The scale is in the first two bytes of a block, not in the last.",
            swap=(("blocks[:, :2]", "blocks[:, 16:]"), ("blocks[:, 2:]", "blocks[:, :16]")),
        ),
        Mutant(
            "Scales may be negative, and you took their magnitude.",
            swap=("return scale *", "return np.abs(scale) *"),
        ),
    ),
    hints=(
        "blocks[:, :2].copy().view('<f2') is the scale, float16 [n, 1]; the other 16 bytes hold "
        "two codes each: & 15 and >> 4.",
        "Byte j: weight j in the low half, weight j + 16 in the high half. So all the low ones, "
        "then all the high ones.",
        "Convert the codes to float before you take 8 off: uint8 has no negative numbers.",
    ),
)
