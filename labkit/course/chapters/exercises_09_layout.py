"""Exercise 09.2: an order of nibbles from which sixteen lanes load at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.kernels.int4_weight import Int4Weight


def pack_halves(codes: torch.Tensor, chunk: int) -> torch.Tensor:
    """Byte j of a chunk: code j in its low four bits, code j + chunk / 2 in its high ones."""
    parts = codes.reshape(len(codes), -1, chunk)
    low, high = parts[:, :, : chunk // 2], parts[:, :, chunk // 2 :]
    return (low + 16 * high).reshape(len(codes), -1)


def _cases(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, int]]:
    def drawn(rows: int, columns: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(0, 16, (rows, columns)).astype(np.uint8))

    yield torch.arange(64, dtype=torch.uint8).reshape(1, 64) // 4, 64
    yield drawn(2, 256), 128
    yield drawn(128, 128), 64
    for _ in range(7):
        chunk = int(rng.choice([32, 64, 128]))
        yield drawn(int(rng.integers(1, 6)), chunk * int(rng.integers(1, 5))), chunk


def _bytes(trial: Trial) -> str | None:
    """two codes fill one byte: uint8 [out, in / 2]"""
    out, columns = trial["codes"].shape
    if trial.got.dtype != torch.uint8 or list(trial.got.shape) != [out, columns // 2]:
        return f"{trial.got.dtype} {list(trial.got.shape)}, not uint8 {[out, columns // 2]}"
    return None


def _one_and_yields_the_first_half(trial: Trial) -> str | None:
    """`bytes & 15` must give the first half of every chunk, in order"""
    chunk, rows = trial["chunk"], len(trial["codes"])
    wanted = trial["codes"].reshape(rows, -1, chunk)[:, :, : chunk // 2]
    low = (trial.got & 15).reshape(rows, -1, chunk // 2)
    if not torch.equal(low, wanted):
        return f"the low four bits of the first bytes are {low[0, 0, :4].tolist()}, the first " \
               f"codes {wanted[0, 0, :4].tolist()}"  # fmt: skip
    return None


LAYOUT = Exercise(
    id="09.2",
    title="Nibbles in an order that suits lanes",
    minutes=10,
    difficulty=2,
    goal="lay 4-bit codes out so that one AND and one shift take them apart in order",
    stub='''
    def pack_halves(codes, chunk):
        """uint8 [out, in / 2] of codes uint8 [out, in], 0 … 15; `in` is a multiple of `chunk`."""
        ...
    ''',
    solution='''
    def pack_halves(codes, chunk):
        """uint8 [out, in / 2] of codes uint8 [out, in], 0 … 15; `in` is a multiple of `chunk`."""
        half = chunk // 2
        parts = codes.reshape(len(codes), -1, 2, half)
        first, second = parts[:, :, 0], parts[:, :, 1]
        return (first | (second << 4)).reshape(len(codes), -1)
    ''',
    reference=pack_halves,
    answer_key=Int4Weight.from_quantized,
    generate=_cases,
    bounds=(_bytes, _one_and_yields_the_first_half, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You put neighbours into one byte. Taken apart with one AND, that gives codes 0, 2, 4, "
            "…: sixteen lanes then need every second number of x, and have to shuffle.",
            swap=("(first | (second << 4))", "(codes[:, ::2] | (codes[:, 1::2] << 4))"),
        ),
        Mutant(
            "You put the first half into the high bits. The AND, which needs no shift, should give "
            "the first codes.",
            swap=("first | (second << 4)", "second | (first << 4)"),
        ),
        Mutant(
            "You cut the whole row into two halves, not each chunk. A group's codes then lie in "
            "two far places, and so do the numbers of x that they need.",
            swap=("codes.reshape(len(codes), -1, 2, half)",
                  "codes.reshape(len(codes), 1, 2, codes.shape[1] // 2)"),
        ),
        Mutant(
            "You took chunks of 32 whatever `chunk` says. That is GGUF's block; a register of 64 "
            "bytes holds 128 codes.",
            swap=("chunk // 2", "16"),
        ),
        Mutant(
            "You folded the chunk like a sheet of paper: code j meets code chunk - 1 - j. The "
            "second half comes out backwards.",
            swap=("second << 4", "second.flip(-1) << 4"),
        ),
        Mutant(
            "Your bytes are right, their order is not: first byte 0 of all chunks, then byte 1. "
            "The bytes of a chunk must be neighbours, to be loaded at once.",
            swap=("(second << 4)).reshape", "(second << 4)).transpose(1, 2).reshape"),
        ),
    ),
    hints=(
        "Each chunk becomes chunk / 2 bytes. Which two codes share byte j?",
        "Reshape to [out, chunks, 2, chunk / 2]: index 0 of the third axis is the first half.",
        "first | (second << 4), reshaped to [out, in / 2].",
    ),
)  # fmt: skip
