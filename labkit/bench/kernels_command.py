"""`labkit bench kernels`: products with packed weights, ours and the libraries'."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from labkit.core.errors import LabkitError
from labkit.evaluate.provenance import made_with


def kernels(
    quick: Annotated[
        bool, typer.Option(help="One small shape, two rounds at most: less than a minute.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="For all sides.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write rows, command and machine to this JSON file.")
    ] = None,
) -> None:
    """W4A16, W4A8, W8A8, GGUF, NF4 and FP8 beside torch, ONNX Runtime, llama.cpp, bitsandbytes."""
    import torch

    from labkit.bench import kernel_rows
    from labkit.bench.rows import BenchRow, Effort

    errors = Console(stderr=True)
    torch.set_num_threads(threads)
    effort = Effort(quick, min(rounds, 2) if quick else rounds, threads)
    found: list[BenchRow] = []
    try:
        for row in kernel_rows.rows(effort):
            if isinstance(row, BenchRow):
                found.append(row)
                errors.print(f"{row.what}, {row.peer}: {row.ratio:.2f}x")
            else:
                errors.print(f"[yellow]{row}[/yellow]")
    except LabkitError as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in found]}, indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 130).print(table(found, threads))
    if save is not None:
        words = ["labkit bench kernels", "--quick" if quick else f"--rounds {rounds}"]
        record = {
            "command": " ".join([*words, f"--threads {threads}"]),
            "made_with": made_with(),
            "rows": [row.as_dict() for row in found],
        }
        save.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        errors.print(f"saved: {save}")


def table(rows: list, threads: int) -> Table:
    """Milliseconds of a call, and how many times as fast as the peer ours is."""
    found = Table(title=f"A product: milliseconds, {threads} threads each")
    found.add_column("what")
    found.add_column("peer")
    for heading in ("ours ms", "peer ms", "peer / ours", "our error", "peer error"):
        found.add_column(heading, justify="right")
    found.add_column("note")
    for row in rows:
        found.add_row(
            row.what,
            row.peer,
            f"{row.seconds * 1e3:.3f}",
            f"{row.peer_seconds * 1e3:.3f}",
            f"{row.ratio:.2f}",
            *("" if error is None else f"{error:.1e}" for error in (row.error, row.peer_error)),
            row.note,
        )
    return found
