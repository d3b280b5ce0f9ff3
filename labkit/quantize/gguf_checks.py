"""What is refused at the door of the GGUF types, beside shapes: numbers that have no code."""

from __future__ import annotations

import numpy as np
import torch

from labkit.core.errors import CalibrationError, NonFiniteError, ShapeError
from labkit.core.finite import require_finite
from labkit.quantize.gguf_types import BlockType

_IGNORING = ("F32", "F16", "BF16", "Q8_0", "MXFP4")
_SCALES = ("d", "dmin", "m")
_SHOWN = 5
# From these on float16 and bfloat16 round to infinity.
TOO_LARGE = {"F16": 65520.0, "BF16": float(np.uint32(0x7F7F8000).view(np.float32))}


def require_finite_weights(x: np.ndarray, largest: float, kind: BlockType, first_row: int) -> None:
    """Raise NonFiniteError if a weight is NaN or infinite, or rounds to infinity in F16 or BF16.

    Args:
        x: float32 [rows, columns], whose rows are counted from ``first_row``.
        largest: the largest |x|, or NaN.
    """
    if not np.isfinite(largest):
        require_finite(torch.from_numpy(x), f"weight from row {first_row} on")
    if largest >= TOO_LARGE.get(kind.name, np.inf):
        row, column = np.unravel_index(np.abs(x).argmax(), x.shape)
        raise NonFiniteError(
            f"a weight of {x[row, column]} in row {first_row + int(row)}, column {int(column)} is "
            "too large for it",
            kind.name,
            "Take F32 or BF16 for this tensor.",
        )


def require_importance(
    importance: torch.Tensor | np.ndarray, columns: int, kind: BlockType
) -> np.ndarray:
    """``importance`` as float32 [columns], contiguous.

    Raises:
        ShapeError: not one number a column.
        CalibrationError: NaN, infinity, a negative number, or nothing but 0 in a block: ggml would
            then write a scale of 0, and lose every weight of the block.
    """
    if isinstance(importance, torch.Tensor):
        importance = importance.detach().to("cpu", torch.float32).numpy()
    found = np.array(importance, np.float32, order="C")
    if found.shape != (columns,):
        raise ShapeError(
            f"an importance of shape {found.shape} for {columns} columns",
            kind.name,
            "Give one number a column.",
        )
    bad = ~(np.isfinite(found) & (found >= 0))
    if bad.any():
        raise CalibrationError(
            f"importance of {_columns(bad)} is NaN, infinite or negative",
            kind.name,
            "It is a mean of squares: look for the inputs that it was computed from.",
        )
    if kind.name in _IGNORING:
        return found
    empty = ~found.reshape(-1, kind.weights).any(axis=1)
    if empty.any():
        raise CalibrationError(
            f"importance is 0 for every column of {int(empty.sum())} blocks of {kind.weights}: "
            f"{_columns(np.repeat(empty, kind.weights))}",
            kind.name,
            "Calibrate with more text, or add a small constant to the importance.",
        )
    return found


def require_finite_scales(blocks: np.ndarray, kind: BlockType, first_row: int) -> None:
    """Raise NonFiniteError where a float16 of ``blocks`` [rows, bytes] overflowed.

    llama.cpp refuses such blocks as well, after it has quantized (ggml_validate_row_data).
    """
    table = blocks.reshape(blocks.shape[0], -1, kind.nbytes)
    for field in kind.fields:
        if field.name not in _SCALES:
            continue
        halves = np.ascontiguousarray(table[:, :, field.offset : field.offset + 2]).view("<u2")
        bad = ((halves & 0x7C00) == 0x7C00)[:, :, 0]
        if bad.any():
            row, block = np.argwhere(bad)[0]
            raise NonFiniteError(
                f"{int(bad.sum())} blocks have a {field.name} beyond float16, the first in row "
                f"{first_row + int(row)}, from column {int(block) * kind.weights} on",
                kind.name,
                "Its weights or their importance are too large: scale them, or take F32 or BF16.",
            )


def _columns(bad: np.ndarray) -> str:
    where = np.flatnonzero(bad)
    more = f" and {where.size - _SHOWN} more" if where.size > _SHOWN else ""
    return f"columns {', '.join(map(str, where[:_SHOWN]))}{more}"
