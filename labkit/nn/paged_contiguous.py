"""What pages are measured against: one run of memory for each sequence, reserved when it begins."""

from __future__ import annotations

from collections.abc import Hashable

from labkit.core.errors import PoolError, SchemeError


class ContiguousMemory:
    """`slots` places for tokens; a sequence gets neighbours, at the first gap that is long enough.

    Raises SchemeError for fewer than one slot.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise SchemeError(f"{slots} slots", "ContiguousMemory", "Use at least one.")
        self.slots = slots
        self.runs: dict[Hashable, tuple[int, int]] = {}

    def reserve(self, name: Hashable, tokens: int) -> int:
        """The first slot of `tokens` neighbours. Raises PoolError if no gap is long enough."""
        if name in self.runs:
            raise PoolError(f"sequence {name!r} is there already", remedy="Free it first.")
        for start, length in self.gaps():
            if length >= tokens:
                self.runs[name] = (start, tokens)
                return start
        raise PoolError(
            f"no gap of {tokens} slots; {self.free} are free in all, "
            f"{max((length for _, length in self.gaps()), default=0)} side by side",
            "ContiguousMemory",
            "Free a sequence first, or let this one wait.",
        )

    def release(self, name: Hashable) -> None:
        """Raises PoolError for an unknown sequence."""
        if name not in self.runs:
            raise PoolError(f"no sequence {name!r}", "ContiguousMemory", "Reserve it first.")
        del self.runs[name]

    def gaps(self) -> list[tuple[int, int]]:
        """(start, length) of every run of free slots, in order."""
        found, start = [], 0
        for begin, length in [*sorted(self.runs.values()), (self.slots, 0)]:
            if begin > start:
                found.append((start, begin - start))
            start = begin + length
        return found

    @property
    def free(self) -> int:
        """Slots that nobody reserved."""
        return self.slots - sum(length for _, length in self.runs.values())
