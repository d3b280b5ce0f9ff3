"""Keep of an executed notebook what a reader needs, in a form that does not change from run to run.

Widgets keep their state, so that a learner sees them before the first run; their random ids become
numbers drawn from the notebook's name and the order in which the widgets were made.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import nbformat
from nbformat import NotebookNode

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = ("kernelspec", "labkit", "language_info", "widgets")


def clean(notebook: NotebookNode, name: str) -> NotebookNode:
    """A copy without versions, times, random ids and orphaned widgets."""
    notebook = nbformat.from_dict(notebook)
    # The kernel reports its own version there; the source's declaration holds for every one.
    notebook.metadata.language_info.pop("version", None)
    for key in set(notebook.metadata) - set(KEPT_METADATA):
        del notebook.metadata[key]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
    _keep_visible_widgets(notebook)
    return _with_stable_ids(notebook, name)


def _keep_visible_widgets(notebook: NotebookNode) -> None:
    """Drop the state of widgets that no output shows, such as those of a cell's earlier draft."""
    state = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    waiting = [o.data[VIEW]["model_id"] for o in outputs if VIEW in o.get("data", {})]
    visible: set[str] = set()
    while waiting:
        model = waiting.pop()
        if model in visible or model not in state:
            continue
        visible.add(model)
        text = json.dumps(state[model])
        waiting += [other for other in state if other in text]
        # A link between two widgets is referred to by none; it refers to them.
        waiting += [
            other
            for other, content in state.items()
            if content.get("model_name", "").endswith("LinkModel") and model in json.dumps(content)
        ]
    if not visible:
        notebook.metadata.pop("widgets", None)
        return
    for model in set(state) - visible:
        del state[model]


def _with_stable_ids(notebook: NotebookNode, name: str) -> NotebookNode:
    widgets = notebook.metadata.get("widgets", {}).get(STATE, {})
    text = nbformat.writes(notebook)
    for number, model in enumerate(widgets.get("state", {})):
        stable = hashlib.sha256(f"{name} widget {number}".encode()).hexdigest()[:32]
        text = text.replace(model, stable)
    return nbformat.reads(text, as_version=4)


def text_of(output: dict[str, Any]) -> str:
    """What an output says in words: its stream text, or its plain form."""
    text = output.get("text", output.get("data", {}).get("text/plain", ""))
    return text if isinstance(text, str) else "".join(text)
