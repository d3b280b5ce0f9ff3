"""A progress bar with the time left, for whatever takes layer by layer or step by step."""

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
def layer_progress(
    console: Console | None = None, first: str = "reading inputs"
) -> Iterator[Callable[[str, int, int], None]]:
    """A bar; give what it yields to `quantize_blockwise` or `train` as `progress`.

    Args:
        first: what is written before anything is done.
    """
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
        task = bar.add_task(first, total=None)

        def tick(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield tick
