"""`labkit qat`: train a model with rounded weights, and write it in a format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labkit.core.errors import LabkitError, SchemeError

app = typer.Typer(help="Quantization-aware training of a model.", add_completion=False)


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or hub name; default $LABKIT_MODEL or the bundled model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("trained"),
    bits: Annotated[int, typer.Option(help="Bits of a weight.")] = 3,
    granularity: Annotated[str, typer.Option(help="channel or group.")] = "channel",
    group_size: Annotated[
        int | None, typer.Option(help="Weights of a group that share a scale; default 128.")
    ] = None,
    activations: Annotated[
        int | None, typer.Option(help="Bits of the layers' inputs: 8; default floats.")
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="gptq or compressed-tensors; default what holds it."),
    ] = None,
    start: Annotated[str, typer.Option(help="Codes to start at: gptq or rtn.")] = "gptq",
    steps: Annotated[int, typer.Option(help="Batches to train on.")] = 180,
    corpus: Annotated[
        list[str] | None,
        typer.Option(help="Corpus or text file; may be repeated. Default the course's text."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Sequences of a batch.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    sequences: Annotated[int, typer.Option(help="Calibration sequences of a corpus.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of the weights.")] = 1e-3,
    scale_lr: Annotated[float, typer.Option(help="Of the scales, as a share of each.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    bfloat16: Annotated[bool, typer.Option(help="Multiply in bfloat16.")] = False,
    evaluate_tokens: Annotated[int, typer.Option(help="Held-out tokens of a corpus.")] = 8192,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 25,
    seed: Annotated[int, typer.Option(help="Chooses the text.")] = 7,
    work: Annotated[
        Path | None, typer.Option(help="Folder for unfinished work; default beside --out.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it is there.")] = False,
) -> None:
    """Round, train towards the float model, export; perplexity before and after."""
    console = Console(stderr=True)
    work = work or out.with_name(f"{out.name}.work")
    request = {
        "model": model,
        "bits": bits,
        "activations": activations,
        "format": output_format,
        "start": start,
        "corpora": tuple(corpus or ()),
        "sequences": sequences,
        "rows": rows,
        "length": length,
        "evaluate_tokens": evaluate_tokens,
        "seed": seed,
    }
    settings = {
        "steps": steps,
        "lr": lr,
        "scale_lr": scale_lr,
        "optimizer": optimizer,
        "bfloat16": bfloat16,
        "save_every": save_every,
        "evaluate_every": steps,
    }
    place = {"out": out, "work": work, "resume": resume, "overwrite": force}
    try:
        request["group_size"] = _group_size(granularity, group_size)
        figures = _train(request, settings, place, console)
    except LabkitError as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        for note in getattr(error, "__notes__", ()):
            console.print(escape(note), highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        console.print(f"Interrupted. With --resume it goes on from what is in {work}.")
        raise typer.Exit(130) from interrupt
    Console(width=None if console.is_terminal else 100).print(_table(figures))
    shutil.rmtree(work)
    console.print(f"written: {out}")


def _group_size(granularity: str, group_size: int | None) -> int | None:
    if granularity not in ("channel", "group"):
        raise SchemeError(f"granularity {granularity!r}", remedy="Choose channel or group.")
    if granularity == "channel" and group_size is not None:
        raise SchemeError(
            f"group size {group_size} with one scale a channel",
            remedy="Add --granularity group, or leave the group size out.",
        )
    return None if granularity == "channel" else group_size or 128


def _train(
    request: dict[str, Any], settings: dict[str, Any], place: dict[str, Any], console: Console
) -> dict[str, Any]:
    from labkit.models.progress import layer_progress
    from labkit.training.qat_request import QatRequest
    from labkit.training.qat_run import quantization_aware_training
    from labkit.training.trainer import TrainSettings

    chosen, numbers = QatRequest(**request), TrainSettings(**settings)
    with layer_progress(console, "reading text") as progress:
        return quantization_aware_training(
            chosen,
            numbers,
            **place,
            tell=lambda line: console.print(line, markup=False, highlight=False),
            progress=progress,
        )


def _table(figures: dict[str, Any]) -> Table:
    """Held-out perplexity, a line a corpus."""
    found = Table(title="Held-out perplexity")
    found.add_column("text")
    heads = {"float": "float", "start": "rounded", "trained": "trained"}
    for head in heads.values():
        found.add_column(head, justify="right")
    for name in figures["float"]:
        found.add_row(escape(name), *(f"{figures[key][name]:.3f}" for key in heads))
    return found
