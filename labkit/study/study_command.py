"""`labkit study`: the long measurements behind the chapters' figures."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from labkit.core.errors import LabkitError
from labkit.study import results

# name -> what it measures; each is a module of labkit.study with `run(quick, tell)`.
STUDIES = {
    "qat": "Quantization-aware training beside GPTQ: quality against steps at 3, 2 and 4 bits.",
    "torchao": "Our quantization-aware training beside torchao's, at equal steps.",
    "qlora": "QLoRA: before, after, merged, re-quantized; our NF4 base and bitsandbytes'.",
    "images": "A convolution net in INT8: calibration, ranges, accuracy, size, latency.",
    "encoder": "A text classifier in mixed precision: sensitivity, allocation, training.",
    "scale": "A random 7B by GPTQ and to Q4_K_M: memory, time a block, what larger ones take.",
}

app = typer.Typer(help="Long measurements, recorded in data/results.", add_completion=False)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(STUDIES)}.")],
    quick: Annotated[bool, typer.Option(help="Small and short: does it run here?")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the record to this JSON file.")] = None,
    blocks: Annotated[int | None, typer.Option(help="scale: blocks that GPTQ quantizes.")] = None,
    layers: Annotated[int | None, typer.Option(help="scale: write fewer blocks.")] = None,
    sequences: Annotated[int | None, typer.Option(help="scale: of 256 tokens.")] = None,
    work: Annotated[Path | None, typer.Option(help="scale: folder with room for 18 GB.")] = None,
) -> None:
    """Run one study; what it finds is told while it runs."""
    errors = Console(stderr=True)
    if name not in STUDIES:
        errors.print(f"[red]no study {name!r}; there are {', '.join(STUDIES)}[/red]")
        raise typer.Exit(2)
    module = importlib.import_module(f"labkit.study.{name}")
    given = {"blocks": blocks, "layers": layers, "sequences": sequences, "work": work}
    own = {key: value for key, value in given.items() if value is not None}
    if strange := own.keys() - inspect.signature(module.run).parameters:
        errors.print(f"[red]{name} has no --{', --'.join(sorted(strange))}[/red]")
        raise typer.Exit(2)
    try:
        figures = module.run(quick, lambda text: errors.print(text, markup=False), **own)
    except LabkitError as error:
        errors.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    print(module.readme_block(figures))
    if save is not None:
        words = [f"--{key} {value}" for key, value in own.items() if key != "work"]
        command = " ".join([f"labkit study {name}", *["--quick"] * quick, *words])
        results.save(save, command, figures)
        errors.print(f"saved: {save}")
