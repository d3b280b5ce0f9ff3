"""The same checks in a real Jupyter kernel, where functions live in cells and cells in files."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from labkit.course.registry import get

STUB = get("00.1").stub
CELLS = {
    "setup": "from labkit.course import check, hint, reveal",
    "stub": STUB + '\n\ncheck("00.1", weight_gib)',
    "wrong": 'def weight_gib(billions, bits):\n    return billions * bits / 8\n\n'
    'check("00.1", weight_gib)',
    "error": 'def scaled(x):\n    return x / 0\n\ndef weight_gib(billions, bits):\n'
    '    return scaled(billions)\n\ncheck("00.1", weight_gib)',
    "borrowed": "from labkit.course.chapters.ch00_start_here import weight_gibibytes\n"
    'check("00.1", lambda billions, bits: weight_gibibytes(billions, bits))',
    "endless": "import dataclasses\nfrom labkit.course.checking import evaluate\n"
    "from labkit.course.registry import get\n"
    "def weight_gib(billions, bits):\n    while True:\n        pass\n\n"
    'print(evaluate(dataclasses.replace(get("00.1"), time_limit=0.3), weight_gib).text())',
    "right": 'def weight_gib(billions, bits):\n    return billions * 1e9 * bits / 8 / 2**30\n\n'
    'check("00.1", weight_gib)',
    "progress": "from labkit.course.widgets_progress import course_progress\ncourse_progress()",
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_HOME", str(tmp_path_factory.mktemp("home")))
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return {
        name: "".join(_text(output) for output in cell.outputs)
        for name, cell in zip(CELLS, notebook.cells, strict=True)
    }


def _text(output) -> str:
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def test_a_stub_in_a_cell_is_not_an_attempt(outputs):
    assert outputs["stub"] == "00.1 Memory of the weights: not attempted\n"


def test_a_wrong_answer_gets_its_misconception(outputs):
    assert "not yet" in outputs["wrong"]
    assert "You gave GB" in outputs["wrong"]


def test_an_error_in_a_helper_shows_the_line_of_the_cell(outputs):
    assert "ZeroDivisionError" in outputs["error"]
    assert "at line 2: return x / 0" in outputs["error"]


def test_borrowing_is_seen(outputs):
    assert "leans on the answer key" in outputs["borrowed"]


def test_an_endless_loop_ends_and_the_kernel_lives(outputs):
    assert "did not finish within 0.3 seconds" in outputs["endless"]
    assert outputs["right"] == "00.1 Memory of the weights: passed\n"


def test_the_widgets_text_is_the_output(outputs):
    assert outputs["progress"].startswith("00_start_here")
    assert "1 of 1 exercises" in outputs["progress"]
