"""`labkit train-reference`: rebuild the bundled model from the learner's own Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from labkit.core.errors import LabkitError

app = typer.Typer(help="Rebuild the bundled model.", add_completion=False)


@app.callback(invoke_without_command=True)
def run(
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default data/reference-lm.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder to resume from; default in the user cache.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Stop each phase after this many steps (to try it out).")
    ] = None,
    compile_model: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """Train tokenizer and model; a run that was stopped continues from its last checkpoint."""
    import platformdirs

    from labkit.models import bundled_folder
    from labkit.training.reference.recipe import Recipe
    from labkit.training.reference.run import train_reference

    recipe = Recipe() if steps is None else Recipe().shortened(steps)
    folder = checkpoints or platformdirs.user_cache_path("labkit") / "train-reference"
    console = Console()
    console.print(
        f"{recipe.steps} steps, {recipe.tokens / 1e6:.1f} M tokens; checkpoints: {folder}"
    )
    try:
        train_reference(
            recipe,
            out or bundled_folder(),
            folder,
            log=lambda row: console.print_json(json.dumps(row), indent=None),
            compile_model=compile_model,
        )
    except LabkitError as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
