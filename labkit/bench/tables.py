"""The rows of a group as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from labkit.bench.rows import BenchRow

if TYPE_CHECKING:
    from labkit.bench.gguf_rows import GgufRow

_TASKS = ("encode", "encode with importance", "decode")


def bench_table(rows: Sequence[BenchRow], threads: int) -> Table:
    """Times, errors, and how many times as fast as the peer ours is."""
    found = Table(title=f"Ours beside the libraries, {_threads(threads)}")
    headings = ("what", "peer", "ours", "peer's", "peer / ours", "our error", "peer error", "note")
    for heading in headings:
        text = heading in ("what", "peer", "note")
        found.add_column(heading, justify="left" if text else "right")
    for row in rows:
        found.add_row(
            row.what,
            row.peer,
            seconds_text(row.seconds),
            seconds_text(row.peer_seconds),
            f"{row.ratio:.2f}",
            *("" if error is None else f"{error:.2g}" for error in (row.error, row.peer_error)),
            row.note,
        )
    return found


def gguf_table(rows: Sequence[GgufRow], threads: int) -> Table:
    """A line a type: million weights a second of ours and of ggml's, and their ratio."""
    found = Table(title=f"Million weights a second: ours / ggml, {_threads(threads)}")
    found.add_column("type")
    for heading in ("encode", "with importance", "decode"):
        found.add_column(heading, justify="right")
        found.add_column("ratio", justify="right")
    found.add_column("bytes")
    for name in dict.fromkeys(row.type_name for row in rows):
        mine = {row.task: row for row in rows if row.type_name == name}
        cells = [cell for task in _TASKS for cell in _speeds(mine.get(task))]
        equal = all(row.equal for row in mine.values())
        found.add_row(name, *cells, "equal" if equal else "[red]differ[/red]")
    return found


def _speeds(row: GgufRow | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    million = row.size**2 / 1e6
    speeds = f"{million / row.seconds:.0f} / {million / row.peer_seconds:.0f}"
    return speeds, f"{row.ratio:.2f}"


def seconds_text(seconds: float) -> str:
    """Seconds, or milliseconds where these are few."""
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'} each"
