"""MXFP4: blocks of 32 four-bit floats (E2M1) that share a power of two, to read.

The Microscaling standard (OCP, MX v1.0), as gpt-oss is stored. A code is a sign and one of 0, 0.5,
1, 1.5, 2, 3, 4, 6. The scale is the power of two that brings the largest weight to between 4 and 8,
so what lies between 6 and 8 becomes 6.

Byte for byte what quantize_row_mxfp4_ref of ggml-quants.c writes (llama.cpp of llama-cpp-python
0.3.36), which has three corners: log2f rounds numbers just below a power of two up to it; a block
whose largest weight is below 2^-125 gets an exponent that wraps around, with codes of 0; and where
a weight just below 2^128 is rounded up, the levels 4 and 6 are infinite, and never chosen.
"""

from __future__ import annotations

import numpy as np

from labkit.quantize.block_decode import FP4_LEVELS, half_power
from labkit.quantize.legacy_blocks import pack_nibbles

# Midway between neighbouring levels, which are doubled as in block_decode.FP4_LEVELS.
MIDWAY = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], np.float32)


def _bounds() -> np.ndarray:
    """For each scale byte, above which magnitude each positive level is nearest, float32 [256, 7].

    Never, where the level itself is beyond float32.
    """
    scale = half_power(np.arange(256, dtype=np.uint8))[:, None]
    with np.errstate(over="ignore"):
        finite = np.isfinite(FP4_LEVELS[1:8] * scale)
        return np.where(finite, MIDWAY * scale, np.float32(np.inf))


BOUNDS = _bounds()


def encode_mxfp4(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8. Bytes of a block: 0 scale, 1..16 codes."""
    blocks = x.reshape(-1, 32)
    magnitude = np.abs(blocks)
    e = exponent(magnitude.max(axis=1))
    # Midway itself becomes the smaller number; a negative that becomes 0 has the code of +0.
    code = (magnitude[:, :, None] > BOUNDS[e][:, None, :]).sum(axis=2).astype(np.uint8)
    code |= ((blocks < 0) & (code > 0)).astype(np.uint8) << 3
    return np.concatenate([e[:, None], pack_nibbles(code)], axis=1).reshape(len(x), -1)


def exponent(largest: np.ndarray) -> np.ndarray:
    """The scale byte for a block's largest magnitude, float32 [n] -> uint8 [n]; 0 for 0.

    floor(log2) - 2 + 127, of which a byte is kept; log2 is rounded to float32 before the floor.
    """
    with np.errstate(divide="ignore"):
        log2 = np.log2(largest.astype(np.float64)).astype(np.float32)
    whole = np.floor(np.where(largest > 0, log2, np.float32(0))).astype(np.int32)
    return np.where(largest > 0, (whole - 2 + 127) & 0xFF, 0).astype(np.uint8)


ENCODE = {"MXFP4": encode_mxfp4}
