"""The `labkit` command. Each sub-command lives beside what it runs and is imported when called."""

from __future__ import annotations

import importlib
import sys

import click
import typer
from typer.core import TyperGroup

# name -> (module with a typer `app`, one line for `labkit --help`)
COMMANDS = {
    "doctor": ("labkit.doctor", "Check that this machine can run the course."),
    "score": ("labkit.evaluate.score_command", "Quantize a model with every method; one table."),
    "course": ("labkit.course.command", "Progress, and proof that the exercises can be trusted."),
    "train-reference": ("labkit.training.reference_command", "Rebuild the bundled model."),
}


class LazyGroup(TyperGroup):
    """Import a sub-command's module only when that sub-command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if len(sys.argv) > 1 and sys.argv[1] == name:
            module = importlib.import_module(COMMANDS[name][0])
            command = typer.main.get_command(module.app)
            command.name = name
            return command
        return click.Command(name, help=COMMANDS[name][1], short_help=COMMANDS[name][1])
