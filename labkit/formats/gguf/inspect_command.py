"""`labkit gguf inspect`: what a GGUF file holds, as tables or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.core.errors import LabkitError

_LONGEST = 60  # characters of a value
_NARROWEST = 120  # characters: a number is wrapped by a narrower terminal, and never cut


def inspect(
    file: Annotated[Path, typer.Argument(help="A GGUF file.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show a GGUF file: metadata, types, and every tensor with its bits a weight."""
    from labkit.formats.gguf.describing import describe
    from labkit.formats.gguf.reader import GgufFile

    try:
        with GgufFile(file) as opened:
            found = describe(opened)
    except LabkitError as error:
        Console(stderr=True).print(f"[red]{_shown(str(error), 10_000)}[/red]", highlight=False)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    console = Console(width=max(Console().width, _NARROWEST))
    console.print(
        f"[bold]{_shown(found['path'], 1000)}[/bold]: GGUF {found['version']},"
        f" {found['nbytes']:,} bytes, {found['tensor_count']} tensors,"
        f" {found['weights']:,} weights of {found['bits_per_weight']:.3f} bits",
        highlight=False,
    )
    for table in (_metadata(found), _types(found), _tensors(found)):
        console.print()
        console.print(table)


def _metadata(found: dict[str, Any]) -> Table:
    table = Table("metadata", "kind", "value", box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.columns[2].overflow = "fold"
    for key, value in found["metadata"].items():
        table.add_row(_shown(key), value["kind"], _value(value))
    return table


def _value(value: dict[str, Any]) -> str:
    def text(item: Any) -> str:
        if isinstance(item, float) and "float32" in value["kind"]:
            return f"{item:.7g}"  # 1e-05, and not 9.999999747378752e-06
        return _plain(item)

    if "count" not in value:
        return _shown(text(value["value"]))
    more = ", ..." if value["count"] > len(value["first"]) else ""
    items = ", ".join(map(text, value["first"]))
    return f"{value['count']:,}: {_shown(items)}{more}"


def _types(found: dict[str, Any]) -> Table:
    table = _numbers("type", "tensors", "weights", "bytes", "of the file", "bits a weight")
    for row in found["types"]:
        table.add_row(
            row["type"],
            f"{row['tensors']:,}",
            f"{row['weights']:,}",
            f"{row['nbytes']:,}",
            f"{row['share']:.2%}",
            f"{row['bits_per_weight']:.4g}",
        )
    return table


def _tensors(found: dict[str, Any]) -> Table:
    table = _numbers("tensor", "type", "shape", "bytes", "offset", "of the file", "bits a weight")
    table.columns[0].overflow = "fold"
    for row in found["tensors"]:
        table.add_row(
            _shown(row["name"]),
            row["type"],
            " x ".join(map(str, row["shape"])),
            f"{row['nbytes']:,}",
            f"{row['offset']:,}",
            f"{row['share']:.2%}",
            f"{row['bits_per_weight']:.4g}",
        )
    return table


def _numbers(first: str, *others: str) -> Table:
    """A table whose columns after the first are flush right."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _shown(value: Any, longest: int = _LONGEST) -> str:
    """A value in one line: what could steer the terminal is escaped, what is long is cut."""
    text = _plain(value)
    return escape(text if len(text) <= longest else text[: longest - 3] + "...")


def _plain(value: Any) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
