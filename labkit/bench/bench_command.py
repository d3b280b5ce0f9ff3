"""`labkit bench`: ours beside the peers, in one run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.bench import gguf_command, kernels_command
from labkit.bench.quantizers import SOURCES, compare, set_threads
from labkit.bench.rows import BenchRow, Effort
from labkit.core.errors import LabkitError
from labkit.evaluate.provenance import made_with

app = typer.Typer(help="Ours beside the real libraries, in one run.", add_completion=False)


app.command("gguf")(gguf_command.gguf)
app.command("kernels")(kernels_command.kernels)


@app.callback()
def bench() -> None:
    """Ours beside the real libraries, in one run."""


@app.command()
def quantizers(
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(SOURCES)}; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Small problems, one or two rounds: under a minute.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="How often each side is timed, in turns.")] = 5,
    threads: Annotated[int, typer.Option(help="For both sides.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write rows, command and machine to this JSON file.")
    ] = None,
) -> None:
    """Seconds and output error of our quantizers and of the libraries' own.

    Peers live in environments of their own: `make card-env`, `make peers`.
    """
    errors = Console(stderr=True)
    names = only or list(SOURCES)
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        errors.print(f"[red]no {', '.join(unknown)}; there are {', '.join(SOURCES)}[/red]")
        raise typer.Exit(2)
    effort = Effort(quick, min(rounds, 2) if quick else rounds, threads)
    set_threads(threads)
    rows: list[BenchRow] = []
    try:
        for result in compare(names, effort):
            if isinstance(result, BenchRow):
                rows.append(result)
                errors.print(f"{result.what}, {result.peer}: {result.ratio:.1f}x")
            else:
                errors.print(f"[yellow]{result}[/yellow]")
    except LabkitError as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in rows]}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 130).print(table(rows, threads))
    if save is not None:
        save.write_text(_record(names, effort, rows), encoding="utf-8")
        errors.print(f"saved: {save}")


def table(rows: list[BenchRow], threads: int) -> Table:
    """The rows as they are printed; medians over rounds in which both sides take turns."""
    found = Table(title=f"Ours beside the libraries, {threads} threads each")
    for heading in ("what", "peer", "ours s", "peer s", "peer / ours", "our error", "peer error"):
        found.add_column(heading, justify="left" if heading in ("what", "peer") else "right")
    found.add_column("note")
    for row in rows:
        found.add_row(
            row.what,
            row.peer,
            f"{row.seconds:.3f}",
            f"{row.peer_seconds:.3f}",
            f"{row.ratio:.2f}",
            *("" if error is None else f"{error:.5f}" for error in (row.error, row.peer_error)),
            row.note,
        )
    return found


def _record(names: list[str], effort: Effort, rows: list[BenchRow]) -> str:
    """What a results file holds: the rows, and all that it takes to make them again."""
    words = ["labkit bench quantizers", *(f"--only {name}" for name in names)]
    if list(SOURCES) == names:
        words = words[:1]
    words += ["--quick"] if effort.quick else [f"--rounds {effort.rounds}"]
    record = {
        "command": " ".join([*words, f"--threads {effort.threads}"]),
        "made_with": made_with(),
        "rows": [row.as_dict() for row in rows],
    }
    return json.dumps(record, indent=1) + "\n"
