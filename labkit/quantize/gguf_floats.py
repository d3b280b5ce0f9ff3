"""F32, F16 and BF16: the types of GGUF that are floats, a weight each.

F16 and BF16 are rounded to the nearest, ties to even, as ggml_fp32_to_fp16_row and
ggml_fp32_to_bf16_row_ref do; a value too large for them is an error here, and infinity there.
"""

from __future__ import annotations

import numpy as np

from labkit.core.errors import NonFiniteError


def _encode_f32(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    return x.astype("<f4").view(np.uint8)


def _encode_f16(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    with np.errstate(over="ignore"):  # the check below says more
        halves = x.astype("<f2")
    _require_fitting(np.isfinite(halves), x, "F16")
    return halves.view(np.uint8)


def _encode_bf16(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    bits = x.view(np.uint32)
    # Half a step is added, less one bit where the bit that will be last is 0: ties go to even.
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    _require_fitting((rounded & 0x7F80) != 0x7F80, x, "BF16")
    return rounded.astype("<u2").view(np.uint8)


def _require_fitting(fits: np.ndarray, x: np.ndarray, type_name: str) -> None:
    if fits.all():
        return
    row, column = np.argwhere(~fits)[0]
    raise NonFiniteError(
        f"{int((~fits).sum())} weights are too large for it, the first {x[row, column]}",
        type_name,
        "Take F32 or BF16 for this tensor.",
    )


def _decode_f32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _decode_f16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _decode_bf16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


ENCODE = {"F32": _encode_f32, "F16": _encode_f16, "BF16": _encode_bf16}
DECODE = {"F32": _decode_f32, "F16": _decode_f16, "BF16": _decode_bf16}
