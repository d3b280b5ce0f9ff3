"""quant_state: the part of a bitsandbytes layer that is JSON, packed into a uint8 tensor.

    {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [256, 768],
     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0412}

The nested keys are there with double quantization alone. Bytes that came with a model may say
anything, so each value is checked before anything is computed or allocated with it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch

from labkit.core.codebook import BLOCK_SIZES, BOOKS, DTYPES, CodebookTensor, NestedAbsmax
from labkit.core.errors import FormatError
from labkit.quantize.dynamic_map import NESTED_BLOCK_SIZE

PLAIN = {"quant_type", "blocksize", "dtype", "shape"}
NESTED = {"nested_blocksize", "nested_dtype", "nested_offset"}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


@dataclass(frozen=True)
class QuantState:
    """What a quant_state says, checked; nested_offset is None without double quantization."""

    quant_type: str
    block_size: int
    dtype: torch.dtype
    shape: tuple[int, int]
    nested_offset: float | None


def state_bytes(layer: CodebookTensor) -> torch.Tensor:
    """The quant_state of a layer as uint8, byte for byte as bitsandbytes writes it."""
    fields: dict[str, object] = {
        "quant_type": layer.quant_type,
        "blocksize": layer.block_size,
        "dtype": str(layer.dtype).removeprefix("torch."),
        "shape": list(layer.shape),
    }
    if isinstance(layer.absmax, NestedAbsmax):
        fields |= {
            "nested_blocksize": layer.absmax.block_size,
            "nested_dtype": "float32",
            "nested_offset": layer.absmax.offset,
        }
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def read_state(content: torch.Tensor, quant_type: str, where: str) -> QuantState:
    """Read a quant_state; ``quant_type`` is what the tensor's name says, ``where`` the layer.

    Raises:
        FormatError: not uint8, no JSON object, keys missing or unknown, or a value out of range.
    """

    def refused(why: str) -> FormatError:
        return FormatError(
            f"quant_state: {why}", where=where, remedy="Fetch the folder again, or do not trust it."
        )

    if content.dtype != torch.uint8 or content.ndim != 1:
        raise refused(f"{content.dtype} of shape {tuple(content.shape)}")
    try:
        fields = json.loads(bytes(content.tolist()).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise refused(f"no JSON ({error})") from error
    if not isinstance(fields, dict) or set(fields) not in (PLAIN, PLAIN | NESTED):
        keys = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise refused(f"it holds {str(keys)[:200]}")
    shape, block_size = fields["shape"], fields["blocksize"]
    if fields["quant_type"] != quant_type or quant_type not in BOOKS:
        raise refused(f"quant_type {str(fields['quant_type'])[:50]!r} under the name {quant_type}")
    if type(block_size) is not int or block_size not in BLOCK_SIZES:
        raise refused(f"blocksize {str(block_size)[:50]}")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in _DTYPES:
        raise refused(f"dtype {str(fields['dtype'])[:50]}")
    matrix = isinstance(shape, list) and len(shape) == 2
    if not matrix or not all(type(size) is int and 0 < size < 2**40 for size in shape):
        raise refused(f"shape {str(shape)[:50]}")
    offset = _nested_offset(fields) if set(fields) >= NESTED else None
    if offset is not None and not math.isfinite(offset):
        raise refused(
            "nested_blocksize is not 256, nested_dtype not float32, or the offset no number"
        )
    return QuantState(quant_type, block_size, _DTYPES[fields["dtype"]], tuple(shape), offset)


def _nested_offset(fields: dict[str, object]) -> float:
    """The offset; NaN where one of the nested values is not as it must be."""
    offset = fields["nested_offset"]
    size = fields["nested_blocksize"]
    fits = type(size) is int and size == NESTED_BLOCK_SIZE and fields["nested_dtype"] == "float32"
    return offset if fits and isinstance(offset, float) else math.nan
