"""The header of a file that is going to be written: what it will hold, and where."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.core.errors import FormatError
from labkit.formats.gguf.layout import (
    MAGIC,
    MAX_DIMENSIONS,
    MAX_KEY,
    MAX_NAME,
    VERSION,
    TensorInfo,
    padded,
)
from labkit.formats.gguf.values import Value, encode, encode_string
from labkit.quantize.gguf_types import BLOCK_TYPES, row_bytes


@dataclass(frozen=True)
class Declared:
    """A tensor that is going to be written.

    Args:
        name: as llama.cpp names it, at most 63 bytes.
        shape: the outermost dimension first; one to four dimensions.
        type_name: a key of `BLOCK_TYPES`.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str


def lay_out(
    metadata: Mapping[str, Value], tensors: Sequence[Declared], alignment: int
) -> tuple[bytes, dict[str, TensorInfo]]:
    """The header with its padding, and where in the file each tensor will lie.

    Raises:
        FormatError: a name or a value that GGUF cannot hold, a name twice, a tensor without
            weights.
        SchemeError, GroupSizeError: a type that labkit does not know, or whose blocks do not fit
            the rows.
    """
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if not 0 < len(key.encode()) <= MAX_KEY or "\0" in key:
            raise FormatError(
                f"the metadata key {key[:80]!r}",
                remedy=f"GGUF holds keys of 1 to {MAX_KEY} bytes, none of them 0.",
            )
        head.append(encode(key, value))
    sizes = [_nbytes(declared) for declared in tensors]
    offset = 0
    for declared, nbytes in zip(tensors, sizes, strict=True):
        head.append(_entry(declared, offset))
        offset += padded(nbytes, alignment)
    header = b"".join(head)
    begin = padded(len(header), alignment) if tensors else len(header)
    infos: dict[str, TensorInfo] = {}
    offset = begin
    for declared, nbytes in zip(tensors, sizes, strict=True):
        if declared.name in infos:
            raise FormatError(f"two tensors are called {declared.name!r}")
        infos[declared.name] = TensorInfo(
            declared.name, tuple(declared.shape), declared.type_name, offset, nbytes
        )
        offset += padded(nbytes, alignment)
    return header.ljust(begin, b"\0"), infos


def _nbytes(declared: Declared) -> int:
    if not 1 <= len(declared.shape) <= MAX_DIMENSIONS or min(declared.shape) < 1:
        raise FormatError(
            f"tensor {declared.name!r} has the shape {tuple(declared.shape)}",
            remedy=f"GGUF holds 1 to {MAX_DIMENSIONS} dimensions, each at least 1.",
        )
    return math.prod(declared.shape[:-1]) * row_bytes(declared.type_name, declared.shape[-1])


def _entry(declared: Declared, offset: int) -> bytes:
    name = encode_string(declared.name)
    if len(name) - 8 > MAX_NAME or b"\0" in name[8:]:
        raise FormatError(
            f"tensor {declared.name!r}: a name of {len(name) - 8} bytes",
            remedy=f"llama.cpp reads names of at most {MAX_NAME} bytes, none of them 0.",
        )
    shape = declared.shape[::-1]
    number = BLOCK_TYPES[declared.type_name].number
    return name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
