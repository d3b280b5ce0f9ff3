"""`labkit score`: quantize a model with every method, measure, print one table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labkit.core.errors import LabkitError
from labkit.data.corpora import BUNDLED, load_corpus
from labkit.evaluate.provenance import made_with
from labkit.evaluate.score import THOROUGH, Effort, score
from labkit.evaluate.score_chart import score_chart
from labkit.evaluate.score_entries import entries
from labkit.evaluate.score_row import ScoreRow
from labkit.evaluate.score_table import score_table

app = typer.Typer(help="Quantize a model with every method; one table.", add_completion=False)


@app.callback(invoke_without_command=True)
def run(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub name; default $LABKIT_MODEL or the bundled.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method at every width (ten minutes).")
    ] = False,
    thorough: Annotated[
        bool, typer.Option(help="Eight times the text, ten times the questions, a row.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write rows, command and machine to this JSON file.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Write the chart to this PNG file.")] = None,
) -> None:
    """Measure size, perplexity on two domains and four tasks for each method."""
    from labkit.models import load, model_name

    errors = Console(stderr=True)
    try:
        loaded, tokenizer = load(model)
    except LabkitError as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    effort = THOROUGH if thorough else Effort()
    chosen = entries(everything)
    rows: list[ScoreRow] = []
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(chosen[0].label, total=len(chosen))
        for number, (entry, result) in enumerate(score(loaded, tokenizer, chosen, effort), 1):
            if isinstance(result, ScoreRow):
                rows.append(result)
            else:
                errors.print(f"[yellow]{entry.label} refused:[/yellow] {result}")
            following = chosen[min(number, len(chosen) - 1)].label
            progress.update(task, completed=number, description=following)
    if as_json:
        print(json.dumps({"rows": [row.as_dict() for row in rows]}, indent=1))
    else:
        note = f"context {effort.context}, {effort.tokens} tokens a domain"
        title = f"{model_name(model)}: {note}, {effort.questions} questions a task"
        # A pipe has no width of its own; the table needs this much not to be cut.
        width = None if sys.stdout.isatty() else 130
        Console(width=width).print(score_table(rows, title))
    if save is not None:
        command = " ".join(["labkit score", *["--all"] * everything, *["--thorough"] * thorough])
        save.write_text(_record(command, model_name(model), effort, rows), encoding="utf-8")
        errors.print(f"saved: {save}")
    if chart is not None:
        score_chart(rows).savefig(chart, dpi=120)
        errors.print(f"chart: {chart}")


def _record(command: str, model: str, effort: Effort, rows: list[ScoreRow]) -> str:
    """What a results file holds: the rows, and all that it takes to make them again."""
    record = {
        "command": command,
        "made_with": made_with(),
        "model": model,
        "effort": asdict(effort),
        "corpora": {name: load_corpus(name, "heldout").sha256 for name in BUNDLED},
        "rows": [row.as_dict() for row in rows],
    }
    return json.dumps(record, indent=1) + "\n"
