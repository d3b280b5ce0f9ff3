"""Page tables: which page of the pool holds which tokens of which sequence."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from labkit.core.errors import PoolError, SchemeError
from labkit.nn.paged_pool import PagePool


@dataclass
class Sequence:
    """Tokens that are held, and the pages that they lie in, in order."""

    length: int = 0
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Extension:
    """What `extend` did: the slots of the new tokens, and the pages to be copied before writing."""

    slots: list[int]
    copies: list[tuple[int, int]]


class PageTables:
    """Sequences of growing length in pages of `page_size` tokens.

    Slot s of the memory is place s % page_size of page s // page_size. A sequence leaves at most
    page_size - 1 slots of its last page unused, and nothing else. Sequences that begin alike share
    pages (`fork`); whoever writes into a shared page gets a copy first.

    Raises SchemeError for a page_size below 1.
    """

    def __init__(self, pool: PagePool, page_size: int) -> None:
        if page_size < 1:
            raise SchemeError(f"page_size {page_size}", "PageTables", "Use at least one token.")
        self.pool, self.page_size = pool, page_size
        self.sequences: dict[Hashable, Sequence] = {}

    def add(self, name: Hashable) -> None:
        """A new sequence without tokens. Raises PoolError if the name is taken."""
        self._require_new(name)
        self.sequences[name] = Sequence()

    def extend(self, name: Hashable, tokens: int = 1) -> Extension:
        """Room for more tokens at the end of a sequence: all of it, or none.

        Raises PoolError for an unknown name, or where the free pages do not suffice.
        """
        held = self._held(name)
        filled = held.length % self.page_size
        # Only a page that is not full is written to again, so only that one may need a copy.
        shared = bool(filled and tokens) and self.pool.readers(held.pages[-1]) > 1
        new = self.pages_for(held.length + tokens) - len(held.pages)
        taken = self.pool.take(new + shared)
        copies = []
        if shared:
            copies = [(held.pages[-1], taken[0])]
            self.pool.give_back(held.pages[-1])
            held.pages[-1] = taken[0]
            taken = taken[1:]
        held.pages.extend(taken)
        start, held.length = held.length, held.length + tokens
        return Extension(self._slots(held, start), copies)

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """A sequence with the same tokens, in the same pages. No memory is taken.

        Raises PoolError for an unknown parent, or a child's name that is taken.
        """
        held = self._held(parent)
        self._require_new(child)
        for page in held.pages:
            self.pool.share(page)
        self.sequences[child] = Sequence(held.length, list(held.pages))

    def free(self, name: Hashable) -> None:
        """Forget a sequence, and give its pages back. Raises PoolError for an unknown name."""
        for page in self._held(name).pages:
            self.pool.give_back(page)
        del self.sequences[name]

    def slots(self, name: Hashable) -> list[int]:
        """Where a sequence's tokens lie, in order. Raises PoolError for an unknown name."""
        return self._slots(self._held(name), 0)

    def pages_for(self, tokens: int) -> int:
        """Pages that so many tokens need: the last may be partly filled."""
        return -(-tokens // self.page_size)

    @property
    def used(self) -> int:
        """Slots with a token in them; one that several sequences read counts once."""
        held = {}
        for sequence in self.sequences.values():
            for index, page in enumerate(sequence.pages):
                filled = min(self.page_size, sequence.length - index * self.page_size)
                held[page] = max(held.get(page, 0), filled)
        return sum(held.values())

    @property
    def reserved(self) -> int:
        """Slots of all pages that somebody holds."""
        return (self.pool.pages - self.pool.free) * self.page_size

    def _slots(self, held: Sequence, start: int) -> list[int]:
        size = self.page_size
        return [held.pages[t // size] * size + t % size for t in range(start, held.length)]

    def _held(self, name: Hashable) -> Sequence:
        if name not in self.sequences:
            raise PoolError(f"no sequence {name!r}", "PageTables", "Add it, or fork one.")
        return self.sequences[name]

    def _require_new(self, name: Hashable) -> None:
        if name in self.sequences:
            raise PoolError(f"sequence {name!r} is there already", "PageTables", "Free it first.")
