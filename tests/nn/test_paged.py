"""Pages: none is lost, none is given out twice, and attention does not notice them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labkit.core.errors import NonFiniteError, PoolError, SchemeError, ShapeError
from labkit.nn.kv_cache import KVCache
from labkit.nn.paged_cache import PagedCache
from labkit.nn.paged_contiguous import ContiguousMemory
from labkit.nn.paged_pool import PagePool
from labkit.nn.paged_serving import Paging, Request, Reserving, random_requests, serve
from labkit.nn.paged_tables import PageTables


class Server(RuleBasedStateMachine):
    """Random sequences come, fork, grow and go; a plain list of tokens says what each must read."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = PageTables(PagePool(9), page_size=3)
        self.memory = [None] * 27
        self.texts: dict[int, list[int]] = {}
        self.next_name = self.next_token = 0

    @rule()
    def begin(self) -> None:
        self.tables.add(self.next_name)
        self.texts[self.next_name] = []
        self.next_name += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), tokens=st.integers(0, 8))
    def extend(self, data, tokens: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.texts)))
        free, before = self.tables.pool.free, self.tables.slots(name)
        try:
            extension = self.tables.extend(name, tokens)
        except PoolError:
            assert self.tables.pool.free == free and self.tables.slots(name) == before
            return
        for old, new in extension.copies:
            self.memory[new * 3 : new * 3 + 3] = self.memory[old * 3 : old * 3 + 3]
        for slot in extension.slots:
            self.memory[slot] = self.next_token
            self.texts[name].append(self.next_token)
            self.next_token += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data) -> None:
        parent = data.draw(st.sampled_from(sorted(self.texts)))
        free = self.tables.pool.free
        self.tables.fork(parent, self.next_name)
        assert self.tables.pool.free == free
        self.texts[self.next_name] = list(self.texts[parent])
        self.next_name += 1

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def leave(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.texts)))
        self.tables.free(name)
        del self.texts[name]

    @invariant()
    def everyone_reads_their_own_text(self) -> None:
        for name, text in self.texts.items():
            assert [self.memory[slot] for slot in self.tables.slots(name)] == text

    @invariant()
    def pages_add_up(self) -> None:
        held = {page for held in self.tables.sequences.values() for page in held.pages}
        assert self.tables.pool.free == 9 - len(held)
        assert self.tables.reserved == 3 * len(held) >= self.tables.used
        for page in range(9):
            readers = sum(page in held.pages for held in self.tables.sequences.values())
            assert self.tables.pool.readers(page) == readers
        if not self.texts:
            assert self.tables.pool.free == 9


TestServer = Server.TestCase
TestServer.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_shared_page_is_copied_before_it_is_written_to():
    tables = PageTables(PagePool(4), page_size=4)
    tables.add("a")
    tables.extend("a", 6)
    tables.fork("a", "b")
    assert tables.used == 6 and tables.pool.free == 2
    grown = tables.extend("b", 1)
    assert len(grown.copies) == 1 and tables.used == 6 + 3  # the full page is still shared
    assert tables.extend("a", 1).copies == []  # the last reader writes in place
    assert tables.slots("a")[:4] == tables.slots("b")[:4]
    assert not set(tables.slots("a")[4:]) & set(tables.slots("b")[4:])


def test_attention_does_not_notice_pages():
    torch.manual_seed(0)
    paged = PagedCache(pages=12, page_size=4, kv_heads=2, head_dim=16)
    plain = {name: KVCache("fp16", 1, 2, 16, 32) for name in "ab"}
    for name in "ab":
        paged.tables.add(name)
    for _ in range(9):  # their pages interleave
        for name, tokens in (("a", 2), ("b", 1)):
            keys, values = torch.randn(2, 2, tokens, 16)
            paged.append(name, keys, values)
            plain[name].append(0, keys[None], values[None])
    paged.tables.fork("a", "c")
    keys, values = torch.randn(2, 2, 1, 16)
    query = torch.randn(6, 16)
    before = paged.attend("a", query)
    paged.append("c", keys, values)
    for name in "ab":
        assert torch.equal(paged.attend(name, query), plain[name].attend(0, query[None])[0])
    assert torch.equal(paged.attend("a", query), before)
    plain["a"].append(0, keys[None], values[None])
    assert torch.equal(paged.attend("c", query), plain["a"].attend(0, query[None])[0])


