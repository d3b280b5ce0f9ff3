"""The `labkit` command. Each sub-command lives beside what it runs and is imported when called."""

from __future__ import annotations

import importlib
import sys

# name -> (module with a typer `app`, one line for `labkit --help`)
COMMANDS = {
    "doctor": ("labkit.doctor", "Check that this machine can run the course."),
    "score": ("labkit.evaluate.score_command", "Quantize a model with every method; one table."),
    "quantize": ("labkit.models.quantize_command", "Quantize a model, write it in a format."),
    "qat": ("labkit.training.qat_command", "Train a model with rounded weights, write it."),
    "gguf": ("labkit.models.gguf_command", "Models for llama.cpp: convert, imatrix, inspect."),
    "bench": ("labkit.bench.bench_command", "Ours beside the real libraries: time and error."),
    "study": ("labkit.study.study_command", "The long measurements behind the chapters."),
    "course": ("labkit.course.command", "Progress, and proof that the exercises can be trusted."),
    "train-reference": ("labkit.training.reference_command", "Rebuild the bundled model."),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["Usage: labkit COMMAND [OPTIONS]", "", *lines, "", "`labkit COMMAND --help` says more."]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run `labkit COMMAND ...`; without a command, or with an unknown one, say what there is."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] == "--version":
        from labkit import __version__

        print(f"labkit {__version__}")
        return
    if not words or words[0] in {"-h", "--help"}:
        print(_usage())
        return
    if words[0] not in COMMANDS:
        print(f"labkit: no command {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        raise SystemExit(2)
    module = importlib.import_module(COMMANDS[words[0]][0])
    module.app(args=words[1:], prog_name=f"labkit {words[0]}")
