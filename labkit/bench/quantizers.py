"""All comparisons of quantizers with the libraries, one after the other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import PeerMissingError

SOURCES = {
    "gptq": "labkit.bench.gptq_rows",
    "awq": "labkit.bench.awq_rows",
    "nf4": "labkit.bench.nf4_rows",
}
"""What can be compared, and the module whose ``rows(effort)`` does it."""


def compare(names: list[str], effort: Effort) -> Iterator[BenchRow | PeerMissingError]:
    """Yield the rows of the sources named, in their order, as they are measured.

    A source whose peer has no environment here yields the error instead of its remaining rows.
    """
    for name in names:
        source = importlib.import_module(SOURCES[name])
        try:
            yield from source.rows(effort)
        except PeerMissingError as error:
            yield error
