"""A server of one memory and many requests, step by step: with pages, and without.

Every step each running sequence gains a token; who is done leaves; who waits comes in as long as
there is room, in order of arrival. No model runs: only lengths decide about memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from labkit.core.errors import PoolError, SchemeError
from labkit.nn.paged_contiguous import ContiguousMemory
from labkit.nn.paged_pool import PagePool
from labkit.nn.paged_tables import PageTables


@dataclass(frozen=True)
class Request:
    """Tokens of the prompt, and tokens that the model will write: nobody knows those before."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Moment:
    """The memory after a step. `owner` [slots]: a sequence; -1 free; -2 reserved, but empty."""

    running: int
    used: int
    reserved: int
    done: int
    owner: np.ndarray


class Store(Protocol):
    """Where the tokens of sequences lie."""

    slots: int

    def admit(self, name: int, request: Request) -> bool: ...
    def grow(self, name: int) -> bool: ...
    def leave(self, name: int) -> None: ...
    def owner(self, lengths: dict[int, int]) -> np.ndarray: ...


@dataclass
class Reserving:
    """One run a sequence. `longest`: what is reserved for each; 0 reserves what it will need."""

    slots: int
    longest: int = 0
    memory: ContiguousMemory = field(init=False)

    def __post_init__(self) -> None:
        self.memory = ContiguousMemory(self.slots)

    def admit(self, name: int, request: Request) -> bool:
        try:
            self.memory.reserve(name, self.longest or request.prompt + request.answer)
        except PoolError:
            return False
        return True

    def grow(self, name: int) -> bool:
        return True

    def leave(self, name: int) -> None:
        self.memory.release(name)

    def owner(self, lengths: dict[int, int]) -> np.ndarray:
        places = np.full(self.slots, -1)
        for name, (start, length) in self.memory.runs.items():
            places[start : start + length] = -2
            places[start : start + lengths[name]] = name
        return places


@dataclass
class Paging:
    """Pages of `page_size` tokens, taken when they are needed."""

    slots: int
    page_size: int
    tables: PageTables = field(init=False)

    def __post_init__(self) -> None:
        pages = self.slots // self.page_size
        self.slots = pages * self.page_size
        self.tables = PageTables(PagePool(pages), self.page_size)

    def admit(self, name: int, request: Request) -> bool:
        # A few pages stay free for those who run: or the next step would evict somebody.
        pool = self.tables.pool
        spare = max(1, pool.pages // 50) if self.tables.sequences else 0
        if pool.free - self.tables.pages_for(request.prompt) < spare:
            return False
        self.tables.add(name)
        self.tables.extend(name, request.prompt)
        return True

    def grow(self, name: int) -> bool:
        try:
            self.tables.extend(name)
        except PoolError:
            return False
        return True

    def leave(self, name: int) -> None:
        self.tables.free(name)

    def owner(self, lengths: dict[int, int]) -> np.ndarray:
        places = np.full(self.slots, -1)
        for name, held in self.tables.sequences.items():
            for page in held.pages:
                places[page * self.page_size : (page + 1) * self.page_size] = -2
            places[self.tables.slots(name)] = name
        return places


def serve(requests: list[Request], store: Store, steps: int) -> Iterator[Moment]:
    """The memory after each of `steps` steps. All requests wait at the door from the beginning.

    Where memory runs out whoever came last is evicted, and waits again, first in line: its tokens
    are known and will be read again as a longer prompt.

    Raises SchemeError for a request that could never fit.
    """
    if any(request.prompt + request.answer > store.slots for request in requests):
        raise SchemeError("a request is longer than the memory", "serve", "Use more slots.")
    goals = [request.prompt + request.answer for request in requests]
    waiting = list(enumerate(requests))
    lengths: dict[int, int] = {}  # of those who run, in order of arrival
    done = 0
    for _ in range(steps):
        while waiting and store.admit(*waiting[0]):
            name, request = waiting.pop(0)
            lengths[name] = request.prompt
        for name in list(lengths):
            if name in lengths and lengths[name] == goals[name]:
                store.leave(name)
                del lengths[name]
                done += 1
            while name in lengths and not store.grow(name):
                last, length = lengths.popitem()
                store.leave(last)
                waiting.insert(0, (last, Request(length, goals[last] - length)))
            if name in lengths:
                lengths[name] += 1
        owner = store.owner(lengths)
        used, reserved = int((owner >= 0).sum()), int((owner != -1).sum())
        yield Moment(len(lengths), used, reserved, done, owner)


def random_requests(count: int, seed: int, longest: int) -> list[Request]:
    """Prompts of 4 … longest/4 tokens and answers of 1 … 3/4 longest, short ones more often."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(4, max(5, longest // 4), size=count)
    answers = np.clip(rng.exponential(longest / 6, size=count), 1, longest * 3 // 4).astype(int)
    return [Request(int(p), int(a)) for p, a in zip(prompts, answers, strict=True)]
