"""The header of a GGUF file, checked before anything in it is believed (layout.py draws it)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labkit.formats.gguf.cursor import Cursor
from labkit.formats.gguf.layout import (
    ALIGNMENT,
    ALIGNMENT_KEY,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_KEY,
    MAX_NAME,
    READABLE_VERSIONS,
    TYPES,
    TensorInfo,
    checked_alignment,
    padded,
)
from labkit.formats.gguf.values import Kind, Value

_SMALLEST_PAIR = 8 + 1 + 4 + 1  # a key of one letter and a byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # no name, no dimensions
_COST = 16  # an entry's memory, in that of plain values


@dataclass(frozen=True)
class Header:
    """What stands before the data of a file."""

    version: int
    alignment: int
    fields: dict[str, Value]
    tensors: dict[str, TensorInfo]


def parse_header(view: memoryview, where: str) -> Header:
    """Return the header at the beginning of a file's bytes.

    Args:
        view: the whole file.
        where: its name, for errors.

    Raises:
        FormatError: it does not describe the bytes that are there: the file and the byte are named.
    """
    cursor = Cursor(view, where)
    version = _version(cursor)
    tensor_count = cursor.count("tensors", _SMALLEST_TENSOR, _COST)
    pair_count = cursor.count("metadata pairs", _SMALLEST_PAIR, _COST)
    fields = _fields(cursor, pair_count)
    alignment = ALIGNMENT
    if (value := fields.get(ALIGNMENT_KEY)) is not None:
        alignment = checked_alignment(value.value if value.kind == Kind.UINT32 else value, where)
    declared = [_tensor(cursor) for _ in range(tensor_count)]
    data = padded(cursor.position, alignment)
    return Header(version, alignment, fields, _placed(cursor, declared, data, alignment))


def _version(cursor: Cursor) -> int:
    magic = bytes(cursor.take(4))
    if magic != MAGIC:
        raise cursor.refused(f"it begins with {magic!r} instead of {MAGIC!r}", 0)
    version = cursor.u32()
    if version and not version & 0xFFFF:
        raise cursor.refused("its numbers are big-endian, which labkit does not read", 4)
    if version not in READABLE_VERSIONS:
        raise cursor.refused(f"version {version}; labkit reads {READABLE_VERSIONS}", 4)
    return version


def _fields(cursor: Cursor, count: int) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    for _ in range(count):
        at = cursor.position
        key = cursor.string("a metadata key", MAX_KEY)
        if not key or key in fields or "\0" in key:
            raise cursor.refused(
                f"the metadata key {key[:80]!r} is empty, there twice, or holds a zero byte", at
            )
        fields[key] = cursor.value(key)
    return fields


def _tensor(cursor: Cursor) -> tuple[int, TensorInfo]:
    """One entry of the table, its offset as it stands there, and where the entry begins."""
    at = cursor.position
    name = cursor.string("a tensor's name", MAX_NAME)
    if "\0" in name:  # where a name of C ends: two such names would be one to llama.cpp
        raise cursor.refused(f"the tensor's name {name!r} holds a zero byte", at)
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        raise cursor.refused(f"tensor {name!r} has {dimensions} dimensions", at)
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if not all(0 < size < 2**63 for size in shape):
        raise cursor.refused(f"tensor {name!r} has the shape {shape}", at)
    number, offset = cursor.u32(), cursor.u64()
    if number not in TYPES:
        raise cursor.refused(
            f"tensor {name!r} has the type {number}, which labkit does not know", at
        )
    type_name, weights, nbytes = TYPES[number]
    if (shape[-1] if shape else 1) % weights:
        raise cursor.refused(
            f"tensor {name!r} of shape {shape}: a row is no multiple of {weights} weights, the"
            f" block of {type_name}",
            at,
        )
    return at, TensorInfo(name, shape, type_name, offset, math.prod(shape) // weights * nbytes)


def _placed(
    cursor: Cursor, declared: list[tuple[int, TensorInfo]], data: int, alignment: int
) -> dict[str, TensorInfo]:
    """The tensors by name, offsets counted from the file's beginning; no gap, no overlap."""
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for at, info in declared:
        if info.name in tensors:
            raise cursor.refused(f"two tensors are called {info.name!r}", at)
        if info.offset != expected:
            raise cursor.refused(
                f"tensor {info.name!r} at {info.offset} of the data, where {expected} is expected:"
                " it overlaps another, or leaves a gap",
                at,
            )
        begin = data + info.offset
        if begin + info.nbytes > len(cursor.view):
            raise cursor.refused(
                f"tensor {info.name!r} takes bytes {begin} to {begin + info.nbytes} of"
                f" {len(cursor.view)}",
                at,
            )
        expected += padded(info.nbytes, alignment)
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type_name, begin, info.nbytes)
    return tensors
