"""The order of rows in q, k and fused qkv: Hugging Face's and llama.cpp's.

RoPE turns pairs of a head's outputs. Hugging Face pairs row i with row i + d/2 of a head with d
rows; llama.cpp's "normal" RoPE pairs neighbours, rows 2i and 2i + 1. Interleaving the two halves of
each head makes one of the other:

    Hugging Face   0 1 2 3 | 4 5 6 7        one head of 8 rows: pairs (0, 4), (1, 5), ...
    llama.cpp      0 4 1 5 2 6 3 7          the same pairs, now neighbours

Source: llama.cpp, conversion/llama.py (permute) and conversion/gptneox.py.
"""

from __future__ import annotations

import numpy as np

from labkit.core.errors import ModelError
from labkit.formats.gguf.names import Change


def row_order(change: Change, rows: int, heads: int, kv_heads: int) -> np.ndarray | None:
    """Row j of GGUF's tensor is row `order[j]` of Hugging Face's: int64 [rows]; None if the same.

    Args:
        rows: of the weight, or length of the bias.
        heads, kv_heads: of queries, and of keys and values.

    Raises ModelError when the heads do not divide the rows.
    """
    if change == "rope_q":
        return _interleaved(rows, heads)
    if change == "rope_k":
        return _interleaved(rows, kv_heads)
    if change == "qkv_by_head":
        return _gathered(rows, heads)
    return None


def inverse(order: np.ndarray) -> np.ndarray:
    """The order that undoes `order`."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return back


def _interleaved(rows: int, heads: int) -> np.ndarray:
    """The two halves of each head, row by row in turn."""
    _require(rows, heads, 2)
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _gathered(rows: int, heads: int) -> np.ndarray:
    """GPT-NeoX keeps q, k, v of a head together; llama.cpp wants all q, then all k, then all v."""
    _require(rows, heads, 3)
    return np.arange(rows).reshape(heads, 3, rows // heads // 3).swapaxes(0, 1).reshape(-1)


def _require(rows: int, heads: int, parts: int) -> None:
    if heads < 1 or rows % (heads * parts):
        raise ModelError(
            f"{rows} rows cannot be {heads} heads of {parts} equal parts",
            remedy="Settings and tensors must belong together.",
        )
