"""From super-blocks of 256 back to weights: Q2_K to Q6_K and IQ4_XS, to read.

A super-block has one or two float16 scales, d and dmin, and small whole scales (and mins) of its
sub-blocks of 16 or 32 weights: a weight is d * scale * code - dmin * min. What is shared is
multiplied first, in float32, as in dequantize_row_* of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from labkit.quantize.block_decode import IQ4_LEVELS, halves, split_nibbles


def decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..15 scale and min of 16 sub-blocks, 16..79 codes, 80..81 d, 82..83 dmin."""
    rows = blocks.reshape(-1, 84)
    scales = halves(rows[:, 80:82]) * (rows[:, 0:16] & 15)
    mins = halves(rows[:, 82:84]) * (rows[:, 0:16] >> 4)
    codes = split_pairs(rows[:, 16:80])
    return _affine(codes, scales, mins).reshape(len(blocks), -1)


def decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..31 third bits, 32..95 low 2 bits, 96..107 scales of 16 sub-blocks, 108..109 d.

    Codes are 4 more than they mean, scales 32 more.
    """
    rows = blocks.reshape(-1, 110)
    scales = halves(rows[:, 108:110]) * (_scales_q3(rows[:, 96:108]) - 32)
    third = (rows[:, 0:32][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = split_pairs(rows[:, 32:96]) | (third.reshape(-1, 256) << 2)
    return _symmetric(codes.astype(np.int8) - 4, scales).reshape(len(blocks), -1)


def decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..1 d, 2..3 dmin, 4..15 scales and mins of 8 sub-blocks, 16..143 codes."""
    rows = blocks.reshape(-1, 144)
    codes = split_nibbles(rows[:, 16:144].reshape(-1, 4, 32)).reshape(-1, 256)
    return _affine(codes, *_scales_and_mins(rows)).reshape(len(blocks), -1)


def decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..1 d, 2..3 dmin, 4..15 scales and mins, 16..47 fifth bits, 48..175 low bits."""
    rows = blocks.reshape(-1, 176)
    fifth = (rows[:, 16:48][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    low = split_nibbles(rows[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 256)
    codes = low | (fifth.reshape(-1, 256) << 4)
    return _affine(codes, *_scales_and_mins(rows)).reshape(len(blocks), -1)


def decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..127 low 4 bits, 128..191 high 2 bits, 192..207 scales of 16, int8, 208..209 d.

    Codes are 32 more than they mean.
    """
    rows = blocks.reshape(-1, 210)
    scales = halves(rows[:, 208:210]) * rows[:, 192:208].view(np.int8)
    low = split_nibbles(rows[:, 0:128].reshape(-1, 2, 64)).reshape(-1, 256)
    codes = low | (split_pairs(rows[:, 128:192]) << 4)
    return _symmetric(codes.astype(np.int8) - 32, scales).reshape(len(blocks), -1)


def decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """Bytes: 0..1 d, 2..3 high 2 bits and 4..7 low 4 bits of 8 scales, 8..135 places in the table.

    Scales are 32 more than they mean.
    """
    rows = blocks.reshape(-1, 136)
    # Two bits each, from 16; a nibble each, the even sub-block in the low one.
    high = rows[:, 2:4, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    low = np.stack([rows[:, 4:8] & 15, rows[:, 4:8] >> 4], axis=-1)
    stored = low.reshape(-1, 8) | (high.reshape(-1, 8) << 4)
    scales = halves(rows[:, 0:2]) * (stored.astype(np.int8) - 32)
    places = split_nibbles(rows[:, 8:136].reshape(-1, 8, 16))
    return (scales[:, :, None] * IQ4_LEVELS[places]).reshape(len(blocks), -1)


def split_pairs(qs: np.ndarray) -> np.ndarray:
    """uint8 [n, 64] -> 2-bit codes, uint8 [n, 256].

    A byte holds four weights that are 32 apart; the first 32 bytes are the first 128 weights.
    """
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((qs.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def split_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_K's and Q5_K's 12 bytes, uint8 [n, 12], -> scales and mins, uint8 [n, 8], 0 to 63.

    Bytes 0..3 hold scales 0..3 in their low 6 bits, bytes 4..7 mins 0..3. The others have their low
    4 bits in bytes 8..11 (scale below, min above) and their high 2 bits on top of bytes 0..7.
    """
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=1)
    mins = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=1)
    return scales, mins


def _scales_and_mins(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, 8] both, of Q4_K or Q5_K."""
    scales, mins = split_six_bits(rows[:, 4:16])
    return halves(rows[:, 0:2]) * scales, halves(rows[:, 2:4]) * mins


def _scales_q3(packed: np.ndarray) -> np.ndarray:
    """Q3_K's 12 bytes -> int8 [n, 16], 0 to 63.

    Byte j of the first 8 holds the low 4 bits of scales j and j + 8; byte j of the last 4 the high
    2 bits of scales j, j + 4, j + 8 and j + 12.
    """
    low = split_nibbles(packed[:, 0:8])
    high = (packed[:, None, 8:12] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    return (low | (high.reshape(-1, 16) << 4)).astype(np.int8)


def _affine(codes: np.ndarray, scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """scale * code - min, for codes [n, 256] and a scale and a min a sub-block."""
    shared = codes.reshape(len(codes), scales.shape[1], -1)
    return scales[:, :, None] * shared - mins[:, :, None]


def _symmetric(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return scales[:, :, None] * codes.reshape(len(codes), scales.shape[1], -1)


DECODE = {
    "Q2_K": decode_q2_k,
    "Q3_K": decode_q3_k,
    "Q4_K": decode_q4_k,
    "Q5_K": decode_q5_k,
    "Q6_K": decode_q6_k,
    "IQ4_XS": decode_iq4_xs,
}
