"""The door to the block types of GGUF: weights in, blocks out, and back.

    blocks = gguf.quantize(weight, "Q4_K")            # uint8 [rows, bytes of a row]
    weight = gguf.dequantize(blocks, "Q4_K")          # float32 [rows, columns]

Bytes are those of ggml_quantize_chunk, values those of ggml's to_float (llama.cpp of
llama-cpp-python 0.3.36), to the bit. Each type has two versions: "plain", which reads like the
specification, and "numba", the fast one; they live in the modules that the tables below name.

An importance says how much the error of a column matters: the mean of the squares of the inputs
that the column meets (llama.cpp's "imatrix"). Q8_0, MXFP4 and the floats make no use of it.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Literal

import numpy as np
import torch

from labkit.core.errors import FormatError, SchemeError, ShapeError
from labkit.quantize.gguf_checks import (
    TOO_LARGE,
    require_finite_scales,
    require_finite_weights,
    require_importance,
)
from labkit.quantize.gguf_types import BlockType, block_type, row_bytes

Loop = Literal["numba", "plain"]

# The module of F32, F16 and BF16, both ways.
_FLOATS = "gguf_floats"
_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
# Type -> module of the plain encoder; the fast one is in the module of that name and "_numba".
ENCODERS = {
    **dict.fromkeys(_LEGACY, "legacy_blocks"),
    "MXFP4": "mxfp4",
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), "kquants"),
    **dict.fromkeys(("Q3_K", "Q6_K"), "kquants_symmetric"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), "iq4"),
}
DECODERS = {
    **dict.fromkeys((*_LEGACY, "MXFP4", "IQ4_NL"), "block_decode"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), "super_block_decode"),
}
# Weights that are worked on at a time: the plain versions keep a dozen arrays of that size.
_CHUNK = {"numba": 2**23, "plain": 2**19}


def quantize(
    weight: torch.Tensor | np.ndarray,
    type_name: str,
    importance: torch.Tensor | np.ndarray | None = None,
    *,
    loop: Loop = "numba",
    threads: int | None = None,
) -> np.ndarray:
    """Encode ``weight`` [rows, columns] (any float dtype; [columns] is one row) row by row.

    Args:
        type_name: "Q4_K", …; see `labkit.quantize.gguf_types.BLOCK_TYPES`.
        importance: float32 [columns], no negative number.
        loop: the fast version, or the one to read; the bytes are the same.
        threads: of the fast one, at most; None takes as many as Numba has.

    Returns:
        uint8 [rows, row_bytes(type_name, columns)].

    Raises:
        SchemeError: an unknown type, or weights that are no floats.
        ShapeError: an empty weight, three axes, or an importance that does not fit the columns.
        GroupSizeError: the type's blocks do not fill a row.
        NonFiniteError: NaN or infinity, or a weight that is too large for the type.
        CalibrationError: an importance that is NaN, infinite or negative, or 0 for a whole block.
    """
    kind = block_type(type_name)
    rows = _as_rows(weight)
    columns = rows.shape[1]
    out = np.empty((rows.shape[0], row_bytes(type_name, columns)), np.uint8)
    if importance is not None:
        importance = require_importance(importance, columns, kind)
    encode = _encoder(type_name, loop, threads)
    step = max(1, _CHUNK[loop] // columns)
    for first in range(0, rows.shape[0], step):
        chunk = _float32(rows[first : first + step])
        largest = encode(chunk, importance, out[first : first + step])
        require_finite_weights(chunk, largest, kind, first)
        # No type's scale is larger than its largest weight; float16 ends at 65504.
        if largest > 2**15 or importance is not None:
            require_finite_scales(out[first : first + step], kind, first)
    return out


def dequantize(
    blocks: np.ndarray, type_name: str, *, loop: Loop = "numba", threads: int | None = None
) -> np.ndarray:
    """Decode ``blocks`` (uint8 [rows, bytes of a row]; one axis is one row) to float32.

    Returns:
        float32 [rows, columns].

    Raises:
        SchemeError: an unknown type.
        FormatError: blocks that are not uint8, or a row that ends within a block.
    """
    kind = block_type(type_name)
    rows = _block_rows(blocks, kind)
    columns = rows.shape[1] // kind.nbytes * kind.weights
    out = np.empty((rows.shape[0], columns), np.float32)
    decode = _module(DECODERS.get(type_name, _FLOATS), loop).DECODE[type_name]
    if loop == "numba":
        # Compiled loops take a read-only array for another type: a copy is cheaper, it is small.
        whole = np.ascontiguousarray(rows)
        decode(whole if whole.flags.writeable else whole.copy(), out, _threads(threads))
        return out
    step = max(1, _CHUNK["plain"] // columns)
    for first in range(0, rows.shape[0], step):
        out[first : first + step] = decode(np.ascontiguousarray(rows[first : first + step]))
    return out


def _encoder(type_name: str, loop: Loop, threads: int | None):
    """f(x float32 [rows, columns], importance or None, out uint8) -> the largest |x|.

    Where that is NaN or infinite, ``out`` is left unfinished.
    """
    module = _module(ENCODERS.get(type_name, _FLOATS), loop)
    if loop == "plain":
        encode, largest_magnitude = module.ENCODE[type_name], _largest_magnitude
    else:
        count = _threads(threads)
        if hasattr(module, "ENCODE_INTO"):
            # So fast that a look at the weights beforehand, and a copy of the result, would show.
            into = module.ENCODE_INTO[type_name]
            return lambda x, importance, out: into(x, importance, out, count)
        encode = partial(module.ENCODE[type_name], threads=count)
        fast = import_module("labkit.quantize.gguf_checks_numba").largest_magnitude
        largest_magnitude = partial(fast, threads=count)

    def look_and_encode(x: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> float:
        largest = largest_magnitude(x)
        if np.isfinite(largest) and largest < TOO_LARGE.get(type_name, np.inf):
            out[:] = encode(x, importance)
        return largest

    return look_and_encode


def _largest_magnitude(x: np.ndarray) -> float:
    """NaN and infinity go through minimum and maximum, and no array of |x| is needed."""
    return max(-float(x.min()), float(x.max()))


def _module(name: str, loop: Loop):
    if loop not in _CHUNK:
        raise SchemeError(f"no loop {loop!r}", "GGUF", "There are 'numba' and 'plain'.")
    return import_module(f"labkit.quantize.{name}{'_numba' if loop == 'numba' else ''}")


def _threads(threads: int | None) -> int:
    if threads is None:
        import numba

        return numba.get_num_threads()
    return threads


def _as_rows(weight: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """``weight`` with two axes, or the errors of `quantize`."""
    if isinstance(weight, torch.Tensor):
        weight, floating = weight.detach(), weight.is_floating_point()
    else:
        floating = weight.dtype.kind == "f" or weight.dtype.name == "bfloat16"
    if not floating:
        raise SchemeError(f"weights of dtype {weight.dtype}", "GGUF", "Give floats.")
    rows = weight[None, :] if weight.ndim == 1 else weight
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(
            f"a weight of shape {tuple(weight.shape)}",
            "GGUF",
            "Give [rows, columns] or [columns], none of them 0; blocks run along the last axis.",
        )
    return rows


def _float32(rows: torch.Tensor | np.ndarray) -> np.ndarray:
    """``rows`` as float32, contiguous; without a copy where they are so already."""
    if isinstance(rows, torch.Tensor):
        return rows.to("cpu", torch.float32).contiguous().numpy()
    with np.errstate(over="ignore"):  # float64 that overflows is found as infinity
        chunk = np.ascontiguousarray(rows, np.float32)
    return chunk if chunk.flags.writeable else chunk.copy()


def _block_rows(blocks: np.ndarray, kind: BlockType) -> np.ndarray:
    rows = blocks[None, :] if blocks.ndim == 1 else blocks
    if blocks.dtype != np.uint8 or rows.ndim != 2 or 0 in rows.shape:
        raise FormatError(
            f"blocks of dtype {blocks.dtype} and shape {blocks.shape}",
            kind.name,
            "Give uint8 [rows, bytes of a row].",
        )
    if rows.shape[1] % kind.nbytes:
        raise FormatError(
            f"a row of {rows.shape[1]} bytes is no whole number of blocks of {kind.nbytes} bytes",
            kind.name,
            "The row was cut off, or is of another type.",
        )
    return rows
