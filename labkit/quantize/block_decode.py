"""From blocks of 32 back to weights: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and MXFP4, to read.

A weight is its code times the scale of its block; Q4_1 and Q5_1 add the smallest weight of the
block, IQ4_NL and MXFP4 look the code up first. All is float32, as in dequantize_row_* of
ggml-quants.c (llama.cpp of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import numpy as np

# The levels of IQ4_NL: closer together near zero, where most weights are.
IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# Twice the numbers of FP4 (E2M1): so they are whole, and the scale is halved instead.
FP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..17 codes, 8 more than they mean."""
    rows = blocks.reshape(-1, 18)
    codes = split_nibbles(rows[:, 2:18]).astype(np.float32) - np.float32(8)
    return (codes * halves(rows[:, 0:2])).reshape(len(blocks), -1)


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..3 m, 4..19 codes."""
    rows = blocks.reshape(-1, 20)
    codes = split_nibbles(rows[:, 4:20]).astype(np.float32)
    return (codes * halves(rows[:, 0:2]) + halves(rows[:, 2:4])).reshape(len(blocks), -1)


def decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..5 fifth bits, 6..21 low bits.

    Codes are 16 more than they mean.
    """
    rows = blocks.reshape(-1, 22)
    codes = split_nibbles(rows[:, 6:22]) | (split_bits(rows[:, 2:6]) << 4)
    codes = codes.astype(np.float32) - np.float32(16)
    return (codes * halves(rows[:, 0:2])).reshape(len(blocks), -1)


def decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..3 m, 4..7 fifth bits, 8..23 low bits."""
    rows = blocks.reshape(-1, 24)
    codes = split_nibbles(rows[:, 8:24]) | (split_bits(rows[:, 4:8]) << 4)
    values = codes.astype(np.float32) * halves(rows[:, 0:2]) + halves(rows[:, 2:4])
    return values.reshape(len(blocks), -1)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..33 codes, int8."""
    rows = blocks.reshape(-1, 34)
    codes = rows[:, 2:34].view(np.int8).astype(np.float32)
    return (codes * halves(rows[:, 0:2])).reshape(len(blocks), -1)


def decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0..1 d, 2..17 places in the table."""
    rows = blocks.reshape(-1, 18)
    return (halves(rows[:, 0:2]) * IQ4_LEVELS[split_nibbles(rows[:, 2:18])]).reshape(
        len(blocks), -1
    )


def decode_mxfp4(blocks: np.ndarray) -> np.ndarray:
    """Bytes of a block: 0 scale, 1..16 codes of FP4."""
    rows = blocks.reshape(-1, 17)
    values = FP4_LEVELS[split_nibbles(rows[:, 1:17])] * half_power(rows[:, 0:1])
    return values.reshape(len(blocks), -1)


def halves(two_bytes: np.ndarray) -> np.ndarray:
    """float16 as bytes, uint8 [..., 2 n], to float32 [..., n]."""
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def split_nibbles(qs: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> 4-bit codes, uint8 [..., 2 n]: all the low ones, then all the high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def split_bits(qh: np.ndarray) -> np.ndarray:
    """uint8 [..., n] -> bits, uint8 [..., 8 n], the lowest of each byte first."""
    return np.unpackbits(np.ascontiguousarray(qh), axis=-1, bitorder="little")


def half_power(e: np.ndarray) -> np.ndarray:
    """2^(e - 128), float32: half of what E8M0 means by e, as FP4_LEVELS are doubled.

    The two smallest are subnormal. 255, which is NaN by the standard, is 2^127 in ggml.
    """
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


DECODE = {
    "Q4_0": decode_q4_0,
    "Q4_1": decode_q4_1,
    "Q5_0": decode_q5_0,
    "Q5_1": decode_q5_1,
    "Q8_0": decode_q8_0,
    "IQ4_NL": decode_iq4_nl,
    "MXFP4": decode_mxfp4,
}
