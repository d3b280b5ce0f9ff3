"""Metadata values of a GGUF file: each has a type in the file, and so it has one here.

    key      string
    type     uint32          a `Kind`
    value    a number        little-endian, 1 to 8 bytes
             a string        uint64 count of bytes, then UTF-8
             an array        uint32 the items' kind, uint64 count, then the items

Source: GGUF's specification (ggml, docs/gguf.md); an array of arrays, which the specification
allows, is read by no loader of llama.cpp and by none here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from labkit.core.errors import FormatError


class Kind(IntEnum):
    """The types of a value, by their numbers in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# struct's letter of every kind that has a fixed size.
LETTERS = {
    Kind.UINT8: "B",
    Kind.INT8: "b",
    Kind.UINT16: "H",
    Kind.INT16: "h",
    Kind.UINT32: "I",
    Kind.INT32: "i",
    Kind.FLOAT32: "f",
    Kind.BOOL: "?",
    Kind.UINT64: "Q",
    Kind.INT64: "q",
    Kind.FLOAT64: "d",
}


@dataclass(frozen=True)
class Value:
    """One metadata value.

    Args:
        kind: its type in the file.
        value: int, float, bool, str, or a list of one of these.
        item_kind: the type of an array's items; None for everything else.
    """

    kind: Kind
    value: Any
    item_kind: Kind | None = None


def u32(value: int) -> Value:
    """An unsigned 32-bit integer: what llama.cpp expects of counts and sizes."""
    return Value(Kind.UINT32, value)


def i32(value: int) -> Value:
    """A signed 32-bit integer."""
    return Value(Kind.INT32, value)


def u64(value: int) -> Value:
    """An unsigned 64-bit integer."""
    return Value(Kind.UINT64, value)


def f32(value: float) -> Value:
    """A 32-bit float."""
    return Value(Kind.FLOAT32, value)


def boolean(value: bool) -> Value:
    """True or false, one byte in the file."""
    return Value(Kind.BOOL, value)


def string(value: str) -> Value:
    """A text, UTF-8 in the file."""
    return Value(Kind.STRING, value)


def array(item_kind: Kind, items: Sequence[Any]) -> Value:
    """A list of values of one kind."""
    return Value(Kind.ARRAY, list(items), item_kind)


def encode_string(text: str) -> bytes:
    """A string as the file holds it: its length in bytes, then UTF-8.

    Raises:
        FormatError: a lone surrogate, for which UTF-8 has no bytes.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{text[:100]!r} is no Unicode text", remedy=str(error)) from error
    return struct.pack("<Q", len(content)) + content


def encode(key: str, value: Value) -> bytes:
    """A key and its value as the file holds them.

    Raises:
        FormatError: a value that does not fit its kind; the key is named.
    """
    parts = [encode_string(key), struct.pack("<I", value.kind)]
    if value.kind == Kind.ARRAY:
        if value.item_kind is None or value.item_kind == Kind.ARRAY:
            raise FormatError(
                "an array whose items have no kind, or are arrays",
                where=f"metadata {key!r}",
                remedy="Give the kind of the items; llama.cpp reads no array of arrays.",
            )
        parts.append(struct.pack("<IQ", value.item_kind, len(value.value)))
        parts.append(_encode_items(key, value.item_kind, value.value))
    else:
        parts.append(_encode_items(key, value.kind, [value.value]))
    return b"".join(parts)


def _encode_items(key: str, kind: Kind, items: Sequence[Any]) -> bytes:
    """Values of one kind, one after another; struct itself checks their types and ranges."""
    wanted = {Kind.STRING: str, Kind.BOOL: bool}.get(kind)
    if wanted is not None and not all(isinstance(item, wanted) for item in items):
        raise FormatError(
            f"items that are no {wanted.__name__}",
            where=f"metadata {key!r}",
            remedy=f"Its kind is {kind.name}.",
        )
    if kind == Kind.STRING:
        return b"".join(encode_string(item) for item in items)
    try:
        return struct.pack(f"<{len(items)}{LETTERS[kind]}", *items)
    except (struct.error, OverflowError) as error:
        raise FormatError(
            f"a value that is no {kind.name}: {error}",
            where=f"metadata {key!r}",
            remedy="Choose a kind that holds it.",
        ) from error
