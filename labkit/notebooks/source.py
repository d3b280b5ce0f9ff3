"""Percent-format sources: where they are, what cells they hold, whether a notebook matches them.

notebooks/source/02_scale_zero_point.py    to notebooks/02_scale_zero_point.ipynb
notebooks/source/projects/p2_cnn_int8.py   to notebooks/projects/p2_cnn_int8.ipynb
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from labkit.notebooks.errors import NotebookError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PROJECTS = "projects"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE_INFO = {
    "name": "python",
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "pygments_lexer": "ipython3",
    "codemirror_mode": {"name": "ipython", "version": 3},
    "nbconvert_exporter": "python",
}


@dataclass(frozen=True)
class Pair:
    """A source and the notebook that is built from it."""

    source: Path
    notebook: Path

    @property
    def name(self) -> str:
        """As in "02_scale_zero_point" or "p2_cnn_int8"."""
        return self.source.stem

    @property
    def is_project(self) -> bool:
        """Whether it is a project: a lab without numbered exercises."""
        return self.source.parent.name == PROJECTS

    @property
    def course(self) -> Path:
        """The course's folder of notebooks."""
        return self.source.parents[2 if self.is_project else 1]

    def read(self) -> NotebookNode:
        """The built notebook. Raises NotebookError if there is none."""
        if not self.notebook.exists():
            raise NotebookError(
                "the notebook was never built", str(self.notebook), f"Build it: {self.command}"
            )
        return nbformat.read(self.notebook, as_version=4)

    @property
    def command(self) -> str:
        """What builds this notebook."""
        return f"python -m labkit.notebooks build {self.name}"


def pairs(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Pair]:
    """The notebooks called `names` ("02", "02_scale_zero_point", "p2"), or all of them, in order.

    Chapters come first, then projects.

    Raises:
        NotebookError: a name that is no source's, or a folder without sources.
    """
    found = {
        path.stem: Pair(path, folder / part / f"{path.stem}.ipynb")
        for part in ("", PROJECTS)
        for path in sorted((folder / "source" / part).glob("*.py"))
    }
    if not found:
        raise NotebookError("there are no notebook sources", str(folder / "source"))
    if not names:
        return list(found.values())
    chosen = []
    for name in names:
        stem = Path(name).stem
        matches = [pair for known, pair in found.items() if stem in (known, known.split("_")[0])]
        if not matches:
            raise NotebookError(
                f"there is no notebook {name!r}", str(folder), f"There are: {', '.join(found)}."
            )
        chosen += matches
    return chosen


def source_of(notebook: Path) -> Path:
    """Where the source of a notebook is, or would be."""
    place, name = notebook.parent, f"{notebook.stem}.py"
    if place.name == PROJECTS:
        return place.parent / "source" / PROJECTS / name
    return place / "source" / name


def digest(source: Path) -> str:
    """SHA-256 of a source's text, whatever the line ends of this system."""
    return hashlib.sha256(source.read_text(encoding="utf-8").encode("utf-8")).hexdigest()


def notebook_from(source: Path) -> NotebookNode:
    """The unexecuted notebook of a source; its cell ids depend on the cells' text alone."""
    parsed = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    notebook = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": dict(KERNELSPEC),
            "language_info": LANGUAGE_INFO,
            "labkit": {"source_sha256": digest(source)},
        }
    )
    ids = _cell_ids(parsed.cells)
    for cell, cell_id in zip(parsed.cells, ids, strict=True):
        make = {
            "code": nbformat.v4.new_code_cell,
            "markdown": nbformat.v4.new_markdown_cell,
            "raw": nbformat.v4.new_raw_cell,
        }[cell.cell_type]
        tags = {"tags": list(cell.metadata.tags)} if cell.metadata.get("tags") else {}
        notebook.cells.append(make(cell.source, id=cell_id, metadata=tags))
    return notebook


def _cell_ids(cells: Iterable[NotebookNode]) -> list[str]:
    """Ids that change only with the cell's own text: an edit leaves the other cells' ids alone."""
    seen: Counter[str] = Counter()
    ids = []
    for cell in cells:
        text = f"{cell.cell_type}\n{cell.source}"
        short = hashlib.sha256(text.encode("utf-8")).hexdigest()[:10]
        ids.append(short if not seen[short] else f"{short}-{seen[short]}")
        seen[short] += 1
    return ids


def differences(pair: Pair) -> list[str]:
    """Where the built notebook is not what its source says; an empty list if it is in step."""
    if not pair.notebook.exists():
        return ["never built"]
    built, wanted = pair.read(), notebook_from(pair.source)
    found = []
    if built.metadata.get("labkit") != wanted.metadata.labkit:
        found.append("built from another text of the source")
    if len(built.cells) != len(wanted.cells):
        found.append(f"{len(built.cells)} cells, {len(wanted.cells)} in the source")
    unlike = [
        f"cell {number}: {', '.join(parts)} differs from the source"
        for number, pair_of_cells in enumerate(zip(built.cells, wanted.cells, strict=False))
        if (parts := _unlike_parts(*pair_of_cells))
    ]
    # One inserted cell moves all that follow: the first difference is the one to look at.
    more = [f"{len(unlike) - 1} further cells differ"] if len(unlike) > 1 else []
    return found + unlike[:1] + more


def _unlike_parts(cell: NotebookNode, source: NotebookNode) -> list[str]:
    return [
        part for part in ("cell_type", "source", "metadata", "id") if cell[part] != source[part]
    ]
