"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: the first block types of llama.cpp, to read.

A block is 32 neighbours of a row. It has a float16 scale d, and in the types that end in 1 the
smallest weight m as well: x ≈ d * code, or x ≈ d * code + m, with codes of 4, 5 or 8 bits.

Without an importance one pass does it: d follows from the largest weight. With one, the four small
types try many scales, and take the one with the smallest error where it matters; Q8_0 does not.

Byte for byte what quantize_row_*_ref and quantize_row_*_impl of ggml-quants.c write (llama.cpp of
llama-cpp-python 0.3.36). Odd as some steps look, each decides bits: the inverse that multiplies
where d could divide, halves that go away from zero here and up there.
"""

from __future__ import annotations

import numpy as np

from labkit.quantize.kquants_search import Search, affine_search
from labkit.quantize.kquants_symmetric import largest_of, search_scale

_ONE = np.float32(1)
SIZE = 32
# With an importance the affine search tries these candidates.
SEARCH = Search(first=-0.9, step=0.05, steps=36)


def encode_q4_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes of a block: 0..1 d, 2..17 codes."""
    d, codes = _signed(x, importance, 8)
    return _join(x, _halves(d), pack_nibbles(codes))


def encode_q5_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes of a block: 0..1 d, 2..5 fifth bits, 6..21 rest."""
    d, codes = _signed(x, importance, 16)
    return _join(x, _halves(d), pack_bits(codes >> 4), pack_nibbles(codes & 15))


def encode_q4_1(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes of a block: 0..1 d, 2..3 m, 4..19 codes."""
    d, m, codes = _affine(x, importance, 15)
    return _join(x, _halves(d), _halves(m), pack_nibbles(codes))


def encode_q5_1(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes: 0..1 d, 2..3 m, 4..7 fifth bits, 8..23 rest."""
    d, m, codes = _affine(x, importance, 31)
    return _join(x, _halves(d), _halves(m), pack_bits(codes >> 4), pack_nibbles(codes & 15))


def encode_q8_0(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes of a block: 0..1 d, 2..33 codes, int8."""
    blocks = x.reshape(-1, SIZE)
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    with np.errstate(all="ignore"):  # as in C, where infinity and NaN go through
        scaled = blocks * _inverse(d)[:, None]
    # roundf: half away from zero. A little less than a half is added, so that 0.49999997 stays 0.
    almost_half = np.nextafter(np.float32(0.5), np.float32(0))
    codes = c_integer(scaled + np.copysign(almost_half, scaled))
    return _join(x, _halves(d), codes.astype(np.int8).view(np.uint8))


def _signed(x, importance, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """d [blocks] and codes [blocks, 32], 0 to 2 * levels - 1, which mean levels less.

    The weight of largest magnitude becomes -levels: d has the opposite sign.
    """
    blocks = x.reshape(-1, SIZE)
    with np.errstate(all="ignore"):
        if importance is not None:
            d, codes = search_scale(blocks, weigh(x, importance), levels)
            return d, codes.astype(np.uint8)
        largest, _ = largest_of(blocks)
        d = largest / np.float32(-levels)
        codes = c_integer(blocks * _inverse(d)[:, None] + np.float32(levels + 0.5))
    return d, np.minimum(codes, 2 * levels - 1).astype(np.uint8)


def _affine(x, importance, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d [blocks], m [blocks] and codes [blocks, 32], 0 to ``last``."""
    blocks = _with_equal_zeros(x.reshape(-1, SIZE))
    with np.errstate(all="ignore"):
        if importance is not None:
            d, minimum, codes = affine_search(blocks, weigh(x, importance), last, SEARCH)
            return d, -minimum, codes
        m = blocks.min(axis=1)
        d = (blocks.max(axis=1) - m) / np.float32(last)
        codes = c_integer((blocks - m[:, None]) * _inverse(d)[:, None] + np.float32(0.5))
    return d, m, np.minimum(codes, last).astype(np.uint8)


def weigh(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """importance * sqrt(mean square of the row + x²), float32 [blocks, 32]."""
    # A running sum, whose last is the sum of all, one after the other.
    variance = np.cumsum(x * x, axis=1)[:, -1:] / np.float32(x.shape[1])
    return (importance * np.sqrt(variance + x * x)).reshape(-1, SIZE)


def c_integer(x: np.ndarray) -> np.ndarray:
    """float32 to int32 by cutting the fraction off; 0 for infinity and NaN.

    These come up where d is subnormal and has no finite inverse. x86 makes -2^31 of them, of which
    a byte keeps 0.
    """
    return np.where(np.isfinite(x), x, np.float32(0)).astype(np.int32)


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """uint8 [n, 32], 0 to 15 -> uint8 [n, 16]: weight j in the low half of byte j, j + 16 above."""
    return codes[:, :16] | (codes[:, 16:] << 4)


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """uint8 [n, 32], 0 or 1 -> uint8 [n, 4]: weight j in bit j % 8 of byte j / 8."""
    return np.packbits(bits, axis=1, bitorder="little")


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, but 0 for 0."""
    return np.where(d != 0, _ONE / d, np.float32(0))


def _with_equal_zeros(blocks: np.ndarray) -> np.ndarray:
    """The same numbers; all zeros of a block get the sign of its first.

    The minimum of zeros is the first of them in C, and any of them in NumPy.
    """
    zero = blocks == 0
    first = np.take_along_axis(blocks, zero.argmax(axis=1)[:, None], axis=1)
    return np.where(zero, first, blocks)


def _halves(x: np.ndarray) -> np.ndarray:
    """float32 [n] to the bytes of float16, uint8 [n, 2]; too large becomes infinity, as in C."""
    with np.errstate(over="ignore"):
        return x.astype("<f2")[:, None].view(np.uint8)


def _join(x: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """Lay the fields of each block side by side: uint8 [rows, row bytes]."""
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


ENCODE = {
    "Q4_0": encode_q4_0,
    "Q4_1": encode_q4_1,
    "Q5_0": encode_q5_0,
    "Q5_1": encode_q5_1,
    "Q8_0": encode_q8_0,
}
