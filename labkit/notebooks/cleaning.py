"""Keep of an executed notebook what a reader needs, in a form that does not change from run to run.

A widget is kept as its text and its picture: JupyterLab does not draw the widgets of a notebook
that it does not trust yet, as a fresh clone's, and its model ids are random. It comes alive when
its cell is run.
"""

from __future__ import annotations

import re
from typing import Any

import nbformat
from nbformat import NotebookNode

VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = ("kernelspec", "labkit", "language_info")
DEFAULT_REPR = re.compile(r"[A-Z]\w*\(.*\)", re.DOTALL)
"""How ipywidgets describe themselves, as in IntSlider(value=3): no text for a reader."""


def clean(notebook: NotebookNode) -> NotebookNode:
    """A copy without versions, times, random ids and the state of widgets."""
    notebook = nbformat.from_dict(notebook)
    # The kernel reports its own version there; the source's declaration holds for every one.
    notebook.metadata.language_info.pop("version", None)
    for key in set(notebook.metadata) - set(KEPT_METADATA):
        del notebook.metadata[key]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        for output in cell.get("outputs", []):
            # A widget without a text keeps its view: the lint finds it there.
            if not DEFAULT_REPR.fullmatch(text_of(output)):
                output.get("data", {}).pop(VIEW, None)
    return notebook


def text_of(output: dict[str, Any]) -> str:
    """What an output says in words: its stream text, or its plain form."""
    text = output.get("text", output.get("data", {}).get("text/plain", ""))
    return text if isinstance(text, str) else "".join(text)
