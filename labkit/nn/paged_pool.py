"""Pages of equal size, handed out and taken back: the memory behind paged attention.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", arXiv 2309.06180, section 4 (a page is a "block" there).
"""

from __future__ import annotations

from labkit.core.errors import PoolError, SchemeError


class PagePool:
    """`pages` pages, numbered from 0, each with a count of the sequences that read it.

    Pages that came back last are handed out first. Raises SchemeError for fewer than one page.
    """

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise SchemeError(f"{pages} pages", "PagePool", "Use at least one.")
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))
        self._readers = [0] * pages

    @property
    def free(self) -> int:
        """Pages that nobody reads."""
        return len(self._free)

    def readers(self, page: int) -> int:
        """How many sequences read a page; 0 for a free one."""
        return self._readers[page]

    def take(self, count: int = 1) -> list[int]:
        """`count` pages with one reader each, or none: PoolError if too few are free."""
        if count > self.free:
            raise PoolError(
                f"{count} pages asked for, {self.free} of {self.pages} free",
                "PagePool",
                "Free a sequence first, or let this one wait.",
            )
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._readers[page] = 1
        return taken

    def share(self, page: int) -> None:
        """One reader more. Raises PoolError for a page that nobody holds."""
        self._require_held(page)
        self._readers[page] += 1

    def give_back(self, page: int) -> None:
        """One reader less; without any the page is free. Raises PoolError if nobody holds it."""
        self._require_held(page)
        self._readers[page] -= 1
        if not self._readers[page]:
            self._free.append(page)

    def _require_held(self, page: int) -> None:
        if not 0 <= page < self.pages or not self._readers[page]:
            raise PoolError(f"page {page} is not held", "PagePool", "It was given back before.")
