"""F32, F16 and BF16: the types of GGUF that are floats, a weight each, to read.

F16 and BF16 are rounded to the nearest, ties to even, as ggml_fp32_to_fp16_row and
ggml_fp32_to_bf16_row_ref do. What is too large for them is refused before it comes here.
"""

from __future__ import annotations

import numpy as np


def encode_f32(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, 4 columns]."""
    return x.astype("<f4").view(np.uint8)


def encode_f16(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, 2 columns]."""
    return x.astype("<f2").view(np.uint8)


def encode_bf16(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, columns] -> uint8 [rows, 2 columns]: the high half of the bits."""
    bits = x.view(np.uint32)
    # Half a step is added, less one bit where the bit that will be last is 0: ties go to even.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return rounded.astype("<u2").view(np.uint8)


def decode_f32(blocks: np.ndarray) -> np.ndarray:
    """uint8 [rows, 4 columns] -> float32 [rows, columns]."""
    return blocks.view("<f4").astype(np.float32)


def decode_f16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [rows, 2 columns] -> float32 [rows, columns]."""
    return blocks.view("<f2").astype(np.float32)


def decode_bf16(blocks: np.ndarray) -> np.ndarray:
    """uint8 [rows, 2 columns] -> float32 [rows, columns]."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


ENCODE = {"F32": encode_f32, "F16": encode_f16, "BF16": encode_bf16}
DECODE = {"F32": decode_f32, "F16": decode_f16, "BF16": decode_bf16}
