"""A place within a GGUF file's header that moves on with everything that is read.

Nothing is allocated by a count that the bytes which are left do not bear out, and a header as a
whole may hold `MAX_ITEMS` values in `MAX_HEADER` bytes: Python needs some 60 bytes for each, so a
hostile file costs a bounded amount of memory and time, whatever its length.
"""

from __future__ import annotations

import struct
from typing import Any

from labkit.core.errors import FormatError
from labkit.formats.gguf.values import LETTERS, Kind, Value

MAX_HEADER = 256 * 2**20  # real ones: 5 to 20 MB, nearly all of it the vocabulary
MAX_ITEMS = 2**22  # real ones: 0.3 to 1.5 million

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SIZES = {kind: struct.calcsize(f"<{letter}") for kind, letter in LETTERS.items()}


class Cursor:
    """Reads a header from its beginning to its end.

    Args:
        view: the file's bytes.
        where: the file's name, for errors.
    """

    def __init__(self, view: memoryview, where: str) -> None:
        self.view = view
        self.where = where
        self.position = 0
        self._end = min(len(view), MAX_HEADER)
        self._items = 0

    def refused(self, why: str, at: int | None = None) -> FormatError:
        """The error for what was found at a byte of the file; the current one if none is given."""
        return FormatError(
            f"not a valid GGUF file: {why} (at byte {self.position if at is None else at})",
            where=self.where,
            remedy="It is truncated or damaged, or was made to mislead; fetch it again.",
        )

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        begin, end = self.position, self.position + count
        if end > self._end:
            raise self.refused(self._beyond(count))
        self.position = end
        return self.view[begin:end]

    def u32(self) -> int:
        """An unsigned 32-bit integer."""
        return _U32.unpack(self.take(4))[0]

    def u64(self) -> int:
        """An unsigned 64-bit integer."""
        return _U64.unpack(self.take(8))[0]

    def count(self, what: str, nbytes: int, cost: int = 1) -> int:
        """A uint64 that counts things of at least ``nbytes`` bytes each, which must be there.

        Each takes the memory of ``cost`` plain values.
        """
        at = self.position
        count = self.u64()
        if count * nbytes > self._end - self.position:
            raise self.refused(f"{count} {what}, and {self._end - self.position} bytes left", at)
        self._items += count * cost
        if self._items > MAX_ITEMS:
            raise self.refused(f"{count} {what} are more than labkit reads", at)
        return count

    def string(self, what: str, limit: int | None = None) -> str:
        """A string: at most ``limit`` bytes of UTF-8."""
        at = self.position
        length = self.u64()
        if limit is not None and length > limit:
            raise self.refused(f"{what} of {length} bytes; {limit} are allowed", at)
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise self.refused(f"{what} that is no UTF-8: {error.reason}", at) from error

    def value(self, key: str) -> Value:
        """A metadata value: its kind, and what follows from it."""
        kind = self._kind(key)
        if kind == Kind.STRING:
            return Value(kind, self.string(f"{key[:80]!r}, a string"))
        if kind != Kind.ARRAY:
            return Value(kind, self._numbers(key, kind, 1)[0])
        at = self.position
        item_kind = self._kind(key)
        if item_kind == Kind.ARRAY:
            raise self.refused(f"{key[:80]!r} is an array of arrays", at)
        if item_kind == Kind.STRING:
            strings = self._strings(key, self.count(f"strings in {key[:80]!r}", 8))
            return Value(kind, strings, item_kind)
        count = self.count(f"numbers in {key[:80]!r}", _SIZES[item_kind])
        return Value(kind, self._numbers(key, item_kind, count), item_kind)

    def _kind(self, key: str) -> Kind:
        at = self.position
        number = self.u32()
        if number >= len(Kind):
            raise self.refused(f"{key[:80]!r} has the type {number}, which there is not", at)
        return Kind(number)

    def _numbers(self, key: str, kind: Kind, count: int) -> list[Any]:
        at = self.position
        content = self.take(count * _SIZES[kind])
        if kind == Kind.BOOL and any(byte > 1 for byte in content):
            raise self.refused(f"{key[:80]!r} is neither true nor false", at)
        return list(struct.unpack(f"<{count}{LETTERS[kind]}", content))

    def _strings(self, key: str, count: int) -> list[str]:
        """The strings of an array: a vocabulary has 10^5 of them, so this loop calls no method."""
        view, end, position, length_at = self.view, self._end, self.position, _U64.unpack_from
        strings = []
        try:
            for _ in range(count):
                begin = position + 8
                # Past the last byte unpack_from raises struct.error.
                position = begin + length_at(view, position)[0]
                if position > end:
                    self.position = begin - 8
                    raise self.refused(f"a string in {key[:80]!r} of {position - begin} bytes")
                strings.append(str(view[begin:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise self.refused(f"a string in {key[:80]!r}: no UTF-8", begin) from error
        except struct.error as error:
            raise self.refused(f"the strings in {key[:80]!r} end early", position) from error
        self.position = position
        return strings

    def _beyond(self, count: int) -> str:
        if self._end < len(self.view):
            return f"a header of more than {MAX_HEADER} bytes, which labkit does not read"
        return f"{count} bytes are wanted and {self._end - self.position} left"
