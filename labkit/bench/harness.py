"""What all groups of `labkit bench` have in common: progress, table, record, chart.

A group is a function `rows(effort)` that yields rows as they are measured, and in the place of a
row that cannot be had (a library that is not there) the reason, as text or as an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.bench.options import Options
from labkit.bench.rows import Effort
from labkit.core.errors import LabkitError

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
"""Where the records of the course are, which README and notebooks show."""


class Row(Protocol):
    """One comparison.

    `what` is the task and `peer` the other side; `ratio` is how many times as good ours is.
    """

    @property
    def what(self) -> str: ...

    @property
    def peer(self) -> str: ...

    @property
    def ratio(self) -> float: ...

    def as_dict(self) -> dict[str, Any]:
        """The row for a results file."""
        ...


def run(
    group: str,
    rows: Callable[[Effort], Iterable[Row | object]],
    table: Callable[[list[Any], int], Table],
    options: Options,
    *,
    words: Sequence[str] = (),
    ratio_means: str = "times as fast as the peer",
    device: str = "cpu",
) -> None:
    """Measure, print, and keep.

    Args:
        table: makes what is printed of the rows that were measured with a number of threads.
        words: of the command that are the group's own, such as "--only gptq".
        ratio_means: beside the axis of the chart.
        device: what it ran on; a part of the command and of the record's name if it is no CPU.

    Exits with 2 for options that cannot be meant, with 1 where the measuring fails.
    """
    words = words if device == "cpu" else [*words, f"--device {device}"]
    errors = Console(stderr=True)
    counts = _thread_counts(options.threads, errors)
    for place in filter(None, (options.save, options.chart)):
        if not place.absolute().parent.is_dir():
            _refuse(errors, f"{place}: there is no such folder")
    if options.quick and options.save is not None:
        place = options.save.resolve()
        if RESULTS in (place, place.parent):
            _refuse(errors, f"{place}: a record of the course takes a run without --quick")
    try:
        found = _measured(rows, counts, options, errors)
        _show(found, table, options)
        if options.save is not None:
            place = _place(options.save, group, device)
            _keep(place, _command(group, words, options), found)
            errors.print(f"saved: {place}")
        if options.chart is not None:
            _draw(options.chart, f"{group}{' --quick' * options.quick}", found, ratio_means)
            errors.print(f"drawn: {options.chart}")
    except LabkitError as error:
        errors.print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(1) from error


Found = dict[int, list[Row]]  # rows by the number of threads


def _measured(
    rows: Callable[[Effort], Iterable[Row | object]],
    counts: list[int],
    options: Options,
    errors: Console,
) -> Found:
    found: Found = {count: [] for count in counts}
    for count in counts:
        set_threads(count)
        for row in rows(Effort(options.quick, options.used_rounds, count)):
            if not hasattr(row, "as_dict"):
                errors.print(f"[yellow]{escape(str(row))}[/yellow]")
                continue
            found[count].append(row)
            said = f"{row.what}, {row.peer}: {row.ratio:.2f}"
            errors.print(said, markup=False, highlight=False)
    return found


def _show(found: Found, table: Callable[[list[Any], int], Table], options: Options) -> None:
    if options.as_json:
        print(json.dumps({"quick": options.quick, "rows": _records(found)}, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 130)
    for count, rows in found.items():
        shown = table(rows, count)
        if options.quick:
            shown.caption = "Quick: small problems, few rounds. Not a figure to go by."
        console.print(shown)


def _place(save: Path, group: str, device: str) -> Path:
    """The file; in a folder it is named after the group, and after the card if it ran on one."""
    if not save.is_dir():
        return save
    from labkit.bench.devices import slug

    return save / f"bench-{group}{'' if device == 'cpu' else '-' + slug(device)}.json"


def _keep(path: Path, command: str, found: Found) -> None:
    from labkit.evaluate.record import save

    save(path, command, {"rows": _records(found)})


def _draw(path: Path, title: str, found: Found, ratio_means: str) -> None:
    from labkit.bench.chart import ratio_chart

    rows = [row for own in found.values() for row in own]
    ratio_chart(rows, title, ratio_means).savefig(path, dpi=120)


def _records(found: Found) -> list[dict[str, Any]]:
    return [{"threads": count} | row.as_dict() for count, rows in found.items() for row in rows]


def set_threads(count: int) -> None:
    """Give torch and Numba ``count`` threads each, as the peers get."""
    import numba
    import torch

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def chosen(only: list[str] | None, known: Sequence[str]) -> list[str]:
    """What `--only` names, or all that is known; exits with 2 for anything else."""
    unknown = [name for name in only or () if name not in known]
    if unknown:
        _refuse(Console(stderr=True), f"no {', '.join(unknown)}; there are {', '.join(known)}")
    return list(only or known)


def _command(group: str, words: Sequence[str], options: Options) -> str:
    effort = "--quick" if options.quick else f"--rounds {options.rounds}"
    return " ".join([f"labkit bench {group}", *words, effort, f"--threads {options.threads}"])


def _thread_counts(words: str, errors: Console) -> list[int]:
    parts = words.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        _refuse(errors, f"--threads {words}: give numbers above 0, such as 1,2")
    return [int(part) for part in parts]


def _refuse(errors: Console, why: str) -> None:
    errors.print(f"[red]{escape(why)}[/red]")
    raise typer.Exit(2)
