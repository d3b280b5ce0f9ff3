"""The options that every group of `labkit bench` has, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Quick = Annotated[bool, typer.Option(help="Small problems, two rounds at most: about a minute.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each side is timed, in turns.")]
Threads = Annotated[
    str, typer.Option(help="For both sides; several, such as 1,2, one after the other.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")]
Save = Annotated[
    Path | None,
    typer.Option(help="Write rows, command and machine to this JSON file, or into this folder."),
]
Chart = Annotated[Path | None, typer.Option(help="Draw the ratios into this file, such as a.png.")]
Device = Annotated[str, typer.Option(help="cpu, or cuda for the first NVIDIA card.")]


@dataclass(frozen=True)
class Options:
    """The options that every group has."""

    quick: Quick = False
    rounds: Rounds = 5
    threads: Threads = "2"
    as_json: AsJson = False
    save: Save = None
    chart: Chart = None

    @property
    def used_rounds(self) -> int:
        """No more than two where it is to be quick."""
        return min(self.rounds, 2) if self.quick else self.rounds


def with_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function `(options: Options, **own)`: its own options, then those of all.

    typer reads a signature, so one is put together here.

    Args:
        defaults: where the group's differ from those of `Options`.
    """

    def made(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Options, include_extras=True)
        shared = [
            Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, field.default),
                annotation=hints[field.name],
            )
            for field in fields(Options)
        ]
        taken = inspect.signature(function, eval_str=True).parameters.values()
        own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in taken if p.name != "options"]

        def command(**given: Any) -> None:
            options = Options(**{parameter.name: given.pop(parameter.name) for parameter in shared})
            function(options, **given)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in [*own, *shared]}
        return command

    return made
