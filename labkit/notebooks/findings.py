"""What a lint rule looks at, and what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode


@dataclass(frozen=True)
class Finding:
    """A broken rule. `cell` counts all cells from 0; None for the notebook as a whole."""

    notebook: str
    cell: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        place = self.notebook if self.cell is None else f"{self.notebook}, cell {self.cell}"
        return f"{place}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Subject:
    """An executed notebook under scrutiny."""

    name: str
    notebook: NotebookNode
    path: Path

    @property
    def chapter(self) -> str:
        """The two signs at the start of the name: the digits of a chapter, or "p2"."""
        return self.name[:2]

    @property
    def needs_exercises(self) -> bool:
        """Not the first chapter, and not a project."""
        return self.chapter != "00" and not self.chapter.startswith("p")

    def cells(self, kind: str) -> Iterator[tuple[int, NotebookNode]]:
        """Cells of one kind with their position among all cells."""
        for number, cell in enumerate(self.notebook.cells):
            if cell.cell_type == kind:
                yield number, cell

    def finding(self, cell: int | None, rule: str, message: str) -> Finding:
        """A finding in this notebook."""
        return Finding(self.name, cell, rule, message)


EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u26ff\u2700-\u2712\u2714-\u2716\u2718-\u27bf\ufe0f\u2b50\u2b55]"
)
"""Pictographs. A plain check mark or cross (U+2713, U+2717) is a letter here."""


def emoji_in(text: str) -> str:
    """The pictographs in a text, as code points."""
    return " ".join(sorted({f"U+{ord(sign):04X}" for sign in EMOJI.findall(text)}))
