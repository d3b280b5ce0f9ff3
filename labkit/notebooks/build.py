"""Build a notebook: source, run, clean, write. The old file stays until the new one is whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit.notebooks.cleaning import clean
from labkit.notebooks.running import run
from labkit.notebooks.source import Pair, differences, notebook_from


def build(pairs: Iterable[Pair], force: bool = False) -> Iterator[tuple[Pair, bool]]:
    """Build the notebooks whose source changed (all with `force`), one after the other.

    Yields each pair as it is dealt with, and whether its notebook was written.

    Raises:
        NotebookError: a cell failed; its notebook on disk is the one of before.
    """
    for pair in pairs:
        needed = force or bool(differences(pair))
        if needed:
            executed = run(notebook_from(pair.source), _folder(pair), pair.name)
            write(clean(executed), pair.notebook)
        yield pair, needed


def _folder(pair: Pair) -> Path:
    """The notebook's folder, which a first project does not find yet."""
    pair.notebook.parent.mkdir(exist_ok=True)
    return pair.notebook.parent


def write(notebook: NotebookNode, path: Path) -> None:
    """Write the notebook beside `path`, then rename: a reader never meets half a file."""
    nbformat.validate(notebook)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(nbformat.writes(notebook).rstrip("\n") + "\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
