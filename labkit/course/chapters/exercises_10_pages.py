"""Exercises 10.4 and 10.5: a page table grows, and gives its pages back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from labkit.core.errors import PoolError
from labkit.course.bounds import matches_reference
from labkit.course.exercise import Exercise, Mutant, Trial
from labkit.nn.paged_pool import PagePool
from labkit.nn.paged_tables import PageTables, Sequence

Pages = list[int]


def extend(
    pages: Pages, length: int, count: int, free: Pages, page_size: int
) -> tuple[Pages, Pages]:
    """`PageTables.extend` on a pool whose free pages are `free`, the last first."""
    pool = PagePool(max([*pages, *free, 0]) + 1)
    pool._free = list(free)
    for page in pages:
        pool._readers[page] = 1
    tables = PageTables(pool, page_size)
    tables.sequences["a"] = Sequence(length, list(pages))
    try:
        tables.extend("a", count)
    except PoolError as error:  # the checker takes a ValueError for an answer
        raise ValueError(str(error)) from error
    return tables.sequences["a"].pages, pool._free


def _growing(rng: np.random.Generator) -> Iterator[tuple[Pages, int, int, Pages, int]]:
    yield [], 0, 1, [4, 7, 2], 4  # the first token of all
    yield [5], 3, 1, [4, 7, 2], 4  # the page's last place
    yield [5], 4, 1, [4, 7, 2], 4  # the page is full
    yield [5, 1], 6, 2, [4, 7, 2], 4
    yield [5], 2, 9, [4, 7, 2, 0], 4
    yield [5], 2, 11, [4, 7], 4  # too few
    yield [5], 4, 0, [4, 7], 4
    yield [], 0, 8, [3, 1], 4  # exactly enough
    for _ in range(12):
        size = int(rng.integers(1, 6))
        order = rng.permutation(12).tolist()
        length = int(rng.integers(0, 4 * size))
        held = -(-length // size)
        yield order[:held], length, int(rng.integers(0, 4 * size)), order[held:], size


def _nothing_lost(trial: Trial) -> str | None:
    """every page is either in the table or free, and none in both"""
    before = sorted(trial["pages"] + trial["free"])
    after = sorted(trial.got[0] + trial.got[1])
    if before == after:
        return None
    return f"pages {before} went in, {after} came out"


def _enough(trial: Trial) -> str | None:
    """the table has room for all tokens, and not a page more"""
    size, tokens = trial["page_size"], trial["length"] + trial["count"]
    room = len(trial.got[0]) * size
    if tokens <= room < tokens + size:
        return None
    return f"{tokens} tokens lie in {len(trial.got[0])} pages of {size}"


_DOC = '''
    def extend(pages, length, count, free, page_size):
        """(pages, free) after `count` more tokens: lists of page numbers.

        pages: the pages of a sequence of `length` tokens, in order. free: the pool's free pages;
        take from its end. Raise ValueError if there are too few.
        """'''

EXTEND = Exercise(
    id="10.4",
    title="A page table grows",
    minutes=10,
    difficulty=2,
    goal="give a growing sequence pages, only when it needs them",
    stub=f"{_DOC}\n        ...\n    ",
    solution=f"""{_DOC}
        needed = math.ceil((length + count) / page_size) - len(pages)
        if needed > len(free):
            raise ValueError("too few free pages")
        pages, free = list(pages), list(free)
        for _ in range(needed):
            pages.append(free.pop())
        return pages, free
    """,
    reference=extend,
    answer_key=PageTables.extend,
    generate=_growing,
    bounds=(_nothing_lost, _enough, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "You began a new page for the new tokens though the last one still had room.",
            swap=(
                "math.ceil((length + count) / page_size) - len(pages)",
                "math.ceil(count / page_size)",
            ),
        ),
        Mutant(
            "You rounded down: a partly filled page is a page.",
            swap=("math.ceil((length + count) / page_size)", "(length + count) // page_size"),
        ),
        Mutant(
            "Exactly full is not too full: you took a page more than needed whenever the tokens "
            "end with a page.",
            swap=("math.ceil((length + count) / page_size)", "((length + count) // page_size + 1)"),
        ),
        Mutant(
            "One page for each token: a page holds page_size of them.",
            swap=("math.ceil((length + count) / page_size) - len(pages)", "count"),
        ),
        Mutant(
            "The pages that you took are still in the free list: the next sequence will get them, "
            "too, and overwrite this one.",
            swap=(("pages.append(free.pop())", "pages.append(free[-1 - _])"),),
        ),
        Mutant(
            "New pages go behind the old ones. Place t of the sequence is in "
            "pages[t // page_size], so the order is the order of the tokens.",
            swap=("pages.append(free.pop())", "pages.insert(0, free.pop())"),
        ),
        Mutant(
            "Where pages run out you gave what there was. Tokens without a page would be written "
            "nowhere: raise ValueError, and take none.",
            swap=(('raise ValueError("too few free pages")', "needed = len(free)"),),
        ),
        Mutant(
            "The pages that were there are lost: nobody can read the old tokens or free them.",
            swap=("pages, free = list(pages), list(free)", "pages, free = [], list(free)"),
        ),
    ),
    hints=(
        "How many pages do length + count tokens need in all? How many are there?",
        "ceil((length + count) / page_size) - len(pages), and compare with len(free) first.",
        "Copy both lists, then pages.append(free.pop()) so many times.",
    ),
)


def release(pages: Pages, readers: list[int], free: Pages) -> tuple[list[int], Pages]:
    """`PagePool.give_back` for each page of a sequence."""
    pool = PagePool(len(readers))
    pool._readers, pool._free = list(readers), list(free)
    for page in pages:
        pool.give_back(page)
    return pool._readers, pool._free


def _leaving(rng: np.random.Generator) -> Iterator[tuple[Pages, list[int], Pages]]:
    yield [2, 0], [1, 0, 1, 0], [3, 1]
    yield [2, 0], [1, 0, 2, 0], [3, 1]  # page 2 has another reader
    yield [0, 1, 3], [3, 2, 0, 1], [2]
    yield [0], [2, 0], [1]
    for _ in range(10):
        order = rng.permutation(8).tolist()
        held, taken = order[: int(rng.integers(2, 5))], order[5:]
        readers = [int(rng.integers(1, 4)) if page in order[:5] else 0 for page in range(8)]
        readers[held[0]], readers[held[-1]] = int(rng.integers(2, 4)), 1
        yield held, readers, taken


def _free_means_unread(trial: Trial) -> str | None:
    """a page is free exactly when nobody reads it, and stands in the list once"""
    readers, free = trial.got
    unread = [page for page, count in enumerate(readers) if count == 0]
    if sorted(free) == unread:
        return None
    return f"free are {sorted(free)}, but pages without a reader are {unread}"


_RELEASE = '''
    def release(pages, readers, free):
        """(readers, free) after a sequence is done.

        pages: its pages. readers: for each page of the pool, how many sequences read it. free: the
        pool's free pages; append to it, in the order of `pages`.
        """'''

RELEASE = Exercise(
    id="10.5",
    title="Pages come back",
    minutes=8,
    difficulty=2,
    goal="free what nobody reads any more, and nothing else",
    stub=f"{_RELEASE}\n        ...\n    ",
    solution=f"""{_RELEASE}
        readers, free = list(readers), list(free)
        for page in pages:
            readers[page] -= 1
            if readers[page] == 0:
                free.append(page)
        return readers, free
    """,
    reference=release,
    answer_key=PagePool.give_back,
    generate=_leaving,
    bounds=(_free_means_unread, matches_reference(rtol=0)),
    mutants=(
        Mutant(
            "A leak: no page ever comes back, and the server stops when the pool is empty.",
            swap=("free.append(page)", "pass"),
        ),
        Mutant(
            "You freed pages that another sequence still reads. Its prompt will be overwritten.",
            swap=("if readers[page] == 0:", "if True:"),
        ),
        Mutant(
            "You left the last page out, perhaps because it was not full. It belonged to the "
            "sequence all the same: this leaks a page a request.",
            swap=("for page in pages:", "for page in pages[:-1]:"),
        ),
        Mutant(
            "You did not count the reader down. Shared pages will never be free.",
            swap=(
                "readers[page] -= 1\n        if readers[page] == 0:",
                "if readers[page] == 1:\n            readers[page] = 0",
            ),
        ),
        Mutant(
            "A page with one reader left is not free: test for 0 after counting down.",
            swap=("if readers[page] == 0:", "if readers[page] <= 1:"),
        ),
        Mutant(
            "You set the count to 0 at once: others read the page, too.",
            swap=("readers[page] -= 1", "readers[page] = 0"),
        ),
        Mutant(
            "At the first shared page you stopped. Pages behind it may be this sequence's alone: "
            "whoever writes into a shared page gets a copy.",
            swap=(
                "free.append(page)",
                "free.append(page)\n        else:\n            break",
            ),
        ),
    ),
    hints=(
        "Every page of the sequence loses one reader. Which of them go back to the pool?",
        "readers[page] -= 1 for all of them; free.append(page) where that made it 0.",
    ),
)
