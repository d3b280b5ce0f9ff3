"""`labkit bench gguf`: our GGUF quantizers beside ggml's C."""

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


def gguf(
    only: Annotated[
        list[str] | None, typer.Option(help="A type, such as Q4_K; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="1024 x 1024, two rounds at most: less than a minute.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is timed.")] = 5,
    threads: Annotated[str, typer.Option(help="For both sides; one table each.")] = "1,2",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write rows, command and machine to this JSON file.")
    ] = None,
) -> None:
    """Encode and decode a 4096 x 4096 weight in every GGUF type: ours and ggml's C, in turns."""
    from labkit.bench import gguf_rows

    errors = Console(stderr=True)
    counts = _thread_counts(threads, errors)
    names = [name.upper() for name in only] if only else list(gguf_rows.TYPES)
    size, rounds = (1024, min(rounds, 2)) if quick else (4096, rounds)
    found = []
    try:
        for row in gguf_rows.rows(names, size, rounds, counts):
            found.append(row)
            errors.print(f"{row.type_name} {row.task}, threads {row.threads}: {row.ratio:.2f}x")
    except LabkitError as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in found]}, indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 110)
        for count in counts:
            console.print(table([row for row in found if row.threads == count], count))
    if save is not None:
        command = ["labkit bench gguf", *(f"--only {name}" for name in only or [])]
        command += ["--quick"] if quick else [f"--rounds {rounds}"]
        record = {
            "command": " ".join([*command, f"--threads {threads}"]),
            "made_with": made_with(),
            "rows": [row.as_dict() for row in found],
        }
        save.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        errors.print(f"saved: {save}")


def table(rows: list, threads: int) -> Table:
    """A line a type: million weights a second of ours and of ggml's, and their ratio."""
    plural = "" if threads == 1 else "s"
    found = Table(title=f"Million weights a second: ours / ggml, {threads} thread{plural} each")
    found.add_column("type")
    for heading in ("encode", "with importance", "decode"):
        found.add_column(heading, justify="right")
        found.add_column("ratio", justify="right")
    found.add_column("bytes")
    for name in dict.fromkeys(row.type_name for row in rows):
        mine = {row.task: row for row in rows if row.type_name == name}
        cells = []
        for task in ("encode", "encode with importance", "decode"):
            row = mine.get(task)
            if row is None:
                cells += ["", ""]
                continue
            million = row.size**2 / 1e6
            speeds = f"{million / row.seconds:.0f} / {million / row.peer_seconds:.0f}"
            cells += [speeds, f"{row.ratio:.2f}"]
        equal = all(row.equal for row in mine.values())
        found.add_row(name, *cells, "equal" if equal else "[red]differ[/red]")
    return found


def _thread_counts(words: str, errors: Console) -> list[int]:
    parts = words.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        errors.print(f"[red]--threads {words}: give numbers above 0, such as 1,2[/red]")
        raise typer.Exit(2)
    return [int(part) for part in parts]