def test_first_gap_and_fragmentation():
    memory = ContiguousMemory(10)
    for name, tokens in (("a", 3), ("b", 2), ("c", 3)):
        memory.reserve(name, tokens)
    memory.release("b")
    assert memory.gaps() == [(3, 2), (8, 2)] and memory.free == 4
    with pytest.raises(PoolError, match="4 are free in all, 2 side by side"):
        memory.reserve("d", 3)
    assert memory.reserve("d", 1) == 3 and memory.reserve("e", 2) == 8
    memory.release("a")
    assert memory.gaps() == [(0, 3), (4, 1)]


@pytest.mark.parametrize("store", [Reserving(96, 32), Reserving(96), Paging(96, 4), Paging(98, 5)])
def test_everyone_is_served(store):
    requests = random_requests(30, seed=3, longest=32)
    moments = list(serve(requests, store, steps=2000))
    assert moments[-1].done == 30 and moments[-1].reserved == 0 and moments[-1].running == 0
    assert all(m.used <= m.reserved <= len(m.owner) for m in moments)
    assert [m.done for m in moments] == sorted(m.done for m in moments)
    if isinstance(store, Paging):
        assert all(m.reserved - m.used <= store.page_size * m.running for m in moments)


def test_pages_serve_more_at_a_time():
    requests = random_requests(200, seed=0, longest=64)
    running = {}
    for name, store in (("max", Reserving(512, 64)), ("pages", Paging(512, 4))):
        moments = list(serve(requests, store, steps=60))
        running[name] = sum(m.running for m in moments) / 60
        owners = moments[-1].owner
        assert (owners >= 0).sum() == moments[-1].used
    assert running["pages"] > 1.5 * running["max"]


def test_a_sequence_alone_may_take_the_whole_memory():
    *_, last = serve([Request(6, 2), Request(7, 1)], Paging(8, 4), steps=30)
    assert last.done == 2


def test_one_that_cannot_grow_waits_again():
    moments = list(serve([Request(1, 7), Request(1, 7)], Paging(12, 2), steps=60))
    assert moments[-1].done == 2 and max(m.running for m in moments) == 2
    pairs = pairwise(moments)
    assert any(b.running < a.running and b.done == a.done for a, b in pairs)


def test_what_cannot_be():
    for make in (
        lambda: PagePool(0),
        lambda: PageTables(PagePool(1), 0),
        lambda: ContiguousMemory(0),
    ):
        with pytest.raises(SchemeError):
            make()
    pool = PagePool(2)
    (page,) = pool.take()
    pool.give_back(page)
    for again in (pool.give_back, pool.share):
        with pytest.raises(PoolError, match="not held"):
            again(page)
    with pytest.raises(PoolError, match="3 pages"):
        pool.take(3)
    tables = PageTables(pool, 2)
    tables.add("a")
    for act in (
        lambda: tables.add("a"),
        lambda: tables.fork("a", "a"),
        lambda: tables.free("b"),
        lambda: tables.extend("b"),
    ):
        with pytest.raises(PoolError, match="sequence"):
            act()
    memory = ContiguousMemory(4)
    memory.reserve("a", 1)
    for act in (lambda: memory.reserve("a", 1), lambda: memory.release("b")):
        with pytest.raises(PoolError, match="sequence"):
            act()
    with pytest.raises(SchemeError, match="longer than the memory"):
        list(serve([Request(5, 4)], Paging(8, 4), 1))
    cache = PagedCache(1, 4, 2, 8)
    cache.tables.add("a")
    good = torch.ones(2, 1, 8)
    for keys, values in ((good[0], good[0]), (good[:1], good[:1]), (good, good[:, :0])):
        with pytest.raises(ShapeError):
            cache.append("a", keys, values)
    with pytest.raises(NonFiniteError):
        cache.append("a", good * 1e6, good)
    with pytest.raises(ShapeError, match="no token"):
        cache.attend("a", torch.ones(2, 8))
