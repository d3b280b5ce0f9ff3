"""A progress bar with the time left, for the block-by-block driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def layer_progress(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A bar of layers; give what it yields to `quantize_blockwise(..., progress=...)`."""
    columns = (
        TextColumn("{task.description:40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading inputs", total=None)

        def tick(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield tick
