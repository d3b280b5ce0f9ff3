"""IQ4_NL and IQ4_XS: the types of GGUF whose 4-bit codes point into a codebook.

The 16 levels lie closer together near zero, where most weights are. IQ4_NL has blocks of 32 with a
float16 scale each (4.5 bits a weight); IQ4_XS puts 8 such blocks under one float16, with integer
scales of 6 bits (4.25 bits a weight).

Byte for byte what quantize_row_iq4_nl_impl of ggml writes (llama.cpp of llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import numpy as np

from labkit.quantize.kquants_search import SMALLEST_SCALE, nearest_int, ordered_sum
from labkit.quantize.kquants_symmetric import largest_of

# ggml-common.h, kvalues_iq4nl.
LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
_BLOCK = 32
_TRIES = 7


def encode_iq4_nl(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 32 * 18].

    Bytes of a block: 0..1 scale, 2..17 codes.
    """
    blocks = x.reshape(-1, 1, _BLOCK)
    with np.errstate(all="ignore"):  # as in C, where infinity and NaN go through
        scale = _search_scale(blocks, _weights(blocks, importance, x.shape))
        # Rounded with the scale in float32, although float16 is stored.
        codes = nearest_level(_inverse(scale)[..., None] * blocks)
        half = scale.astype(np.float16)
    out = np.empty((len(blocks), 18), np.uint8)
    out[:, 0:2] = half.view(np.uint8)
    out[:, 2:18] = _pack(codes)
    return out.reshape(len(x), -1)


def encode_iq4_xs(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, columns / 256 * 136].

    Bytes of a super-block: 0..1 d, 2..3 high 2 bits of the sub-scales, 4..7 their low 4 bits,
    8..135 codes.
    """
    blocks = x.reshape(-1, 8, _BLOCK)
    with np.errstate(all="ignore"):
        scale = _search_scale(blocks, _weights(blocks, importance, x.shape))
        largest, _ = largest_of(scale)
        d = -largest / np.float32(32)
        sub_scale = np.clip(nearest_int(_inverse(d)[:, None] * scale), -32, 31)
        # As in IQ4_NL, d in float32.
        inverse = _inverse(d[:, None] * sub_scale.astype(np.float32))
        codes = nearest_level(inverse[..., None] * blocks)
        half = d.astype(np.float16)
    stored = sub_scale + 32
    high = ((stored >> 4) << (2 * np.arange(8))).sum(axis=1).astype("<u2")
    low = stored & 15
    out = np.empty((len(blocks), 136), np.uint8)
    out[:, 0:2] = half[:, None].view(np.uint8)
    out[:, 2:4] = high[:, None].view(np.uint8)
    out[:, 4:8] = low[:, 0::2] | (low[:, 1::2] << 4)
    out[:, 8:136] = _pack(codes)
    return out.reshape(len(x), -1)


def nearest_level(x: np.ndarray) -> np.ndarray:
    """The index of the nearest level, uint8; halfway between two, the upper; NaN: the last."""
    upper = np.clip(np.searchsorted(LEVELS, x, side="right"), 1, 15)
    below = x - LEVELS[upper - 1] < LEVELS[upper] - x
    return (upper - below).astype(np.uint8)


def _search_scale(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The scale of each block, float32 [..., blocks]; 16 candidates.

    A candidate sends the largest number of the block to a place near the first level of the
    codebook, rounds with that, and then takes the scale that fits those levels q best,
    sum(w q x) / sum(w q²).
    """
    largest, magnitude = largest_of(x)
    first = np.float32(1) / (-largest / LEVELS[0])
    near = [(np.float32(step) + LEVELS[0]) / largest for step in range(-_TRIES, _TRIES + 1)]
    scale = np.zeros_like(largest)
    best = np.zeros_like(largest)
    for candidate, inverse in enumerate((first, *near)):
        q = LEVELS[nearest_level(inverse[..., None] * x)]
        wqx = ordered_sum(weight * q * x)
        wqq = ordered_sum(weight * q * q)
        fitted = np.where(wqq > 0, wqx / wqq, np.float32(0))
        # The first is taken as it is.
        better = (wqq > 0) & (wqx * wqx > best * wqq) if candidate else np.ones_like(wqq, bool)
        scale = np.where(better, fitted, scale)
        best = np.where(better, fitted * wqx, best)
    return np.where(magnitude < SMALLEST_SCALE, np.float32(0), scale)


def _weights(x: np.ndarray, importance: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """What the square of each error counts: x², or the importance times a root of it.

    The root is of x² and twice the mean square of the block (IQ4_NL) or super-block (IQ4_XS).
    """
    if importance is None:
        return x * x
    sigma2 = ordered_sum((x * x).reshape(len(x), -1)) * np.float32(2 / x[0].size)
    spread = np.broadcast_to(importance, shape).reshape(x.shape)
    return spread * np.sqrt(sigma2[:, None, None] + x * x)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for 0."""
    return np.where(scale != 0, np.float32(1) / scale, np.float32(0))


def _pack(codes: np.ndarray) -> np.ndarray:
    """[blocks, k, 32] -> [blocks, 16 k]: byte j holds code j, and j + 16 in its high bits."""
    return (codes[..., :16] | (codes[..., 16:] << 4)).reshape(len(codes), -1)


ENCODE = {"IQ4_NL": encode_iq4_nl, "IQ4_XS": encode_iq4_xs}
