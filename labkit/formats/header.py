"""The header of a safetensors file, checked before anything in it is believed.

    8 bytes            n, the header's length, little-endian
    n bytes            JSON: {"name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, …}
    the rest           the tensors' bytes, one after another, no gaps; offsets count from here

A file of unknown origin may lie in each of these numbers. Nothing here is allocated by a length
that the file's own size does not bear out, so reading a hostile file costs no more memory than its
header takes on the disk. Source: github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from labkit.core.errors import FormatError

MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
MAX_DIMENSIONS = 64  # torch's own

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type and shape, and its bytes [begin, end) within the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors that a safetensors file holds, by name, in the order of their bytes.

    Raises:
        FormatError: the file is missing or truncated, or its header does not describe its bytes:
            the file and the tensor are named.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _refused(path, f"a header of {length} bytes in a file of {size}")
            text = file.read(length)
    except OSError as error:
        raise FormatError(str(error), where=str(path), remedy="Check the path.") from error
    if len(text) < length:
        raise _refused(path, "it became shorter while it was read")
    table = _parse(path, text)
    table.pop("__metadata__", None)
    data = 8 + length
    entries = [(name, _entry(path, name, item, data, size)) for name, item in table.items()]
    entries.sort(key=lambda pair: (pair[1].begin, pair[1].end))
    _require_gapless(path, entries, data, size)
    return dict(entries)


def _parse(path: Path, text: bytes) -> dict[str, object]:
    try:
        table = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"its header is no JSON ({error})") from error
    if not isinstance(table, dict):
        raise _refused(path, f"its header is a {type(table).__name__}, not an object")
    return table


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name appears twice")
    return table


def _entry(path: Path, name: str, item: object, data: int, size: int) -> Entry:
    def refused(why: str) -> FormatError:
        return _refused(path, f"tensor {name[:200]!r}: {why}")

    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise refused("its entry is not dtype, shape and data_offsets")
    dtype = DTYPES.get(item["dtype"]) if isinstance(item["dtype"], str) else None
    if dtype is None:
        raise refused(f"unknown dtype {str(item['dtype'])[:50]}; known: {', '.join(DTYPES)}")
    shape, offsets = item["shape"], item["data_offsets"]
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise refused(f"shape {str(shape)[:100]}")
    if not _counts(offsets) or len(offsets) != 2:
        raise refused(f"data_offsets {str(offsets)[:100]}")
    begin, end = (data + offset for offset in offsets)
    if not begin <= end <= size:
        raise refused(
            f"data_offsets {offsets} lie outside of the file's {size - data} bytes of data"
        )
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise refused(f"{end - begin} bytes for {item['dtype']} of shape {shape}")
    return Entry(dtype, tuple(shape), begin, end)


def _counts(numbers: object) -> bool:
    """A list of non-negative integers below 2^63 (a bool is none)."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _require_gapless(path: Path, entries: list[tuple[str, Entry]], data: int, size: int) -> None:
    expected = data
    for name, entry in entries:
        if entry.begin != expected:
            raise _refused(path, f"tensor {name[:200]!r} overlaps another, or leaves a gap")
        expected = entry.end
    if expected != size:
        raise _refused(path, f"{size - expected} bytes belong to no tensor")


def _refused(path: Path, why: str) -> FormatError:
    return FormatError(
        f"not a valid safetensors file: {why}",
        where=str(path),
        remedy="It is truncated or damaged, or was made to mislead; fetch it again.",
    )
