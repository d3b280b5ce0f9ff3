"""`python -m labkit.notebooks build|lint|solve|check [02 ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from labkit.notebooks.build import build
from labkit.notebooks.comparing import compare
from labkit.notebooks.errors import NotebookError
from labkit.notebooks.lint import lint, lint_source
from labkit.notebooks.solving import changed, checks, solve
from labkit.notebooks.source import NOTEBOOKS, Pair, pairs


def _build(chosen: list[Pair], options: argparse.Namespace) -> int:
    for pair, written in build(chosen, force=options.force):
        print(f"{pair.notebook.name}: {'built' if written else 'in step'}", flush=True)
    return 0


def _lint(chosen: list[Pair], options: argparse.Namespace) -> int:
    look = lint_source if options.source else lint
    findings = [finding for pair in chosen for finding in look(pair)]
    for finding in findings:
        print(finding)
    print(f"{len(chosen)} notebooks, {len(findings)} findings")
    return int(bool(findings))


def _solve(chosen: list[Pair], options: argparse.Namespace) -> int:
    wrong = 0
    for pair in chosen:
        solved = solve(pair, options.other_cpu)
        for check in checks(solved):
            print(check.verdict.strip() or f"{check.exercise_id}: no verdict", flush=True)
            wrong += not check.passed
        for change in changed(solved, pair.read()):
            print(f"{pair.name}, {change}", flush=True)
            wrong += 1
    return int(bool(wrong))


def _check(chosen: list[Pair], options: argparse.Namespace) -> int:
    return compare(chosen, other_cpu=options.other_cpu, jobs=options.jobs)


COMMANDS: dict[str, tuple[Callable[[list[Pair], argparse.Namespace], int], str]] = {
    "build": (_build, "execute what changed and write the .ipynb"),
    "lint": (_lint, "check the rules of a notebook"),
    "solve": (_solve, "run with every exercise solved; checks pass, nothing else changes"),
    "check": (_check, "run again with nbval and compare every output"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m labkit.notebooks")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("names", nargs="*", help="02, 02_scale_zero_point or p2; default: all")
        command.add_argument("--folder", type=Path, default=NOTEBOOKS, help=argparse.SUPPRESS)
        if name == "build":
            command.add_argument("--force", action="store_true", help="build what is in step too")
        if name == "lint":
            command.add_argument("--source", action="store_true", help="without built notebooks")
        if name == "check":
            command.add_argument("--jobs", type=int, default=1, help="notebooks run side by side")
        if name in ("check", "solve"):
            command.add_argument("--other-cpu", action="store_true", help="one thread, no AVX-512")
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command][0](pairs(options.names, options.folder), options)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
